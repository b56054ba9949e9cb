import { create } from "@bufbuild/protobuf";
import {
  type CancelRedriveRequest,
  type CancelRedriveResponse,
  CancelRedriveResponseSchema,
} from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { whileAvailable } from "../store/database.ts";
import { cancelRedrive as endRedrive } from "../store/redrives.ts";
import { fromRedrive } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, toRedriveUuid } from "./request-checks.ts";

export function cancelRedrive(deps: RpcDependencies) {
  return async (request: CancelRedriveRequest): Promise<CancelRedriveResponse> => {
    checkRequest(request, { required: ["id"] });
    const uuid = toRedriveUuid(request.id);
    const redrive = await whileAvailable(() => endRedrive(deps.orm, request.tenantId, uuid));
    return create(CancelRedriveResponseSchema, { redrive: fromRedrive(redrive) });
  };
}
