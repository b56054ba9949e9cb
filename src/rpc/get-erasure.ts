import { create } from "@bufbuild/protobuf";
import {
  type GetErasureRequest,
  type GetErasureResponse,
  GetErasureResponseSchema,
} from "../../gen/nuncio/v1/event_service_pb.ts";
import { whileAvailable } from "../store/database.ts";
import { getErasure as readErasure } from "../store/erasures.ts";
import { fromErasure } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, toErasureUuid } from "./request-checks.ts";

export function getErasure(deps: RpcDependencies) {
  return async (request: GetErasureRequest): Promise<GetErasureResponse> => {
    checkRequest(request, { required: ["id"] });
    const uuid = toErasureUuid(request.id);
    const erasure = await whileAvailable(() => readErasure(deps.orm, request.tenantId, uuid));
    return create(GetErasureResponseSchema, { erasure: fromErasure(erasure) });
  };
}
