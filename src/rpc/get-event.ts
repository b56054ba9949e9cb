import { create } from "@bufbuild/protobuf";
import {
  type GetEventRequest,
  type GetEventResponse,
  GetEventResponseSchema,
} from "../../gen/nuncio/v1/event_service_pb.ts";
import { MAX_PAGE_SIZE } from "../core/page-token.ts";
import { whileAvailable } from "../store/database.ts";
import { listDeliveries, NO_FILTER } from "../store/deliveries.ts";
import { getEvent as readEvent } from "../store/events.ts";
import { fromDelivery, fromStoredEvent } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest } from "./request-checks.ts";

export function getEvent(deps: RpcDependencies) {
  return async (request: GetEventRequest): Promise<GetEventResponse> => {
    checkRequest(request, { required: ["id"] });
    const { stored, deliveries } = await whileAvailable(async () => ({
      stored: await readEvent(deps.orm, request.tenantId, request.id),
      deliveries: await listDeliveries(
        deps.orm,
        request.tenantId,
        { ...NO_FILTER, eventId: request.id },
        { after: undefined, limit: MAX_PAGE_SIZE },
      ),
    }));
    return create(GetEventResponseSchema, {
      event: fromStoredEvent(stored),
      deliveries: deliveries.map((delivery) => fromDelivery(delivery)),
    });
  };
}
