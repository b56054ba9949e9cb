import { create } from "@bufbuild/protobuf";
import {
  type ListDeliveriesRequest,
  type ListDeliveriesResponse,
  ListDeliveriesResponseSchema,
} from "../../gen/nuncio/v1/delivery_service_pb.ts";
import type { Fault } from "../core/errors.ts";
import type { Uuid } from "../core/ids.ts";
import { toNextEpochMs } from "../core/instant.ts";
import { type Direction, directionOf, effectivePageSize, formatPageToken, parsePageToken } from "../core/page-token.ts";
import { checkStorableText } from "../core/text.ts";
import { whileAvailable } from "../store/database.ts";
import {
  type Delivery,
  type DeliveryFilter,
  type DeliveryPlace,
  listDeliveries as readDeliveries,
} from "../store/deliveries.ts";
import { fromDelivery, toDeliveryStates, toEventTypes } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkPageSize, checkRequest, MAX_ID, toSubscriptionFilter } from "./request-checks.ts";

export function listDeliveries(deps: RpcDependencies) {
  return async (request: ListDeliveriesRequest): Promise<ListDeliveriesResponse> => {
    const filter = readFilter(request);
    const list = ["deliveries", request.tenantId, filter];
    const { pageToken } = request;
    const direction = directionOf(list, pageToken);
    const after = pageToken === "" ? undefined : toPlace(parsePageToken(list, pageToken, 2, direction));
    const limit = effectivePageSize(request.pageSize);

    // One more than asked for tells whether there is another page that way.
    const found = await whileAvailable(() =>
      readDeliveries(deps.orm, request.tenantId, filter, { after, limit: limit + 1, direction }),
    );
    const hasMore = found.length > limit;
    const page = direction === "older" ? found.slice(0, limit) : found.slice(-limit);
    // The way back is there: we have come from it.
    const hasOlder = direction === "older" ? hasMore : page.length > 0;
    const hasNewer = direction === "older" ? after !== undefined && page.length > 0 : hasMore;
    const tokenAt = (delivery: Delivery | undefined, way: Direction) =>
      delivery ? formatPageToken(list, [delivery.eventKey, delivery.subscription], way) : "";
    return create(ListDeliveriesResponseSchema, {
      deliveries: page.map((delivery) => fromDelivery(delivery)),
      nextPageToken: hasOlder ? tokenAt(page.at(-1), "older") : "",
      previousPageToken: hasNewer ? tokenAt(page[0], "newer") : "",
    });
  };
}

function toPlace([eventKey, subscription]: readonly Uuid[]): DeliveryPlace {
  return { eventKey: eventKey as Uuid, subscription: subscription as Uuid };
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
