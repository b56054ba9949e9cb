import { create } from "@bufbuild/protobuf";
import {
  type ListOperationalEventsRequest,
  type ListOperationalEventsResponse,
  ListOperationalEventsResponseSchema,
} from "../../gen/nuncio/v1/operations_service_pb.ts";
import type { Fault } from "../core/errors.ts";
import { effectivePageSize, formatPageToken, parsePageToken } from "../core/page-token.ts";
import { whileAvailable } from "../store/database.ts";
import { type OperationalEventFilter, listOperationalEvents as readEvents } from "../store/operational-events.ts";
import { fromOperationalEvent, toOperationalEventTypes } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkPageSize, checkRequest, toSubscriptionFilter } from "./request-checks.ts";

export function listOperationalEvents(deps: RpcDependencies) {
  return async (request: ListOperationalEventsRequest): Promise<ListOperationalEventsResponse> => {
    const filter = readFilter(request);
    const list = ["operational_events", request.tenantId, filter];
    const after = request.pageToken === "" ? undefined : parsePageToken(list, request.pageToken, 1)[0];
    const limit = effectivePageSize(request.pageSize);

    // One more than asked for tells whether there is another page.
    const found = await whileAvailable(() =>
      readEvents(deps.orm, request.tenantId, filter, { after, limit: limit + 1 }),
    );
    const page = found.slice(0, limit);
    const last = page.at(-1);
    return create(ListOperationalEventsResponseSchema, {
      operationalEvents: page.map(fromOperationalEvent),
      nextPageToken: found.length > limit && last ? formatPageToken(list, [last.uuid]) : "",
    });
  };
}

function readFilter(request: ListOperationalEventsRequest): OperationalEventFilter {
  const faults: Fault[] = [];
  checkPageSize(request.pageSize, faults);
  const filter = {
    subscription: toSubscriptionFilter(request.subscriptionId, faults),
    types: toOperationalEventTypes(request.types, "types", faults),
  };
  checkRequest(request, { faults });
  return filter;
}
