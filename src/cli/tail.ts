import { setTimeout as delay } from "node:timers/promises";
import { type Timestamp, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import type { Command } from "commander";
import { type Delivery, DeliverySchema, DeliveryState } from "../../gen/nuncio/v1/delivery_pb.ts";
import { EventTypeSchema } from "../../gen/nuncio/v1/event_pb.ts";
import {
  type OperationalEvent,
  OperationalEventSchema,
  OperationalEventTypeSchema,
} from "../../gen/nuncio/v1/operational_event_pb.ts";
import { type DeliveryFilter, describeState, listDeliveries } from "./deliveries.ts";
import { mayComeGood } from "./exit-codes.ts";
import { harmless, type Output, styled } from "./output.ts";
import { type Session, untilInterrupted, withSession } from "./session.ts";
import { formatTime, toWord } from "./words.ts";

type TailOptions = Pick<DeliveryFilter, "subscription" | "user">;

const POLL_MS = 1_000;
/** The newest so many unfinished deliveries are followed, and so many new ones seen at each look. */
const MOST_FOLLOWED = 1_000;
/** What is asked for again at each look: an event that committed late is not passed over. */
const OVERLAP_MS = 10_000;

export function addTail(program: Command): void {
  program
    .command("tail")
    .summary("watch deliveries as they happen")
    .description(
      "Prints what has changed in a tenant's deliveries, looked at each second, and its operational events, until Ctrl-C. What " +
        `comes and goes between two looks is seen as it ended; of a backlog the newest ${MOST_FOLLOWED.toLocaleString("en-US")} are followed.`,
    )
    .option("--subscription <id>", "of this subscription")
    .option("--user <id>", "deliveries about this user")
    .action(withSession(tail));
}

async function tail(session: Session, options: TailOptions): Promise<void> {
  const { out } = session;
  const stop = untilInterrupted();
  const watch = new Watch(session, options);
  await watch.look();
  out.note(`Watching ${session.tenantId} at ${session.address}; Ctrl-C ends.`);
  let isAnswered = true;
  for (;;) {
    await delay(POLL_MS, undefined, { signal: stop }).catch(() => undefined);
    if (stop.aborted) return;
    try {
      const { deliveries, events } = await watch.look();
      for (const delivery of deliveries) printDelivery(out, delivery);
      for (const event of events) printOperationalEvent(out, event);
      if (!isAnswered) out.note(`${clock()}  answered again`);
      isAnswered = true;
    } catch (error) {
      if (!(error instanceof ConnectError && mayComeGood(error))) throw error;
      if (isAnswered) out.note(`${clock()}  no answer (${harmless(error.rawMessage)}); trying again each second`);
      isAnswered = false;
    }
  }
}

/** What was seen of each delivery so far, so that a look tells what has changed since the one before. */
class Watch {
  readonly #session: Session;
  readonly #options: TailOptions;
  /** Of those that have ended only what is young enough to be listed again. */
  readonly #seen = new Map<string, { readonly state: string; readonly createdAtMs: number }>();
  readonly #unfinished = new Map<string, number>();
  readonly #counted = new Map<string, number>();
  /** By the server's clock: that of the newest event seen. */
  #newestMs = 0;

  constructor(session: Session, options: TailOptions) {
    this.#session = session;
    this.#options = options;
  }

  async look(): Promise<{ deliveries: Delivery[]; events: OperationalEvent[] }> {
    if (this.#newestMs === 0)
      this.#newestMs = Math.max(OVERLAP_MS, ...(await this.#list({}, 1)).items.map(createdAtMs));
    const sinceMs = this.#newestMs - OVERLAP_MS;
    const fresh = await this.#list({ after: timestampFromMs(sinceMs) });
    const pending = await this.#list({ state: [DeliveryState.PENDING, DeliveryState.DELIVERING] });
    const current = new Map([...pending.items, ...fresh.items].map((delivery) => [delivery.id, delivery]));
    for (const delivery of await this.#getEnded(current, pending)) current.set(delivery.id, delivery);
    const changed = [...current.values()].filter((delivery) => this.#notice(delivery));
    this.#newestMs = Math.max(this.#newestMs, ...fresh.items.map(createdAtMs));
    for (const [id, { createdAtMs: at }] of this.#seen) {
      if (at < sinceMs && !this.#unfinished.has(id)) this.#seen.delete(id);
    }
    if (fresh.hasMore)
      this.#session.out.note(
        `${clock()}  more than ${MOST_FOLLOWED} new deliveries in a look: the others are left out`,
      );
    return { deliveries: changed.sort(byTime), events: await this.#newEvents() };
  }

  #list(filter: { after?: Timestamp; state?: DeliveryState[] }, limit = MOST_FOLLOWED) {
    return listDeliveries(this.#session, { ...this.#options, ...filter }, limit);
  }

  /** Those that were unfinished and are not listed any more; not those that a longer list has pushed out. */
  async #getEnded(
    current: ReadonlyMap<string, Delivery>,
    pending: { items: Delivery[]; hasMore: boolean },
  ): Promise<Delivery[]> {
    const oldestMs = pending.hasMore ? Math.min(...pending.items.map(createdAtMs)) : Number.NEGATIVE_INFINITY;
    const gone = [...this.#unfinished].filter(([id]) => !current.has(id));
    for (const [id, at] of gone) if (at <= oldestMs) this.#unfinished.delete(id);
    const { nuncio, tenantId } = this.#session;
    const answers = gone
      .filter(([, at]) => at > oldestMs)
      .map(([id]) => nuncio.deliveries.getDelivery({ tenantId, id }));
    return (await Promise.all(answers)).map(({ delivery }) => delivery as Delivery);
  }

  /** Whether it is not as it was. */
  #notice(delivery: Delivery): boolean {
    const { id, state, attemptCount } = delivery;
    const isUnfinished = state === DeliveryState.PENDING || state === DeliveryState.DELIVERING;
    if (isUnfinished) this.#unfinished.set(id, createdAtMs(delivery));
    else this.#unfinished.delete(id);
    const now = `${describeState(delivery)} ${attemptCount}`;
    const isChanged = this.#seen.get(id)?.state !== now;
    this.#seen.set(id, { state: now, createdAtMs: createdAtMs(delivery) });
    return isChanged;
  }

  async #newEvents(): Promise<OperationalEvent[]> {
    const { nuncio, tenantId } = this.#session;
    const { operationalEvents } = await nuncio.operations.listOperationalEvents({
      tenantId,
      subscriptionId: this.#options.subscription ?? "",
      pageSize: MOST_FOLLOWED,
    });
    return operationalEvents.filter((event) => {
      const isNew = this.#counted.get(event.id) !== event.count;
      this.#counted.set(event.id, event.count);
      return isNew;
    });
  }
}

function createdAtMs({ createTime }: Delivery): number {
  return createTime === undefined ? 0 : timestampMs(createTime);
}

function byTime(a: Delivery, b: Delivery): number {
  return createdAtMs(a) - createdAtMs(b) || (a.id < b.id ? -1 : 1);
}

function clock(): string {
  return new Date().toISOString().slice(11, 19);
}

const STYLES: Partial<Record<DeliveryState, Parameters<typeof styled>[0]>> = {
  [DeliveryState.DELIVERED]: "green",
  [DeliveryState.DEAD_LETTERED]: "red",
  [DeliveryState.CANCELLED]: "yellow",
};

function printDelivery(out: Output, delivery: Delivery): void {
  if (out.isJson) {
    out.message(DeliverySchema, delivery);
    return;
  }
  const { state, eventType, userId, attemptCount, id, subscriptionId, nextAttemptTime, endTime } = delivery;
  const when = endTime ?? nextAttemptTime;
  const parts = [
    clock(),
    styled(STYLES[state] ?? "reset", describeState(delivery).padEnd(14)),
    toWord(EventTypeSchema, eventType).padEnd(16),
    harmless(userId),
    `attempt ${attemptCount}`,
    state === DeliveryState.PENDING && when !== undefined ? `next ${formatTime(when)}` : "",
    id,
    subscriptionId,
  ];
  out.say(parts.filter((part) => part !== "").join("  "));
}

function printOperationalEvent(out: Output, event: OperationalEvent): void {
  if (out.isJson) {
    out.message(OperationalEventSchema, event);
    return;
  }
  const what = `${toWord(OperationalEventTypeSchema, event.type)} ${event.reason}`.trim();
  const times = event.count > 1 ? ` (${event.count} this hour)` : "";
  out.say(`${clock()}  ${styled("yellow", harmless(what))}${times}  ${event.subscriptionId}`);
}
