import { randomBytes } from "node:crypto";
import type { Sql } from "postgres";
import type { BreakerState } from "../core/breaker.ts";
import { type EndReason, timeLimitWithin } from "../core/delivery.ts";
import { formatSubscriptionId, type Uuid } from "../core/ids.ts";
import { type ClaimedDelivery, claimDueDeliveries, claimQuarantinedDelivery } from "../store/outbox/claim.ts";
import { type Ended, endDeliveries } from "../store/outbox/end.ts";
import type { Promoted } from "../store/outbox/promote.ts";
import { releaseDeliveries } from "../store/outbox/release.ts";
import type { Due, WakeUp } from "../store/outbox/wake-up.ts";
import { type Attempted, type DeliverDependencies, databaseTimeMs, deliver, type Sendable } from "./deliver.ts";
import { FloorRaiser } from "./floor-raiser.ts";
import type { LaneOutcome } from "./lane.ts";
import { type LaneEvent, LaneKeeper } from "./lane-keeper.ts";
import { type Recorded, type RecordedBatch, Recorder } from "./recorder.ts";
import { Sweeper } from "./sweeper.ts";
import type { ReadyTarget, TargetCache } from "./targets.ts";

export type LoopDependencies = DeliverDependencies & {
  readonly requestTimeoutMs: number;
  readonly sql: Sql;
  /** This worker, new with each start. */
  readonly worker: Uuid;
  readonly targets: TargetCache;
  readonly concurrency: number;
  readonly maxInFlight: number;
  readonly leaseMs: number;
  readonly pollIntervalMs: number;
  readonly orderHoldMs: number;
  readonly wakeUp: WakeUp;
  readonly onEvent: (event: LoopEvent) => void;
};

/** What happens in the loop, for the log, the metrics and the tests. */
export type LoopEvent =
  | ({ readonly kind: "attempted" } & Recorded)
  | LaneEvent
  /** The outbox was looked through, or what has come due in it lately: how many lanes were seen. */
  | { readonly kind: "looked"; readonly lanes: number }
  | { readonly kind: "released"; readonly count: number }
  /** Rows were claimed whose lease had ended without a record. */
  | { readonly kind: "leases_lost"; readonly count: number }
  /** Followers that waited behind nothing were found, and are due now. There should be none: see `promoteStranded`. */
  | { readonly kind: "stranded"; readonly count: number }
  | {
      readonly kind: "ended";
      readonly reason: EndReason;
      readonly count: number;
    }
  | {
      readonly kind: "failed";
      readonly step: "claim" | "deliver" | "record" | "look" | "release" | "sweep";
      readonly error: unknown;
    };

export type DeliveryLoop = {
  /** Something may have come due. */
  wake(due: Due): void;
  /** Wake-ups may have been missed: looks through everything. */
  catchUp(): void;
  /** Stops claiming, hands back what has not begun, and resolves once what is in flight has ended and is recorded. */
  drain(): Promise<void>;
  /** What keeps work from moving, for readiness; empty when it moves, or when there is none. */
  findStalls(): string[];
  /** For the metrics. */
  state(): LoopState;
};

export type LoopState = {
  /** Requests on their way, of so many slots. */
  readonly inFlight: number;
  readonly slots: number;
  /** Attempts that are over and not written down yet. */
  readonly unrecorded: number;
  /** Breakers of the lanes that this worker owns. */
  readonly breakers: Readonly<Record<BreakerState, number>>;
};

/** With fewer free slots than this share, a claim waits a moment for more, so that one statement serves many. */
const WORTH_CLAIMING = 0.25;
const GATHER_SLOTS_MS = 4;
/** What seemed due and could not be picked is looked at again after this long. */
const NOTHING_TO_CLAIM_MS = 20;
/** A request that begins later than this after its claim could be based on a subscription that has changed since. */
const STALE_CLAIM_MS = 1_000;
const FAILURE_PAUSE_MS = 250;
const SHORTEST_JITTER = 0.75;
const LONGEST_JITTER = 1.25;
/** Readiness: work that stands still for longer than this is not on its way. */
const STALL_MS = 15_000;
/** Claims stop while this many records per slot wait for Postgres. */
const UNWRITTEN_PER_SLOT = 4;

/**
 * Claims due deliveries for the slots that are free, sends each, records what it met, until `drain`. One claim is on its
 * way at a time. Nothing that throws in here ends it: what fails is reported and tried again.
 */
