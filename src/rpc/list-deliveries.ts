import { create } from "@bufbuild/protobuf";
import {
  type ListDeliveriesRequest,
  type ListDeliveriesResponse,
  ListDeliveriesResponseSchema,
} from "../../gen/nuncio/v1/delivery_service_pb.ts";
import type { Fault } from "../core/errors.ts";
import type { Uuid } from "../core/ids.ts";
import { toNextEpochMs } from "../core/instant.ts";
import { effectivePageSize, formatPageToken, parsePageToken } from "../core/page-token.ts";
import { checkStorableText } from "../core/text.ts";
import { whileAvailable } from "../store/database.ts";
import { type DeliveryFilter, listDeliveries as readDeliveries } from "../store/deliveries.ts";
import { fromDelivery, toDeliveryStates, toEventTypes } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkPageSize, checkRequest, MAX_ID, toSubscriptionFilter } from "./request-checks.ts";

export function listDeliveries(deps: RpcDependencies) {
  return async (request: ListDeliveriesRequest): Promise<ListDeliveriesResponse> => {
    const filter = readFilter(request);
    const list = ["deliveries", request.tenantId, filter];
    const after = request.pageToken === "" ? undefined : parsePageToken(list, request.pageToken, 2);
    const limit = effectivePageSize(request.pageSize);
    const place = after && {
      eventKey: after[0] as Uuid,
      subscription: after[1] as Uuid,
    };

    // One more than asked for tells whether there is another page.
    const found = await whileAvailable(() =>
      readDeliveries(deps.orm, request.tenantId, filter, { after: place, limit: limit + 1 }),
    );
    const page = found.slice(0, limit);
    const last = page.at(-1);
    return create(ListDeliveriesResponseSchema, {
      deliveries: page.map((delivery) => fromDelivery(delivery)),
      nextPageToken: found.length > limit && last ? formatPageToken(list, [last.eventKey, last.subscription]) : "",
    });
  };
}

function readFilter(request: ListDeliveriesRequest): DeliveryFilter {
  const faults: Fault[] = [];
  checkPageSize(request.pageSize, faults);
  checkStorableText(request.eventId, MAX_ID, "event_id", faults);
  checkStorableText(request.userId, MAX_ID, "user_id", faults);
  const filter = {
    subscription: toSubscriptionFilter(request.subscriptionId, faults),
    states: toDeliveryStates(request.states, "states", faults),
    eventTypes: toEventTypes(request.eventTypes, "event_types", faults),
    eventId: request.eventId === "" ? undefined : request.eventId,
    userId: request.userId === "" ? undefined : request.userId,
    createdFromMs: request.createTimeAfter && toNextEpochMs(request.createTimeAfter),
    createdBeforeMs: request.createTimeBefore && toNextEpochMs(request.createTimeBefore),
  };
  checkRequest(request, { faults });
  return filter;
}
