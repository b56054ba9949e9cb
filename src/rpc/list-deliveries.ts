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
import { isCancelled, whileAvailable } from "../store/database.ts";
import {
  type Delivery,
  type DeliveryFilter,
  type DeliveryPlace,
  findScanEnd,
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
    const { found, scanEnd } = await whileAvailable(() =>
      readPage(deps.orm, request.tenantId, filter, { after, limit: limit + 1, direction }),
    );
    const hasMore = found.length > limit;
    if (!hasMore && scanEnd !== undefined) return toCutPage(list, found, { after, direction, scanEnd });
    const page = direction === "older" ? found.slice(0, limit) : found.slice(-limit);
    // The way back is there: we have come from it.
    const hasOlder = direction === "older" ? hasMore : page.length > 0;
    const hasNewer = direction === "older" ? after !== undefined && page.length > 0 : hasMore;
    return create(ListDeliveriesResponseSchema, {
      deliveries: page.map((delivery) => fromDelivery(delivery)),
      nextPageToken: hasOlder ? tokenAt(list, page.at(-1), "older") : "",
      previousPageToken: hasNewer ? tokenAt(list, page[0], "newer") : "",
    });
  };
}

/** What passes a filter is found in this time, or a part of the list is looked through instead of all. */
const READ_WHOLE_MS = 500;

type Reading = { readonly after: DeliveryPlace | undefined; readonly limit: number; readonly direction: Direction };

async function readPage(
  orm: RpcDependencies["orm"],
  tenantId: string,
  filter: DeliveryFilter,
  reading: Reading,
): Promise<{ found: Delivery[]; scanEnd: Uuid | undefined }> {
  const isFiltered = filter.eventTypes.length > 0 || filter.states.length > 0;
  const timeoutMs = isFiltered ? READ_WHOLE_MS : undefined;
  try {
    return { found: await readDeliveries(orm, tenantId, filter, { ...reading, timeoutMs }), scanEnd: undefined };
  } catch (error) {
    if (!isFiltered || !isCancelled(error)) throw error;
    const scanEnd = await findScanEnd(orm, tenantId, filter, reading);
    return { found: await readDeliveries(orm, tenantId, filter, { ...reading, scanEnd }), scanEnd };
  }
}

/** Beside every subscription's delivery of an event, on either side. */
const BEFORE_ALL = "00000000-0000-0000-0000-000000000000" as Uuid;
const BEHIND_ALL = "ffffffff-ffff-ffff-ffff-ffffffffffff" as Uuid;

/** A page that ends where enough was looked at, and not for want of more: it may be empty, and the next one goes on there. */
function toCutPage(
  list: unknown,
  found: readonly Delivery[],
  { after, direction, scanEnd }: { after: DeliveryPlace | undefined; direction: Direction; scanEnd: Uuid },
): ListDeliveriesResponse {
  const isOlder = direction === "older";
  const end = { eventKey: scanEnd, subscription: isOlder ? BEFORE_ALL : BEHIND_ALL };
  // The way back begins at what is shown; where nothing is, where we have come from.
  const back = (isOlder ? found[0] : found.at(-1)) ?? after;
  return create(ListDeliveriesResponseSchema, {
    deliveries: found.map((delivery) => fromDelivery(delivery)),
    nextPageToken: tokenAt(list, isOlder ? end : back, "older"),
    previousPageToken: isOlder && after === undefined ? "" : tokenAt(list, isOlder ? back : end, "newer"),
  });
}

function tokenAt(list: unknown, place: DeliveryPlace | undefined, way: Direction): string {
  return place ? formatPageToken(list, [place.eventKey, place.subscription], way) : "";
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
