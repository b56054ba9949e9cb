import { create } from "@bufbuild/protobuf";
import {
  type GetEventRequest,
  type GetEventResponse,
  GetEventResponseSchema,
} from "../../gen/nuncio/v1/event_service_pb.ts";
import { whileAvailable } from "../store/database.ts";
import { getEvent as readEvent } from "../store/events.ts";
import { fromStoredEvent } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest } from "./request-checks.ts";

export function getEvent(deps: RpcDependencies) {
  return async (request: GetEventRequest): Promise<GetEventResponse> => {
    checkRequest(request, { required: ["id"] });
    const stored = await whileAvailable(() => readEvent(deps.orm, request.tenantId, request.id));
    return create(GetEventResponseSchema, { event: fromStoredEvent(stored) });
  };
}
