import { create } from "@bufbuild/protobuf";
import {
  type GetRedriveRequest,
  type GetRedriveResponse,
  GetRedriveResponseSchema,
} from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { whileAvailable } from "../store/database.ts";
import { getRedrive as readRedrive } from "../store/redrives.ts";
import { fromRedrive } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, toRedriveUuid } from "./request-checks.ts";

export function getRedrive(deps: RpcDependencies) {
  return async (request: GetRedriveRequest): Promise<GetRedriveResponse> => {
    checkRequest(request, { required: ["id"] });
    const uuid = toRedriveUuid(request.id);
    const redrive = await whileAvailable(() => readRedrive(deps.orm, request.tenantId, uuid));
    return create(GetRedriveResponseSchema, { redrive: fromRedrive(redrive) });
  };
}
