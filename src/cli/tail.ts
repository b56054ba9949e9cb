import { setTimeout as delay } from "node:timers/promises";
import { type Timestamp, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Command } from "commander";
import { type Delivery, DeliverySchema, DeliveryState } from "../../gen/nuncio/v1/delivery_pb.ts";
import { EventTypeSchema } from "../../gen/nuncio/v1/event_pb.ts";
import {
  type OperationalEvent,
  OperationalEventSchema,
  OperationalEventTypeSchema,
} from "../../gen/nuncio/v1/operational_event_pb.ts";
import { type DeliveryFilter, describeState, listDeliveries } from "./deliveries.ts";
import { harmless, type Output, styled } from "./output.ts";
import { type Session, untilInterrupted, withSession } from "./session.ts";
import { formatTime, toWord } from "./words.ts";

type TailOptions = Pick<DeliveryFilter, "subscription" | "user">;

const POLL_MS = 1_000;
/** Of what was accepted longer ago only what was unfinished at the start is followed, this many at most. */
const MOST_FOLLOWED = 1_000;
/** What is asked for again at each look: an event that committed late is not passed over. */
const OVERLAP_MS = 10_000;

export function addTail(program: Command): void {
  program
    .command("tail")
    .summary("watch deliveries as they happen")
    .description("Prints each change of a tenant's deliveries, and its operational events, until Ctrl-C.")
    .option("--subscription <id>", "of this subscription")
    .option("--user <id>", "about this user")
    .action(withSession(tail));
}

async function tail(session: Session, options: TailOptions): Promise<void> {
  const { out } = session;
  const stop = untilInterrupted();
  const watch = new Watch(session, options);
  await watch.look();
  out.note(`Watching ${session.tenantId} at ${session.address}; Ctrl-C ends.`);
  for (;;) {
    await delay(POLL_MS, undefined, { signal: stop }).catch(() => undefined);
    if (stop.aborted) return;
    const { deliveries, events } = await watch.look();
    for (const delivery of deliveries) printDelivery(out, delivery);
    for (const event of events) printOperationalEvent(out, event);
  }
}

/** What was seen of each delivery so far, so that a look tells what has changed since the one before. */
class Watch {
  readonly #session: Session;
  readonly #options: TailOptions;
  readonly #seen = new Map<string, string>();
  readonly #unfinished = new Set<string>();
  readonly #counted = new Map<string, number>();
  #sinceMs = Date.now();

  constructor(session: Session, options: TailOptions) {
    this.#session = session;
    this.#options = options;
  }

  async look(): Promise<{ deliveries: Delivery[]; events: OperationalEvent[] }> {
    const beganAtMs = Date.now();
    const fresh = await this.#list({ after: timestampFromMs(this.#sinceMs - OVERLAP_MS) });
    const pending = await this.#list({ state: [DeliveryState.PENDING, DeliveryState.DELIVERING] });
    const current = new Map([...pending, ...fresh].map((delivery) => [delivery.id, delivery]));
    for (const id of this.#unfinished) if (!current.has(id)) current.set(id, await this.#get(id));
    this.#sinceMs = beganAtMs;
    const changed = [...current.values()].filter((delivery) => this.#notice(delivery));
    return { deliveries: changed.sort(byTime), events: await this.#newEvents() };
  }

  #list(filter: { after?: Timestamp; state?: DeliveryState[] }): Promise<Delivery[]> {
    return listDeliveries(this.#session, { ...this.#options, ...filter }, MOST_FOLLOWED);
  }

  async #get(id: string): Promise<Delivery> {
    const { nuncio, tenantId } = this.#session;
    return (await nuncio.deliveries.getDelivery({ tenantId, id })).delivery as Delivery;
  }

  /** Whether it is not as it was. */
  #notice(delivery: Delivery): boolean {
    const { id, state, attemptCount } = delivery;
    const isUnfinished = state === DeliveryState.PENDING || state === DeliveryState.DELIVERING;
    if (isUnfinished) this.#unfinished.add(id);
    else this.#unfinished.delete(id);
    const now = `${describeState(delivery)} ${attemptCount}`;
    const isChanged = this.#seen.get(id) !== now;
    this.#seen.set(id, now);
    return isChanged;
  }

  async #newEvents(): Promise<OperationalEvent[]> {
    const { nuncio, tenantId } = this.#session;
    const { operationalEvents } = await nuncio.operations.listOperationalEvents({
      tenantId,
      subscriptionId: this.#options.subscription ?? "",
    });
    return operationalEvents.filter((event) => {
      const isNew = this.#counted.get(event.id) !== event.count;
      this.#counted.set(event.id, event.count);
      return isNew;
    });
  }
}

function byTime(a: Delivery, b: Delivery): number {
  return a.userSequence < b.userSequence ? -1 : 1;
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
    new Date().toISOString().slice(11, 19),
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
  out.say(
    `${new Date().toISOString().slice(11, 19)}  ${styled("yellow", harmless(what))}${times}  ${event.subscriptionId}`,
  );
}
