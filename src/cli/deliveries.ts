import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Timestamp, timestampMs } from "@bufbuild/protobuf/wkt";
import type { Command } from "commander";
import {
  AttemptOutcomeSchema,
  type Delivery,
  type DeliveryAttempt,
  DeliveryEndReasonSchema,
  DeliverySchema,
  type DeliveryState,
  DeliveryStateSchema,
} from "../../gen/nuncio/v1/delivery_pb.ts";
import type { ListDeliveriesRequestSchema } from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { type EventType, EventTypeSchema } from "../../gen/nuncio/v1/event_pb.ts";
import { noteMore, pagesOf, parseLimit } from "./paging.ts";
import { type Session, withSession } from "./session.ts";
import { collecting, formatDuration, formatTime, parseTime, toWord, wordParser, wordsOf } from "./words.ts";

/** Which deliveries a command is about. */
export type DeliveryFilter = {
  readonly subscription?: string;
  readonly state?: DeliveryState[];
  readonly type?: EventType[];
  readonly event?: string;
  readonly user?: string;
  readonly after?: Timestamp;
  readonly before?: Timestamp;
};

const SHOWN = 50;
/** A worker takes up what is due within this, unless something holds it. */
const OVERDUE_MS = 5_000;

export function addDeliveries(program: Command): void {
  const deliveries = program.command("deliveries").alias("dlv").summary("list, show, redrive, cancel deliveries");
  withFilter(deliveries.command("list").description("Lists deliveries, newest first."))
    .option("--limit <number>", `how many (default: ${SHOWN})`, parseLimit)
    .action(withSession(list));
  deliveries
    .command("get")
    .argument("<id>")
    .description("Shows a delivery and each of its attempts.")
    .action(withSession(get));
  deliveries
    .command("redrive")
    .argument("<id>")
    .description("Delivers it once more; one that waits for its next attempt comes due now.")
    .action(withSession(redrive));
  deliveries
    .command("cancel")
    .argument("<id>")
    .description("Ends a delivery that is pending.")
    .action(withSession(cancel));
}

function withFilter(command: Command): Command {
  return command
    .option("--subscription <id>", "of this subscription")
    .option("--state <states>", wordsOf(DeliveryStateSchema).join(", "), collecting(wordParser(DeliveryStateSchema)))
    .option("--type <types>", wordsOf(EventTypeSchema).join(", "), collecting(wordParser(EventTypeSchema)))
    .option("--event <id>", "of this event")
    .option("--user <id>", "about this user")
    .option("--after <time>", "of events accepted since, such as 2h (ago) or 2026-03-01T04:00:00Z", parseTime)
    .option("--before <time>", "of events accepted before", parseTime);
}

function toRequest(
  tenantId: string,
  { subscription, state, type, event, user, after, before }: DeliveryFilter,
): MessageInitShape<typeof ListDeliveriesRequestSchema> {
  return {
    tenantId,
    subscriptionId: subscription ?? "",
    states: state ?? [],
    eventTypes: type ?? [],
    eventId: event ?? "",
    userId: user ?? "",
    ...(after === undefined ? {} : { createTimeAfter: after }),
    ...(before === undefined ? {} : { createTimeBefore: before }),
  };
}

/** Up to `limit`, newest first. */
export function listDeliveries(
  { nuncio, tenantId }: Session,
  filter: DeliveryFilter,
  limit: number,
): Promise<{ items: Delivery[]; hasMore: boolean }> {
  return pagesOf(limit, async (page) => {
    const response = await nuncio.deliveries.listDeliveries({ ...toRequest(tenantId, filter), ...page });
    return { items: response.deliveries, nextPageToken: response.nextPageToken };
  });
}

export const DELIVERY_HEAD = ["ID", "STATE", "EVENT", "USER", "SUBSCRIPTION", "ATTEMPTS", "CREATED", "NEXT OR ENDED"];

export function deliveryRow(delivery: Delivery): string[] {
  return [
    delivery.id,
    describeState(delivery),
    toWord(EventTypeSchema, delivery.eventType),
    delivery.userId,
    delivery.subscriptionId,
    String(delivery.attemptCount),
    formatTime(delivery.createTime),
    delivery.endTime === undefined ? describeNext(delivery) : formatTime(delivery.endTime),
  ];
}

export function describeState({ state, endReason }: Delivery): string {
  const reason = toWord(DeliveryEndReasonSchema, endReason);
  return reason === "" ? toWord(DeliveryStateSchema, state) : `${toWord(DeliveryStateSchema, state)} (${reason})`;
}

/** A time that has passed is no promise: its subscription is paused, disabled, failing or at its limits, or no worker runs. */
export function describeNext({ nextAttemptTime }: Delivery): string {
  if (nextAttemptTime === undefined) return "";
  const time = formatTime(nextAttemptTime);
  return timestampMs(nextAttemptTime) < Date.now() - OVERDUE_MS ? `held, due since ${time}` : time;
}

export const ATTEMPT_HEAD = ["#", "STARTED", "TOOK", "OUTCOME", "STATUS", "DETAIL"];

export function attemptRow({
  number,
  startTime,
  duration,
  outcome,
  httpStatus,
  errorDetail,
  stale,
}: DeliveryAttempt): string[] {
  return [
    String(number),
    formatTime(startTime),
    formatDuration(duration),
    `${toWord(AttemptOutcomeSchema, outcome)}${stale ? " (stale)" : ""}`,
    httpStatus === undefined ? "" : String(httpStatus),
    errorDetail,
  ];
}

async function list(session: Session, filter: DeliveryFilter & { limit?: number }): Promise<void> {
  const limit = filter.limit ?? SHOWN;
  const { items, hasMore } = await listDeliveries(session, filter, limit);
  const { out } = session;
  if (out.isJson) for (const delivery of items) out.message(DeliverySchema, delivery);
  else out.table(DELIVERY_HEAD, items.map(deliveryRow), "No such deliveries.");
  noteMore(out, limit, hasMore);
}

async function get(session: Session, id: string): Promise<void> {
  const { delivery } = await session.nuncio.deliveries.getDelivery({ tenantId: session.tenantId, id });
  show(session, delivery);
}

async function redrive(session: Session, id: string): Promise<void> {
  const { delivery } = await session.nuncio.deliveries.redriveDelivery({ tenantId: session.tenantId, id });
  show(session, delivery);
}

async function cancel(session: Session, id: string): Promise<void> {
  const { delivery } = await session.nuncio.deliveries.cancelDelivery({ tenantId: session.tenantId, id });
  show(session, delivery);
}

function show({ out }: Session, delivery: Delivery | undefined): void {
  if (delivery === undefined) return;
  if (out.isJson) {
    out.message(DeliverySchema, delivery);
    return;
  }
  out.fields({
    id: delivery.id,
    state: describeState(delivery),
    event: `${toWord(EventTypeSchema, delivery.eventType)} ${delivery.eventId}`,
    user: `${delivery.userId} (sequence ${delivery.userSequence})`,
    subscription: delivery.subscriptionId,
    created: formatTime(delivery.createTime),
    "next attempt": describeNext(delivery),
    "given up at": formatTime(delivery.expireTime),
    ended: formatTime(delivery.endTime),
  });
  if (delivery.attempts.length === 0) return;
  out.say("");
  out.table(ATTEMPT_HEAD, delivery.attempts.map(attemptRow), "");
  const excerpt = delivery.attempts.findLast(({ responseExcerpt }) => responseExcerpt !== "");
  if (excerpt !== undefined) out.fields({ [`answer to attempt ${excerpt.number}`]: excerpt.responseExcerpt });
}
