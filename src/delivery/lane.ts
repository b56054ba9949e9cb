import {
  afterFailure,
  afterSuccess,
  type Breaker,
  type BreakerState,
  CLOSED,
  FAILURES_TO_OPEN,
  stateOf,
} from "../core/breaker.ts";
import { emptyBucket, nextTokenAtMs, refill, type TokenBucket, take } from "../core/token-bucket.ts";
import type { LaneReport } from "../store/lane-states.ts";
import type { LaneSighting } from "../store/outbox/lanes.ts";

/** What one request of a lane came to, as far as the lane is concerned. */
export type LaneOutcome =
  | { readonly kind: "succeeded" }
  | {
      readonly kind: "failed";
      readonly eventKey: string;
      readonly detail: string;
      /** For how long the receiver asked for silence. */
      readonly holdMs: number | undefined;
      /** It answered 410. */
      readonly isGone: boolean;
    }
  /** Nothing was sent. */
  | { readonly kind: "unsent" };

/** When a request ended, and what a breaker needs beside: see `afterFailure`. */
export type Moment = { readonly nowMs: number; readonly random: number; readonly schedule: readonly number[] };

/** What waited while nothing was sent comes due spread over so long … */
const RECOVERY_MS = 60_000;
/** … but never slower than this many a second: a handful need not wait for a minute. */
const LEAST_RECOVERY_RATE = 2;
/** How often the others hear that it still succeeds. */
const REPORT_SUCCESS_EVERY_MS = 10_000;
/** A success within this time proves a receiver. */
const PROVEN_MS = 3_600_000;
/**
 * A claim looks from this little before what the last one brought: several rows can have the same due time. No further back,
 * since it reads all index entries from there on, and those of rows that ended stay for as long as any transaction might see
 * them. What commits later than this after its due time says so when it is announced, and what is not announced is found by a
 * look at the outbox.
 */
const MARGIN_MS = 100;
/** How far behind what was claimed last something may be due that does not say since when. */
const UNDATED_MS = 2_000;

type Recovery = { readonly untilMs: number; readonly pace: TokenBucket | undefined };

/**
 * What this worker knows of one lane: what may be due, what is on its way, and all that says whether more may begin.
 * Knowledge, not truth: the outbox decides what is claimed. Times are those of the worker's monotonic clock.
 */
export class Lane {
  readonly key: number;
  readonly tenant: number;
  isOwned = false;
  /** Neither paused nor disabled, when it was last looked at. */
  isEnabled = true;
  dueAtMs = Number.POSITIVE_INFINITY;
  /** Counts the wakes, so that one that comes while a claim is on its way is not forgotten when that finds nothing. */
  wakes = 0;
  inFlight = 0;
  /** Whether the last claim brought all that it might. */
  hasMore = false;
  /** Requests that the owner before may still have on their way; undefined: to be counted before anything begins. */
  #foreign: { readonly count: number; readonly untilMs: number } | undefined = { count: 0, untilMs: 0 };
  #revision = 0;
  #maxInFlight: number;
  #limit: TokenBucket | undefined;
  #recovery: Recovery | undefined;
  #breaker: Breaker = CLOSED;
  #heldUntilMs = Number.NEGATIVE_INFINITY;
  #succeededAtMs = Number.NEGATIVE_INFINITY;
  #failedAtMs = Number.NEGATIVE_INFINITY;
  #failingSinceMs: number | undefined;
  #lastFailure: string | undefined;
  #usedAtMs = Number.NEGATIVE_INFINITY;
  /** From which due time on a claim looks, by the database's clock; minus infinity until a look from the lane's beginning. */
  #sinceMs = Number.NEGATIVE_INFINITY;
  /** The due time of what was claimed last, or the time of that look; infinite before it. */
  #claimedMs = Number.POSITIVE_INFINITY;
  /** Where there is something, as came to be known while a claim was on its way: that claim may not have brought it. */
  #foundMs = Number.POSITIVE_INFINITY;
  /** How many a claim that is on its way may bring. */
  #reserved = 0;
  #restUntilMs = Number.NEGATIVE_INFINITY;
  #successReportedAtMs = Number.NEGATIVE_INFINITY;
  /** What the others have to be told. */
  #unreported: { event: LaneReport["event"] } | undefined;

