import { setTimeout as delay } from "node:timers/promises";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import type { EventService } from "../gen/nuncio/v1/event_service_pb.ts";
import { toMessage, type UserEvent } from "./user-event.ts";

/** One event on its way to Nuncio, and what became of it. */
export type Emission = {
  readonly event: UserEvent;
  state: "waiting" | "accepted" | "lost";
  /** How many deliveries Nuncio stored; undefined if it told us that it had the event already. */
  deliveries?: number;
  /** Calls that failed before one was answered. */
  failedCalls: number;
  /** Why it was lost. */
  why?: string;
};

const CALL_TIMEOUT_MS = 10_000;
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;

/**
 * Publishes events in the background: those of one person one after the other, each until it is accepted.
 *
 * The queue is memory and has no bound. What waits in it when the gateway is killed is lost, although the people have
 * changed. A production gateway writes each event into an outbox table in the transaction of the change, and publishes
 * from there; the event's own id makes that just as safe to repeat as it is here.
 */
export class Emitter {
  /** Everything that was ever emitted, in order. */
  readonly emissions: Emission[] = [];
  readonly #events: Client<typeof EventService>;
  readonly #stop = new AbortController();
  readonly #lastOf = new Map<string, Promise<void>>();

  constructor(events: Client<typeof EventService>) {
    this.#events = events;
  }

  /** Takes the event and returns at once; never throws. */
  emit(event: UserEvent): void {
    const emission: Emission = { event, state: "waiting", failedCalls: 0 };
    this.emissions.push(emission);
    const person = `${event.tenantId}/${event.user.id}`;
    const turn = (this.#lastOf.get(person) ?? Promise.resolve()).then(() => this.#publish(emission));
    this.#lastOf.set(person, turn);
    void turn.then(() => {
      if (this.#lastOf.get(person) === turn) this.#lastOf.delete(person);
    });
  }

  get waiting(): number {
    return this.emissions.filter(({ state }) => state === "waiting").length;
  }

  /** Gives up what still waits. */
  async close(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#lastOf.values());
  }

  /** Resolves when the event was accepted or is lost; never rejects, for the next one of this person waits for it. */
  async #publish(emission: Emission): Promise<void> {
    const { signal } = this.#stop;
    // Made once: the id and the content stay the same however often it is sent, so Nuncio stores it once.
    const event = toMessage(emission.event);
    while (!signal.aborted) {
      try {
        const answer = await this.#events.publish({ event }, { signal, timeoutMs: CALL_TIMEOUT_MS });
        emission.state = "accepted";
        if (!answer.duplicate) emission.deliveries = answer.deliveries;
        return;
      } catch (error) {
        const failure = ConnectError.from(error);
        emission.failedCalls += 1;
        const pauseMs = retryPauseMs(failure, emission.failedCalls);
        if (pauseMs === undefined) return lose(emission, failure.message);
        await delay(pauseMs, undefined, { signal }).catch(() => undefined);
      }
    }
    lose(emission, "the gateway stopped before it was accepted");
  }
}

function lose(emission: Emission, why: string): void {
  emission.state = "lost";
  emission.why = why;
}

/** The call may have ended before Nuncio did: an HTTP/2 connection whose server is killed gives CANCELED. */
const UNDECIDED: ReadonlySet<Code> = new Set([Code.Unavailable, Code.DeadlineExceeded, Code.Canceled, Code.Aborted]);
/** The same, unless it is Nuncio that says so: a connection that breaks in other ways. */
const UNDECIDED_WITHOUT_REASON: ReadonlySet<Code> = new Set([Code.Internal, Code.Unknown]);

/**
 * How long to wait before the same event is sent again; undefined if that would fail again. Beside what Nuncio itself
 * calls temporary these are the calls that it never answered: the event may have been stored, and its id makes asking
 * again harmless.
 */
export function retryPauseMs(failure: ConnectError, failedCalls: number): number | undefined {
  // A full queue says when to come again; a request that is too large says nothing, for it stays too large.
  const [retryInfo] = failure.findDetails(RetryInfoSchema);
  const answered = failure.findDetails(ErrorInfoSchema).some(({ domain }) => domain === "nuncio");
  const undecided = UNDECIDED.has(failure.code) || (!answered && UNDECIDED_WITHOUT_REASON.has(failure.code));
  if (retryInfo === undefined && !undecided) return undefined;
  const backoffMs = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (failedCalls - 1));
  const wished = retryInfo?.retryDelay;
  const wishedMs = wished === undefined ? 0 : Number(wished.seconds) * 1000 + wished.nanos / 1_000_000;
  return Math.max(backoffMs, wishedMs) * (1 + Math.random() * 0.2);
}
