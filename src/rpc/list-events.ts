import { create } from "@bufbuild/protobuf";
import {
  type ListEventsRequest,
  type ListEventsResponse,
  ListEventsResponseSchema,
} from "../../gen/nuncio/v1/event_service_pb.ts";
import type { Fault } from "../core/errors.ts";
import { toNextEpochMs } from "../core/instant.ts";
import { effectivePageSize, formatPageToken, parsePageToken } from "../core/page-token.ts";
import { checkStorableText } from "../core/text.ts";
import { whileAvailable } from "../store/database.ts";
import { type EventFilter, listEvents as readEvents } from "../store/events.ts";
import { fromStoredEvent, toEventTypes } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkPageSize, checkRequest, MAX_ID } from "./request-checks.ts";

export function listEvents(deps: RpcDependencies) {
  return async (request: ListEventsRequest): Promise<ListEventsResponse> => {
    const filter = readFilter(request);
    const list = ["events", request.tenantId, filter];
    const after = request.pageToken === "" ? undefined : parsePageToken(list, request.pageToken, 1)[0];
    const limit = effectivePageSize(request.pageSize);
    const { events, next } = await whileAvailable(() =>
      readEvents(deps.orm, request.tenantId, filter, { after, limit }),
    );
    return create(ListEventsResponseSchema, {
      events: events.map(fromStoredEvent),
      nextPageToken: next === undefined ? "" : formatPageToken(list, [next]),
    });
  };
}

function readFilter(request: ListEventsRequest): EventFilter {
  const faults: Fault[] = [];
  checkPageSize(request.pageSize, faults);
  checkStorableText(request.userId, MAX_ID, "user_id", faults);
  const filter = {
    eventTypes: toEventTypes(request.eventTypes, "event_types", faults),
    userId: request.userId === "" ? undefined : request.userId,
    createdFromMs: request.createTimeAfter && toNextEpochMs(request.createTimeAfter),
    createdBeforeMs: request.createTimeBefore && toNextEpochMs(request.createTimeBefore),
  };
  checkRequest(request, { faults });
  return filter;
}