  constructor(sighting: LaneSighting, { nowMs, maxInFlight }: { nowMs: number; maxInFlight: number }) {
    this.key = sighting.lane;
    this.tenant = sighting.tenant;
    this.#maxInFlight = maxInFlight;
    this.adopt(sighting, { nowMs, maxInFlight });
  }

  /**
   * Takes over what others wrote down: all of it if the subscription has changed, or until the lane is ours and the leases
   * of its owner before are counted. What we see ourselves after that is newer.
   */
  adopt(sighting: LaneSighting, { nowMs, maxInFlight }: { nowMs: number; maxInFlight: number }): void {
    this.#usedAtMs = nowMs;
    const isChanged = sighting.revision > this.#revision;
    this.setLimits(sighting, { nowMs, maxInFlight, claimed: this.#reserved });
    if (this.isOwned && this.#foreign !== undefined && !isChanged) return;
    const at = (inMs: number | undefined) => (inMs === undefined ? Number.NEGATIVE_INFINITY : nowMs + inMs);
    const { breakerForMs, recoveringForMs, failingForMs, succeededAgoMs } = sighting;
    this.#revision = sighting.revision;
    this.isEnabled = sighting.enabled;
    this.#breaker = {
      ...CLOSED,
      consecutiveFailures: sighting.consecutiveFailures,
      trips: sighting.breakerTrips,
      openUntilMs: breakerForMs === undefined ? undefined : nowMs + breakerForMs,
    };
    this.#heldUntilMs = at(sighting.heldForMs);
    const knownAtMs = succeededAgoMs === undefined ? Number.NEGATIVE_INFINITY : nowMs - succeededAgoMs;
    // Reported under a revision that had passed, and so not written down.
    if (this.#succeededAtMs > knownAtMs + REPORT_SUCCESS_EVERY_MS) this.#unreported ??= { event: undefined };
    this.#succeededAtMs = Math.max(this.#succeededAtMs, knownAtMs);
    this.#failingSinceMs = failingForMs === undefined ? undefined : nowMs - failingForMs;
    if (recoveringForMs !== undefined && recoveringForMs < RECOVERY_MS) this.#recover(nowMs - recoveringForMs);
  }

  /** Whether something about the subscription has changed since the lane was last looked at. */
  isOlderThan(revision: number): boolean {
    return this.#revision < revision;
  }

  breakerState(nowMs: number): BreakerState {
    return stateOf(this.#breaker, nowMs);
  }

  /** Whether more is on its way than may be: a claim was made under limits that have changed since. */
  isOverLimit(nowMs: number): boolean {
    const isOverRate = this.#limit !== undefined && refill(this.#limit, nowMs).tokens < 0;
    return isOverRate || this.#underWay(nowMs) > this.#maxInFlight;
  }

  /**
   * The limits of the subscription at this revision or a later one than is known. `claimed`: rows of a claim that was made
   * under the limits before and has told of these; none of them has begun.
   */
  setLimits(
    limits: Pick<LaneSighting, "revision" | "maxInFlight" | "requestsPerSecond">,
    { nowMs, maxInFlight, claimed = 0 }: { nowMs: number; maxInFlight: number; claimed?: number },
  ): void {
    if (limits.revision < this.#revision) return;
    this.#maxInFlight = Math.min(limits.maxInFlight ?? maxInFlight, maxInFlight);
    const { requestsPerSecond } = limits;
    if (requestsPerSecond === this.#limit?.perSecond) return;
    this.#limit = requestsPerSecond === undefined ? undefined : take(emptyBucket(requestsPerSecond, nowMs), claimed);
  }

  /** Whether a claim would read all that the lane ever had: no look from the beginning has told what is left of it. */
  get isUnbounded(): boolean {
    return this.#sinceMs === Number.NEGATIVE_INFINITY;
  }

  /** The first row that a look has found, if any, which claims must not pass over. */
  found({ databaseDueAtMs, databaseNowMs }: Pick<LaneSighting, "databaseDueAtMs" | "databaseNowMs">): void {
    if (this.isUnbounded) {
      this.#sinceMs = Math.min(this.#foundMs, databaseNowMs - UNDATED_MS);
      this.#claimedMs = databaseNowMs;
    }
    this.#goBackTo(databaseDueAtMs);
  }

  /** Something has come due, at this time of the database at the earliest; undefined: about now. */
  appeared(sinceMs = this.#claimedMs - UNDATED_MS): void {
    this.#goBackTo(sinceMs);
  }

  #goBackTo(dueAtMs: number): void {
    // Postgres reckons in microseconds.
    this.#sinceMs = Math.min(this.#sinceMs, dueAtMs - 1);
    this.#foundMs = Math.min(this.#foundMs, dueAtMs - 1);
  }

  /** Its subscription was deleted: nothing of it begins any more. */
  retire(): void {
    this.isEnabled = false;
    this.dueAtMs = Number.POSITIVE_INFINITY;
  }

  wake(dueAtMs: number): void {
    this.dueAtMs = Math.min(this.dueAtMs, dueAtMs);
    this.wakes += 1;
  }

  /**
   * A new owner does not know what the one before has on its way, nor where that one's claims have come to, and begins with an
   * empty bucket.
   */
  own(isOwned: boolean, { nowMs, mustCount }: { nowMs: number; mustCount: boolean }): void {
    if (isOwned && !this.isOwned) {
      this.#sinceMs = Number.NEGATIVE_INFINITY;
      this.#claimedMs = Number.POSITIVE_INFINITY;
      this.#foundMs = Number.POSITIVE_INFINITY;
      if (mustCount) this.#foreign = undefined;
      this.#limit &&= emptyBucket(this.#limit.perSecond, nowMs);
    }
    this.isOwned = isOwned;
  }

  /** Whether something has to be known before anything begins: what others have on their way, or where to begin. */
  get isUncounted(): boolean {
    return this.isOwned && this.isEnabled && this.#isUnknown;
  }

  get #isUnknown(): boolean {
    return this.#foreign === undefined || this.isUnbounded;
  }

  counted(count: number, untilMs: number): void {
    this.#foreign = { count, untilMs };
  }

  /** Whether the leases that were counted have ended; true once. */
  takeReturned(nowMs: number): boolean {
    if (!this.#foreign || this.#foreign.count === 0 || nowMs < this.#foreign.untilMs) return false;
    this.#foreign = { count: 0, untilMs: 0 };
    return true;
  }

  get isUnpaced(): boolean {
    return this.isOwned && this.#recovery !== undefined && this.#recovery.pace === undefined;
  }

  /** So many wait: they begin evenly over what is left of the recovery. */
  pace(waiting: number, nowMs: number): void {
    if (this.#recovery === undefined) return;
    const seconds = Math.max(1, (this.#recovery.untilMs - nowMs) / 1000);
    const pace = emptyBucket(Math.max(LEAST_RECOVERY_RATE, waiting / seconds), nowMs);
    this.#recovery = { ...this.#recovery, pace };
  }

  /** How many may begin now, by everything that limits this lane. */
  room(nowMs: number): number {
    if (!this.isOwned || !this.isEnabled || this.#isUnknown) return 0;
    if (this.dueAtMs > nowMs || this.#heldUntilMs > nowMs || this.#restUntilMs > nowMs) return 0;
    const underWay = this.#underWay(nowMs);
    const { openUntilMs } = this.#breaker;
    if (openUntilMs !== undefined) return nowMs >= openUntilMs && underWay === 0 ? 1 : 0;
    let room = this.#maxInFlight - underWay;
    if (this.#limit) room = Math.min(room, Math.floor(refill(this.#limit, nowMs).tokens));
    if (this.#isRecovering(nowMs)) {
      const pace = this.#recovery?.pace;
      room = Math.min(room, pace ? Math.floor(refill(pace, nowMs).tokens) : 0);
    }
    return Math.max(0, room);
  }

  /** When something may begin, as far as can be told; infinite if another event has to come first. */
  opensAtMs(nowMs: number): number {
    const underWay = this.#underWay(nowMs);
    const { openUntilMs } = this.#breaker;
    const isFull = openUntilMs === undefined ? underWay >= this.#maxInFlight : underWay > 0;
    if (!this.isOwned || !this.isEnabled || this.#isUnknown || this.isUnpaced) return Number.POSITIVE_INFINITY;
    const foreignUntilMs = this.#foreign?.untilMs ?? 0;
    if (isFull) return foreignUntilMs > nowMs ? foreignUntilMs : Number.POSITIVE_INFINITY;
    const tokens = [this.#limit, this.#isRecovering(nowMs) ? this.#recovery?.pace : undefined];
    const tokenAtMs = tokens.map((bucket) => (bucket ? nextTokenAtMs(bucket) : Number.NEGATIVE_INFINITY));
    return Math.max(
      this.dueAtMs,
      this.#heldUntilMs,
      this.#restUntilMs,
      openUntilMs ?? Number.NEGATIVE_INFINITY,
      ...tokenAtMs,
    );
  }

  isProven(nowMs: number): boolean {
    return nowMs - this.#succeededAtMs < PROVEN_MS && this.#breaker.consecutiveFailures < FAILURES_TO_OPEN;
  }

  /** So many are being claimed: returns the due time from which on to look for them. */
  reserve(count: number, nowMs: number): number {
    this.#usedAtMs = nowMs;
    this.#reserved = count;
    this.#foundMs = Number.POSITIVE_INFINITY;
    this.#takeTokens(count, nowMs);
    return this.#sinceMs;
  }

  /** So many of the reserved were there, the last of them due at that time of the database. */
  claimed(
    reserved: number,
    found: { readonly count: number; readonly dueAtMs: number },
    { nowMs, wakes }: { nowMs: number; wakes: number },
  ): void {
    this.inFlight += found.count;
    this.#takeTokens(found.count - reserved, nowMs);
    this.hasMore = found.count >= reserved;
    if (found.count > 0) {
      this.#sinceMs = Math.min(found.dueAtMs - MARGIN_MS, this.#foundMs);
      this.#claimedMs = found.dueAtMs;
    }
    this.#reserved = 0;
    // A later time that it was woken for is forgotten as well: the next look at the outbox brings it back.
    if (!this.hasMore && this.wakes === wakes) this.dueAtMs = Number.POSITIVE_INFINITY;
  }

  /** One row was claimed outside the shares. */
  claimedAlone(nowMs: number): void {
    this.inFlight += 1;
    this.#takeTokens(1, nowMs);
  }

  /** What was claimed could not be sent: nothing more until then, whatever else is due. */
  rest(untilMs: number): void {
    this.#restUntilMs = Math.max(this.#restUntilMs, untilMs);
    this.wake(untilMs);
  }

  #takeTokens(count: number, nowMs: number): void {
    if (this.#limit) this.#limit = take(refill(this.#limit, nowMs), count);
    if (this.#recovery?.pace && this.#isRecovering(nowMs)) {
      this.#recovery = { ...this.#recovery, pace: take(refill(this.#recovery.pace, nowMs), count) };
    }
  }

  /** One request is over. Returns whether the others should hear of it at once. */
  finished(outcome: LaneOutcome, { nowMs, ...breaking }: Moment): boolean {
    this.inFlight -= 1;
    this.#usedAtMs = nowMs;
    if (outcome.kind === "unsent") {
      this.#takeTokens(-1, nowMs);
      return false;
    }
    const wasOpen = this.#breaker.openUntilMs !== undefined;
    const wasFailing = this.#failingSinceMs !== undefined;
    let event: LaneReport["event"];
    if (outcome.kind === "succeeded") {
      this.#breaker = afterSuccess();
      this.#succeededAtMs = nowMs;
      this.#failingSinceMs = undefined;
      const isOldNews = !wasFailing && nowMs - this.#successReportedAtMs < REPORT_SUCCESS_EVERY_MS;
      if (isOldNews) return false;
      this.#successReportedAtMs = nowMs;
      if (wasOpen) {
        event = "subscription.recovered";
        this.#recover(nowMs);
      }
    } else {
      this.#breaker = afterFailure(this.#breaker, { eventKey: outcome.eventKey, nowMs, ...breaking });
      this.#failedAtMs = nowMs;
      this.#failingSinceMs ??= nowMs;
      this.#lastFailure = outcome.detail;
      if (!wasOpen && this.#breaker.openUntilMs !== undefined) event = "subscription.failing";
      if (outcome.holdMs !== undefined) this.#heldUntilMs = Math.max(this.#heldUntilMs, nowMs + outcome.holdMs);
    }
    this.#unreported = { event: event ?? this.#unreported?.event };
    const isOpen = this.#breaker.openUntilMs !== undefined;
    return wasOpen || isOpen || (outcome.kind === "failed" && outcome.holdMs !== undefined);
  }

  /** What the others have to be told, once. */
  takeReport(nowMs: number): LaneReport | undefined {
    if (this.#unreported === undefined) return undefined;
    const { event } = this.#unreported;
    this.#unreported = undefined;
    const ago = (atMs: number | undefined) =>
      atMs === undefined || atMs === Number.NEGATIVE_INFINITY ? undefined : nowMs - atMs;
    const { openUntilMs, consecutiveFailures, trips } = this.#breaker;
    return {
      lane: this.key,
      revision: this.#revision,
      succeededAgoMs: ago(this.#succeededAtMs),
      failedAgoMs: ago(this.#failedAtMs),
      lastFailure: this.#lastFailure,
      consecutiveFailures,
      failingForMs: ago(this.#failingSinceMs),
      heldForMs: this.#heldUntilMs > nowMs ? this.#heldUntilMs - nowMs : undefined,
      breakerForMs: openUntilMs === undefined ? undefined : openUntilMs - nowMs,
      breakerTrips: trips,
      recoveringForMs: this.#isRecovering(nowMs) ? ago((this.#recovery?.untilMs ?? 0) - RECOVERY_MS) : undefined,
      event,
    };
  }

  /** A report that could not be written is made again. */
  report(event: LaneReport["event"]): void {
    this.#unreported = { event: this.#unreported?.event ?? event };
  }

  /** Whether a success is so recent that it speaks against a 410. */
  hasSucceededWithin(ms: number, nowMs: number): boolean {
    return nowMs - this.#succeededAtMs < ms;
  }

  /** Whether nothing would be lost by forgetting it. */
  isIdle(nowMs: number, idleMs: number): boolean {
    const waits = this.isOwned && (this.dueAtMs !== Number.POSITIVE_INFINITY || (this.#foreign?.count ?? 0) > 0);
    return this.inFlight === 0 && !waits && this.#unreported === undefined && nowMs - this.#usedAtMs > idleMs;
  }

  #recover(sinceMs: number): void {
    this.#recovery = { untilMs: sinceMs + RECOVERY_MS, pace: undefined };
  }

  #isRecovering(nowMs: number): boolean {
    return this.#recovery !== undefined && nowMs < this.#recovery.untilMs;
  }

  #underWay(nowMs: number): number {
    const foreign = this.#foreign && nowMs < this.#foreign.untilMs ? this.#foreign.count : 0;
    return this.inFlight + foreign;
  }
}