export function startDeliveryLoop(deps: LoopDependencies): DeliveryLoop {
  return new Loop(deps);
}

class Loop implements DeliveryLoop {
  readonly #deps: LoopDependencies;
  readonly #keeper: LaneKeeper;
  readonly #sweeper: Sweeper;
  readonly #floorRaiser: FloorRaiser;
  readonly #recorder: Recorder;
  readonly #claiming: Promise<void>;
  readonly #looking: Promise<void>;
  #inFlight = 0;
  #quarantined = 0;
  readonly #draining = new AbortController();
  #healthy = false;
  /** When a look last succeeded, and since when claims that are to be made are not answered. */
  #lookedAtMs = Number.NEGATIVE_INFINITY;
  #claimingSinceMs: number | undefined;
  #lookAgain = false;
  #lastClaimAtMs = Number.NEGATIVE_INFINITY;
  /** Ends the wait of the claim loop, of the look loop, of the drain. */
  #nudgeClaim: () => void = () => undefined;
  #nudgeLook: () => void = () => undefined;
  #nudgeDrain: () => void = () => undefined;

  constructor(deps: LoopDependencies) {
    this.#deps = deps;
    const { sql, nowMs, orderHoldMs, onEvent } = deps;
    this.#keeper = new LaneKeeper({
      ...deps,
      onEvent: (event) => onEvent("lane" in event ? this.#withId(event) : event),
      onOpened: () => this.wake({ lanes: undefined }),
    });
    this.#sweeper = new Sweeper({
      sql,
      nowMs,
      orderHoldMs,
      onEnded: (reason, ended) => this.#ended(reason, ended),
      onStranded: (stranded) => {
        const count = stranded.promoted.length;
        if (count > 0) onEvent({ kind: "stranded", count });
        this.#tellPromoted(stranded);
      },
    });
    this.#floorRaiser = new FloorRaiser({ sql, nowMs });
    this.#recorder = new Recorder(
      deps.sql,
      nowMs,
      (batch) => this.#recorded(batch),
      (error) => deps.onEvent({ kind: "failed", step: "record", error }),
    );
    this.#claiming = this.#claimLoop();
    this.#looking = this.#lookLoop();
  }

  wake({ lanes, sinceMs }: Due): void {
    if (lanes === undefined) {
      this.#lookAgain = true;
      this.#keeper.lookSoon();
      this.#nudgeLook();
    } else this.#keeper.wake(lanes, sinceMs);
    this.#nudgeClaim();
  }

  catchUp(): void {
    this.#keeper.catchUp();
    this.wake({ lanes: undefined });
  }

  findStalls(): string[] {
    const now = this.#deps.nowMs();
    const stalls: string[] = [];
    if (this.#lookedAtMs === Number.NEGATIVE_INFINITY) stalls.push("the outbox has not been looked at yet");
    else if (!this.#healthy) stalls.push("the last look at the outbox failed");
    else if (now - this.#lookedAtMs > this.#deps.pollIntervalMs * LONGEST_JITTER + STALL_MS) {
      stalls.push(`the outbox was last looked at ${seconds(now - this.#lookedAtMs)} ago`);
    }
    if (this.#recorder.standsStillMs > STALL_MS) {
      stalls.push(
        `no attempt could be recorded for ${seconds(this.#recorder.standsStillMs)}, and ${this.#recorder.pending} wait`,
      );
    }
    const claimingMs = now - (this.#claimingSinceMs ?? Number.POSITIVE_INFINITY);
    if (claimingMs > STALL_MS) stalls.push(`deliveries are due, and no claim was answered for ${seconds(claimingMs)}`);
    if (this.#keeper.isSilent) stalls.push("no heartbeat gets through: others may take our subscriptions over");
    return stalls;
  }

  state(): LoopState {
    return {
      inFlight: this.#inFlight,
      slots: this.#deps.concurrency,
      unrecorded: this.#recorder.pending,
      breakers: this.#lanes.countBreakers(this.#deps.nowMs()),
    };
  }

  async drain(): Promise<void> {
    this.#draining.abort();
    this.#nudgeClaim();
    this.#nudgeLook();
    await Promise.all([this.#claiming, this.#looking]);
    const left = this.#keeper.leave();
    while (this.#inFlight > 0) {
      await new Promise<void>((resolve) => {
        this.#nudgeDrain = resolve;
      });
    }
    await this.#recorder.flush();
    await Promise.all([left, this.#keeper.report()]);
    // What came while a report was on its way.
    await this.#keeper.report();
  }

  get #lanes() {
    return this.#keeper.lanes;
  }

  get #isDraining(): boolean {
    return this.#draining.signal.aborted;
  }

  async #claimLoop(): Promise<void> {
    while (!this.#isDraining) {
      await this.#prepare();
      const picks = this.#mayClaim() ? this.#lanes.pick(this.#deps.nowMs(), this.#freeSlots()) : [];
      if (picks.length === 0) {
        await this.#untilClaimMakesSense(this.#mayClaim() ? NOTHING_TO_CLAIM_MS : 0);
        continue;
      }
      try {
        this.#lastClaimAtMs = this.#deps.nowMs();
        this.#claimingSinceMs ??= this.#lastClaimAtMs;
        const lease = { leaseMs: this.#deps.leaseMs, leaseToken: newLeaseToken() };
        const claimed = await claimDueDeliveries(this.#deps.sql, picks, lease);
        this.#claimingSinceMs = undefined;
        this.#lanes.claimed(picks, claimed, this.#deps.nowMs());
        this.#tellLost(claimed);
        await this.#begin(claimed, this.#lastClaimAtMs);
      } catch (error) {
        this.#deps.onEvent({ kind: "failed", step: "claim", error });
        await this.#wait(FAILURE_PAUSE_MS, (nudge) => {
          this.#nudgeClaim = nudge;
        });
      }
    }
  }

  #tellLost(claimed: readonly ClaimedDelivery[]): void {
    const count = claimed.filter(({ wasLost }) => wasLost).length;
    if (count > 0) this.#deps.onEvent({ kind: "leases_lost", count });
  }

  /** With the subscription's id, by which everybody outside knows the lane. */
  #withId<Event extends { readonly lane: number }>(event: Event): Event {
    const target = this.#deps.targets.get(event.lane);
    return target ? { ...event, subscriptionId: formatSubscriptionId(target.subscriptionUuid) } : event;
  }

  #freeSlots(): number {
    return this.#deps.concurrency - this.#inFlight;
  }

  #mayClaim(): boolean {
    if (this.#mustWriteFirst()) return false;
    const free = this.#freeSlots();
    const enough = free >= this.#deps.concurrency * WORTH_CLAIMING;
    return free > 0 && (enough || this.#deps.nowMs() - this.#lastClaimAtMs >= GATHER_SLOTS_MS);
  }

  #mustWriteFirst(): boolean {
    return this.#recorder.pending > this.#deps.concurrency * UNWRITTEN_PER_SLOT;
  }

  /** Again if more has to be found out meanwhile, but not for ever: whoever is known already shall not wait for all. */
  async #prepare(): Promise<void> {
    for (let round = 0; round < 3; round += 1) {
      const preparing = this.#keeper.prepare();
      if (preparing === undefined) return;
      await preparing;
    }
  }

  /** Until a lane comes due, a slot is worth filling, or someone nudges; `leastMs` unless someone does. */
  #untilClaimMakesSense(leastMs: number): Promise<void> {
    const now = this.#deps.nowMs();
    const gathered =
      this.#freeSlots() > 0 && !this.#mustWriteFirst()
        ? this.#lastClaimAtMs + GATHER_SLOTS_MS
        : Number.POSITIVE_INFINITY;
    const at = Math.max(this.#lanes.nextDueAtMs(now), gathered);
    return this.#wait(Math.max(leastMs, Math.min(at - now, this.#deps.pollIntervalMs)), (nudge) => {
      this.#nudgeClaim = nudge;
    });
  }

  /** Sends what may be sent on its lease; the rest goes back, its attempt not counted. */
  async #begin(
    claimed: readonly ClaimedDelivery[],
    claimSentAtMs: number,
    { isAlone = false, onEnd = () => undefined }: { isAlone?: boolean; onEnd?: () => void } = {},
  ): Promise<void> {
    const { targets, requestTimeoutMs, leaseMs } = this.#deps;
    this.#inFlight += claimed.length;
    const handBack: ClaimedDelivery[] = [];
    const expired: ClaimedDelivery[] = [];
    try {
      await targets.refresh(claimed);
    } catch (error) {
      this.#deps.onEvent({ kind: "failed", step: "claim", error });
    }
    const unsent = (list: ClaimedDelivery[], delivery: ClaimedDelivery) => {
      list.push(delivery);
      this.#freeSlot(delivery.subscriptionKey, { kind: "unsent" });
      onEnd();
    };
    for (const { subscriptionKey: lane, count } of countByLane(claimed)) {
      const target = targets.get(lane);
      if (target && this.#lanes.setLimits({ ...target, lane }, count, this.#deps.nowMs())) this.#keeper.hasStrangers();
    }
    for (const delivery of claimed) {
      const target = targets.get(delivery.subscriptionKey);
      const sendable = toSendable(delivery, claimSentAtMs);
      const ageMs = this.#deps.nowMs() - claimSentAtMs;
      const timeoutMs = ageMs > STALE_CLAIM_MS ? undefined : timeLimitWithin(leaseMs - ageMs, requestTimeoutMs);
      if (sendable === undefined) unsent(expired, delivery);
      else if (databaseTimeMs(this.#deps, sendable) >= delivery.expiresAtMs) unsent(expired, delivery);
      else if (this.#isDraining || timeoutMs === undefined) unsent(handBack, delivery);
      else if (target === undefined || target.revision < delivery.revision) unsent(handBack, delivery);
      // One that was claimed alone stands outside the shares: it is sent, or nothing would ever come of it.
      else if (!isAlone && this.#lanes.isOverLimit(delivery.subscriptionKey, this.#deps.nowMs()))
        unsent(handBack, delivery);
      else void this.#attempt(sendable, target, timeoutMs, onEnd);
    }
    if (handBack.length > 0) await this.#release(handBack);
    if (expired.length > 0) {
      this.#ended("EXPIRED", await endDeliveries(this.#deps.sql, expired, "EXPIRED"));
    }
  }

  async #attempt(delivery: Sendable, target: ReadyTarget, timeoutMs: number, onEnd: () => void): Promise<void> {
    let outcome: LaneOutcome = { kind: "unsent" };
    try {
      const attempted = await deliver(this.#deps, delivery, target, timeoutMs);
      outcome = toLaneOutcome(attempted, delivery);
      this.#recorder.add(attempted.record);
    } catch (error) {
      // A fault of ours, and nothing to record: its lease ends, and as a lost claim it runs out in the end.
      this.#deps.onEvent({ kind: "failed", step: "deliver", error });
    } finally {
      onEnd();
      this.#freeSlot(delivery.subscriptionKey, outcome);
    }
  }

  #freeSlot(lane: number, outcome: LaneOutcome): void {
    this.#inFlight -= 1;
    this.#keeper.finished(lane, outcome);
    this.#nudgeClaim();
    if (this.#inFlight === 0) this.#nudgeDrain();
  }

  async #release(deliveries: readonly ClaimedDelivery[]): Promise<void> {
    try {
      const count = await releaseDeliveries(this.#deps.sql, deliveries);
      this.#deps.onEvent({ kind: "released", count });
      // Due again at once; the pause keeps what cannot be sent right now from going back and forth.
      const again = this.#deps.nowMs() + FAILURE_PAUSE_MS;
      for (const { subscriptionKey } of deliveries) this.#lanes.rest(subscriptionKey, again);
      this.#nudgeClaim();
    } catch (error) {
      // Their leases end by themselves.
      this.#deps.onEvent({ kind: "failed", step: "release", error });
    }
  }

  #recorded({ recorded, promoted, atMs, superseded }: RecordedBatch): void {
    const now = this.#deps.nowMs();
    for (const entry of recorded) {
      const { decision, subscriptionKey } = entry.record;
      if (decision.kind === "retry") {
        const { delayMs } = decision;
        this.#lanes.appeared(subscriptionKey, { dueAtMs: now + delayMs, sinceMs: atMs + delayMs });
      }
      this.#deps.onEvent({ kind: "attempted", ...entry });
    }
    this.#ended("SUPERSEDED", { count: superseded.length, promoted, atMs });
    this.#nudgeClaim();
  }

  #ended(reason: EndReason, ended: Ended): void {
    if (ended.count > 0) this.#deps.onEvent({ kind: "ended", reason, count: ended.count });
    // What comes due there ends with the next batch.
    if (reason !== "SUBSCRIPTION_DELETED") this.#tellPromoted(ended);
  }

  /** Any worker ends and promotes what it comes upon; the lane's owner has to hear of it. */
  #tellPromoted({ promoted, atMs: sinceMs }: Promoted): void {
    this.wake({ lanes: promoted, sinceMs });
    // Whoever drains is leaving its lanes to others.
    const ofOthers = promoted.filter((lane) => this.#isDraining || !this.#lanes.owns(lane));
    this.#deps.wakeUp.announce(ofOthers, sinceMs);
  }

  /** The fallback for every wake-up that did not arrive, and the time for what needs no hurry. */
  async #lookLoop(): Promise<void> {
    while (!this.#isDraining) {
      this.#lookAgain = false;
      try {
        const lanes = await this.#look();
        this.#healthy = true;
        this.#lookedAtMs = this.#deps.nowMs();
        this.#deps.onEvent({ kind: "looked", lanes });
      } catch (error) {
        this.#healthy = false;
        this.#deps.onEvent({ kind: "failed", step: "look", error });
      }
      this.#nudgeClaim();
      if (this.#lookAgain && this.#healthy) continue;
      const jitter = SHORTEST_JITTER + this.#deps.random() * (LONGEST_JITTER - SHORTEST_JITTER);
      await this.#wait(this.#deps.pollIntervalMs * jitter, (nudge) => {
        this.#nudgeLook = nudge;
      });
    }
  }

  async #look(): Promise<number> {
    const { lanes, orphaned } = await this.#keeper.look(this.#draining.signal);
    this.#nudgeClaim();
    for (const lane of orphaned) await this.#sweeper.cancelOrphans(lane);
    await this.#sweeper.sweepLost();
    void this.#beside(() => this.#floorRaiser.step());
    void this.#beside(() => this.#sweeper.sweepWhole());
    await this.#quarantine();
    return lanes;
  }

  /** Beside the looks, which must not wait for it. */
  async #beside(pass: () => Promise<void>): Promise<void> {
    try {
      await pass();
    } catch (error) {
      if (!this.#isDraining) this.#deps.onEvent({ kind: "failed", step: "sweep", error });
    }
  }

  /** One delivery at a time of those that may be what kills workers. */
  async #quarantine(): Promise<void> {
    if (this.#quarantined > 0 || this.#isDraining || this.#freeSlots() <= 0) return;
    const sentAtMs = this.#deps.nowMs();
    const lease = { leaseMs: this.#deps.leaseMs, leaseToken: newLeaseToken() };
    const claimed = await claimQuarantinedDelivery(this.#deps.sql, lease);
    if (!claimed) return;
    this.#tellLost([claimed]);
    this.#quarantined += 1;
    this.#keeper.wake([claimed.subscriptionKey]);
    await this.#keeper.prepare();
    if (!this.#lanes.claimedAlone(claimed.subscriptionKey, this.#deps.nowMs())) {
      this.#quarantined -= 1;
      await this.#release([claimed]);
      return;
    }
    const onEnd = () => {
      this.#quarantined -= 1;
      this.#nudgeLook();
    };
    await this.#begin([claimed], sentAtMs, { isAlone: true, onEnd });
  }

  #wait(ms: number, expose: (nudge: () => void) => void): Promise<void> {
    if (this.#isDraining) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, Math.max(0, Math.ceil(ms)));
      expose(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}

function seconds(ms: number): string {
  return `${Math.round(ms / 1_000)} s`;
}

/** Random, so that no crash or failover can hand the same token out twice. */
function newLeaseToken(): bigint {
  return randomBytes(8).readBigInt64BE();
}

function toSendable(delivery: ClaimedDelivery, claimSentAtMs: number): Sendable | undefined {
  return delivery.event === null ? undefined : { ...delivery, event: delivery.event, claimSentAtMs };
}

function countByLane(claimed: readonly ClaimedDelivery[]): { subscriptionKey: number; count: number }[] {
  const counts = new Map<number, number>();
  for (const { subscriptionKey } of claimed) counts.set(subscriptionKey, (counts.get(subscriptionKey) ?? 0) + 1);
  return [...counts].map(([subscriptionKey, count]) => ({ subscriptionKey, count }));
}

function toLaneOutcome({ record, holdMs }: Attempted, { redrive }: ClaimedDelivery): LaneOutcome {
  const { eventKey, outcome } = record;
  if (outcome.kind === "delivered") return { kind: "succeeded" };
  // That the receiver wants nothing of the past says nothing of what is to come.
  const isGone = outcome.httpStatus === 410 && !redrive;
  return { kind: "failed", eventKey, detail: outcome.detail, holdMs, isGone };
}
