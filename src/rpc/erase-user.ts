import { create } from "@bufbuild/protobuf";
import {
  type EraseUserRequest,
  type EraseUserResponse,
  EraseUserResponseSchema,
} from "../../gen/nuncio/v1/event_service_pb.ts";
import { toUuid, type Uuid } from "../core/ids.ts";
import { whileAvailable } from "../store/database.ts";
import { createErasure } from "../store/erasures.ts";
import { fromErasure } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest } from "./request-checks.ts";

export function eraseUser(deps: RpcDependencies) {
  return async (request: EraseUserRequest): Promise<EraseUserResponse> => {
    checkRequest(request, { required: ["userId"] });
    const { tenantId, userId } = request;
    const erasureUuid = toUuid(deps.newUuidV7()) as Uuid;
    const erasure = await whileAvailable(() => createErasure(deps.orm, tenantId, { userId, erasureUuid }));
    return create(EraseUserResponseSchema, { erasure: fromErasure(erasure) });
  };
}
