import { MAX_JITTER } from "./schedule.ts";

/**
 * What keeps a dead receiver from taking slots: after several failures in a row nothing is sent but one probe now and
 * then, until one succeeds.
 */
export type Breaker = {
  /** Since the last success. */
  readonly consecutiveFailures: number;
  /** Different events among them, as many as matter. */
  readonly failedEvents: readonly string[];
  /** How often in a row it has opened. */
  readonly trips: number;
  /** Open; at this time one delivery may probe. Undefined while closed. */
  readonly openUntilMs: number | undefined;
};

export const CLOSED: Breaker = { consecutiveFailures: 0, failedEvents: [], trips: 0, openUntilMs: undefined };

/** Opens after so many failures in a row: a receiver that fails three times in ten does so once in 240,000 requests … */
export const FAILURES_TO_OPEN = 10;
/** … of so many different events: one poison event, tried again and again, says nothing about its receiver. */
export const EVENTS_TO_OPEN = 3;

/** What a breaker lets through: everything, nothing, or one probe. */
export type BreakerState = "closed" | "open" | "half_open";

export function stateOf({ openUntilMs }: Breaker, nowMs: number): BreakerState {
  if (openUntilMs === undefined) return "closed";
  return nowMs < openUntilMs ? "open" : "half_open";
}

/** Counted no further: the pause has long stopped growing. */
const MOST_TRIPS = 100;
const FIRST_PAUSE_MS = 5_000;
const LONGEST_PAUSE_MS = 60_000;

/** Any success closes it, also that of a request which began before it opened. */
export function afterSuccess(): Breaker {
  return CLOSED;
}

export function afterFailure(
  breaker: Breaker,
  circumstances: {
    readonly eventKey: string;
    readonly nowMs: number;
    /** Uniform in [0, 1). */
    readonly random: number;
    /** The retry schedule, in milliseconds. */
    readonly schedule: readonly number[];
  },
): Breaker {
  const { eventKey, nowMs } = circumstances;
  const consecutiveFailures = breaker.consecutiveFailures + 1;
  const isNew = breaker.failedEvents.length < EVENTS_TO_OPEN && !breaker.failedEvents.includes(eventKey);
  const failedEvents = isNew ? [...breaker.failedEvents, eventKey] : breaker.failedEvents;
  const isFailing = consecutiveFailures >= FAILURES_TO_OPEN && failedEvents.length >= EVENTS_TO_OPEN;
  const isProbe = breaker.openUntilMs !== undefined && nowMs >= breaker.openUntilMs;
  // What began before it opened and fails after says nothing new.
  const opens = isProbe || (breaker.openUntilMs === undefined && isFailing);
  if (!opens) return { ...breaker, consecutiveFailures, failedEvents };
  const trips = Math.min(breaker.trips + 1, MOST_TRIPS);
  return { consecutiveFailures, failedEvents, trips, openUntilMs: nowMs + pauseMs(trips, circumstances) };
}

/**
 * Twice as long each time, and never longer than a delivery that failed as often would wait: who wants quick retries wants
 * quick probes. Stretched by chance, so that what failed together is not probed together.
 */
function pauseMs(trips: number, { random, schedule }: { random: number; schedule: readonly number[] }): number {
  const retryMs = schedule[Math.min(trips, schedule.length) - 1] ?? LONGEST_PAUSE_MS;
  const pause = Math.min(FIRST_PAUSE_MS * 2 ** (trips - 1), LONGEST_PAUSE_MS, retryMs);
  return pause * (1 + random * (MAX_JITTER - 1));
}
