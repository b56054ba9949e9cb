import { create } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import type { Event as WireEvent } from "../../gen/nuncio/v1/event_pb.ts";
import {
  type PublishRequest,
  type PublishResponse,
  PublishResponseSchema,
} from "../../gen/nuncio/v1/event_service_pb.ts";
import { hashContent } from "../core/content-hash.ts";
import {
  AlreadyExistsError,
  type Fault,
  InvalidArgumentError,
  invalidArgument,
  withoutEchoes,
} from "../core/errors.ts";
import { type AcceptedEvent, checkEvent, type EventDraft, toEventTypeCode } from "../core/event.ts";
import { bodyByteLength, renderBodyTail } from "../core/event-body.ts";
import { toInstant } from "../core/instant.ts";
import { TRACEPARENT_PATTERN } from "../core/traceparent.ts";
import type { AppendResult, AppendRow } from "../store/outbox/append.ts";
import { refuseUnknownFields, toEventDraft } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";

/** Turns one event into a row, appends it with whatever else is waiting, and answers after the commit. */
export function publish(deps: RpcDependencies) {
  return async (request: PublishRequest, context: HandlerContext): Promise<PublishResponse> => {
    const unknown: Fault[] = [];
    refuseUnknownFields(request, "", unknown);
    const row = toAppendRow(deps, request.event, "event", traceparentOf(context), unknown);
    deps.quotas.admit(row.tenantId);
    const [result] = await deps.groupCommit.publish([row]);
    return toPublishResponse(deps, row, result as AppendResult);
  };
}

/** The row for an event, or INVALID_ARGUMENT with all that is wrong with it. `path` is where it stands in the request. */
export function toAppendRow(
  deps: RpcDependencies,
  event: WireEvent | undefined,
  path: string,
  traceparent: string | undefined,
  faults: Fault[] = [],
): AppendRow {
  const draft = readEvent(deps, event, path, faults);
  if (draft === undefined || faults.length > 0) throw invalidArgument("INVALID_EVENT", withoutEchoes(faults));
  const accepted = {
    ...draft,
    id: draft.id ?? `evt_${deps.newUuidV7()}`,
    occurTime: draft.occurTime ?? toInstant(deps.now()),
  } as AcceptedEvent;
  const bodyTail = renderBodyTail(accepted);
  if (bodyByteLength(bodyTail) > deps.maxEventBytes) {
    throw new InvalidArgumentError("EVENT_TOO_LARGE", `${path}: exceeds ${deps.maxEventBytes} bytes`, {
      faults: [{ path, description: `must be at most ${deps.maxEventBytes} bytes as the body that receivers get` }],
    });
  }
  return {
    tenantId: accepted.tenantId,
    eventId: accepted.id,
    eventTypeCode: toEventTypeCode(accepted.type),
    userId: accepted.user.id,
    contentHash: hashContent(draft),
    traceparent,
    bodyTail,
  };
}

/** The event as it was sent, and into `faults` all that keeps it from being published. */
export function readEvent(
  deps: Pick<RpcDependencies, "userAttributeKeys">,
  event: WireEvent | undefined,
  path: string,
  faults: Fault[],
): EventDraft | undefined {
  if (event === undefined) {
    faults.push({ path, description: "is required" });
    return undefined;
  }
  const draft = toEventDraft(event, path, faults);
  faults.push(...checkEvent(draft, deps.userAttributeKeys, path));
  return draft;
}

export function toPublishResponse(
  { quotas, onPublished }: Pick<RpcDependencies, "quotas" | "onPublished">,
  row: AppendRow,
  result: AppendResult,
): PublishResponse {
  onPublished(result.kind === "appended" ? "accepted" : result.kind);
  if (result.kind === "appended") quotas.added(row.tenantId, result.deliveries);
  if (result.kind === "conflict") {
    throw new AlreadyExistsError("EVENT_ID_REUSED", `event id ${row.eventId} stands for other content in this tenant`);
  }
  return create(PublishResponseSchema, {
    eventId: row.eventId,
    duplicate: result.kind === "duplicate",
    deliveries: result.kind === "appended" ? result.deliveries : 0,
  });
}

/** The publisher's trace, or our part of it; anything malformed is as good as none. */
export function traceparentOf(context: Pick<HandlerContext, "requestHeader">): string | undefined {
  const traceparent = context.requestHeader.get("traceparent");
  return traceparent !== null && TRACEPARENT_PATTERN.test(traceparent) ? traceparent : undefined;
}
