import type { BreakerState } from "../core/breaker.ts";
import { shareSlots, unprovenSlots } from "../core/fair-shares.ts";
import { ownerOf } from "../core/ownership.ts";
import type { LaneReport } from "../store/lane-states.ts";
import type { ClaimedDelivery, LaneQuota } from "../store/outbox/claim.ts";
import type { LaneSighting, LiveLeases } from "../store/outbox/lanes.ts";
import { Lane, type LaneOutcome, type Moment } from "./lane.ts";

export type LanePick = LaneQuota & { readonly wakes: number };

export type LanesOptions = {
  /** This worker, as the others know it. */
  readonly worker: string;
  /** Requests at once, in all and for one lane. */
  readonly slots: number;
  readonly maxInFlight: number;
  /** A lane that changed hands within this time may have requests of its owner before on their way. */
  readonly leaseMs: number;
};

type Tenant = { inFlight: number; readonly lanes: Map<number, Lane> };

/** A lane of which nothing was seen for this long, and in which nothing happens, is forgotten. */
const IDLE_MS = 60_000;

/**
 * All the lanes that this worker knows of, by tenant, and which of them are its own. Decides for which rows to claim next;
 * `core/fair-shares.ts` is how.
 */
export class Lanes {
  readonly #options: LanesOptions;
  readonly #lanes = new Map<number, Lane>();
  /** Those that were not picked for longest first; likewise the lanes in each. */
  readonly #tenants = new Map<number, Tenant>();
  readonly #strangers = new Set<number>();
  #workers: readonly string[] = [];
  #handedOverAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: LanesOptions) {
    this.#options = options;
  }

  /**
   * There may be something due at this time. Of a lane that is not known yet, or that was paused when it was last looked
   * at, something has to be found out first: returns whether that is so.
   */
  wake(key: number, dueAtMs: number): boolean {
    const lane = this.#lanes.get(key);
    if (lane?.isEnabled) lane.wake(dueAtMs);
    else this.#strangers.add(key);
    return !lane?.isEnabled;
  }

  /** The same, and claims go back to `sinceMs`: see `Due`. */
  appeared(key: number, { dueAtMs, sinceMs }: { dueAtMs: number; sinceMs: number | undefined }): boolean {
    this.#lanes.get(key)?.appeared(sinceMs);
    return this.wake(key, dueAtMs);
  }

  /** Lanes that were woken and of which something has to be found out: each is told once. */
  takeStrangers(): number[] {
    const strangers = [...this.#strangers];
    this.#strangers.clear();
    return strangers;
  }

  /** Something has to be found out of this lane. */
  addStranger(key: number): void {
    this.#strangers.add(key);
  }

  /** What the database says of a lane; `isPartial`: by a look that has not seen what was due long ago. */
  sight(sighting: LaneSighting, nowMs: number, { isPartial = false } = {}): void {
    const { maxInFlight } = this.#options;
    let lane = this.#lanes.get(sighting.lane);
    if (lane) lane.adopt(sighting, { nowMs, maxInFlight });
    else {
      lane = new Lane(sighting, { nowMs, maxInFlight });
      this.#lanes.set(lane.key, lane);
      this.#tenantOf(lane).lanes.set(lane.key, lane);
      this.#own(lane, nowMs);
    }
    if (!isPartial || !lane.isUnbounded) lane.found(sighting);
    else if (lane.isOwned) this.#strangers.add(lane.key);
    if (Number.isFinite(sighting.dueInMs)) lane.wake(nowMs + sighting.dueInMs);
  }

  /** The subscription of a lane was deleted. */
  retire(key: number): void {
    this.#lanes.get(key)?.retire();
  }

  /**
   * The limits that the revision of a claim brought, which has so many rows of the lane. Returns whether the rest of what is
   * known of the lane is older, and has to be found out: what is learned under an old revision counts for nothing.
   */
  setLimits(
    limits: Pick<LaneSighting, "lane" | "revision" | "maxInFlight" | "requestsPerSecond">,
    claimed: number,
    nowMs: number,
  ): boolean {
    const { maxInFlight } = this.#options;
    const lane = this.#lanes.get(limits.lane);
    lane?.setLimits(limits, { nowMs, maxInFlight, claimed });
    const isOld = lane?.isOlderThan(limits.revision) ?? false;
    if (isOld) this.#strangers.add(limits.lane);
    return isOld;
  }

  /** Whether the lane has more on its way than its limits allow now. */
  isOverLimit(key: number, nowMs: number): boolean {
    return this.#lanes.get(key)?.isOverLimit(nowMs) ?? false;
  }

  /** Who lives: from now on our lanes are those that fall to us among these. Returns whether that is news. */
  setWorkers(workers: readonly string[], nowMs: number): boolean {
    const isSame = workers.length === this.#workers.length && workers.every((worker) => this.#workers.includes(worker));
    if (isSame) return false;
    this.#workers = workers;
    this.#handedOverAtMs = nowMs;
    for (const lane of this.#lanes.values()) this.#own(lane, nowMs);
    return true;
  }

  #own(lane: Lane, nowMs: number): void {
    const mustCount = nowMs - this.#handedOverAtMs < this.#options.leaseMs;
    lane.own(ownerOf(lane.key, this.#workers) === this.#options.worker, { nowMs, mustCount });
  }

  owns(key: number): boolean {
    return this.#lanes.get(key)?.isOwned ?? false;
  }

  /** Lanes that have become ours, of which the last word of others and their live leases have to be known first. */
  uncounted(): number[] {
    return [...this.#lanes.values()].filter((lane) => lane.isUncounted).map(({ key }) => key);
  }

  counted(keys: readonly number[], leases: readonly LiveLeases[], nowMs: number): void {
    for (const key of keys) {
      const lane = this.#lanes.get(key);
      const found = leases.find((entry) => entry.lane === key);
      // Our own are among them.
      const foreign = Math.max(0, (found?.count ?? 0) - (lane?.inFlight ?? 0));
      lane?.counted(foreign, nowMs + (found?.lastForMs ?? 0));
    }
  }

  /**
   * Lanes whose leases of others, once counted, have ended since this was last asked. What had no record is due again, and its
   * time lies before all that was claimed since.
   */
  takeReturned(nowMs: number): number[] {
    return [...this.#lanes.values()].filter((lane) => lane.takeReturned(nowMs)).map(({ key }) => key);
  }

  /** Lanes that recover, and of which it is not known how many wait. */
  unpaced(): number[] {
    return [...this.#lanes.values()].filter((lane) => lane.isUnpaced).map(({ key }) => key);
  }

  pace(key: number, waiting: number, nowMs: number): void {
    this.#lanes.get(key)?.pace(waiting, nowMs);
  }

  /** Quotas for at most `free` rows of the lanes that may have something due and may send more. */
  pick(nowMs: number, free: number): LanePick[] {
    if (free <= 0) return [];
    const slots = { total: this.#options.slots, free, unproven: this.#unprovenInFlight(nowMs) };
    const shares = shareSlots<Lane>([...this.#tenants.values()], slots, {
      room: (lane) => lane.room(nowMs),
      hasMore: (lane) => lane.hasMore,
      isProven: (lane) => lane.isProven(nowMs),
    });
    return shares.map(({ lane, quota }) => {
      this.#moveToEnd(lane);
      return { lane: lane.key, quota, sinceMs: lane.reserve(quota, nowMs), wakes: lane.wakes };
    });
  }

  #unprovenInFlight(nowMs: number): number {
    let count = 0;
    for (const lane of this.#lanes.values()) if (lane.inFlight > 0 && !lane.isProven(nowMs)) count += lane.inFlight;
    return count;
  }

  #moveToEnd(lane: Lane): void {
    const tenant = this.#tenantOf(lane);
    tenant.lanes.delete(lane.key);
    tenant.lanes.set(lane.key, lane);
    this.#tenants.delete(lane.tenant);
    this.#tenants.set(lane.tenant, tenant);
  }

  /** What the claim of these picks brought: a lane that gave less than its quota has nothing more for now. */
  claimed(picks: readonly LanePick[], claimed: readonly ClaimedDelivery[], nowMs: number): void {
    const found = new Map<number, { count: number; dueAtMs: number }>();
    for (const { subscriptionKey, wasDueAtMs } of claimed) {
      const seen = found.get(subscriptionKey);
      found.set(subscriptionKey, {
        count: (seen?.count ?? 0) + 1,
        dueAtMs: Math.max(seen?.dueAtMs ?? 0, wasDueAtMs),
      });
    }
    for (const { lane: key, quota, wakes } of picks) {
      const lane = this.#lanes.get(key);
      if (!lane) continue;
      const of = found.get(key) ?? { count: 0, dueAtMs: 0 };
      lane.claimed(quota, of, { nowMs, wakes });
      this.#tenantOf(lane).inFlight += of.count;
    }
  }

  /** One row was claimed outside the shares. False if its lane is not known: then nothing may begin. */
  claimedAlone(key: number, nowMs: number): boolean {
    const lane = this.#lanes.get(key);
    if (!lane) return false;
    lane.claimedAlone(nowMs);
    this.#tenantOf(lane).inFlight += 1;
    return true;
  }

  /** What was claimed of the lane could not be sent, and is tried again then. */
  rest(key: number, untilMs: number): void {
    this.#lanes.get(key)?.rest(untilMs);
  }

  /** One request of the lane is over. Returns whether the other workers should hear of it at once. */
  finished(key: number, outcome: LaneOutcome, moment: Moment): boolean {
    const lane = this.#lanes.get(key);
    if (!lane) return false;
    this.#tenantOf(lane).inFlight -= 1;
    return lane.finished(outcome, moment);
  }

  hasSucceededWithin(key: number, ms: number, nowMs: number): boolean {
    return this.#lanes.get(key)?.hasSucceededWithin(ms, nowMs) ?? false;
  }

  /** What was learned since the last time. */
  takeReports(nowMs: number): LaneReport[] {
    return [...this.#lanes.values()].flatMap((lane) => lane.takeReport(nowMs) ?? []);
  }

  /** Reports that could not be written. */
  putBack(reports: readonly LaneReport[]): void {
    for (const { lane, event } of reports) this.#lanes.get(lane)?.report(event);
  }

  /** Forgets lanes with nothing to do, so that memory follows the work and not the history. */
  forgetIdle(nowMs: number): void {
    for (const lane of this.#lanes.values()) {
      if (!lane.isIdle(nowMs, IDLE_MS)) continue;
      this.#lanes.delete(lane.key);
      const tenant = this.#tenantOf(lane);
      tenant.lanes.delete(lane.key);
      if (tenant.lanes.size === 0) this.#tenants.delete(lane.tenant);
    }
  }

  /** How many of our lanes have their breaker in each state. */
  countBreakers(nowMs: number): Record<BreakerState, number> {
    const counts = { closed: 0, open: 0, half_open: 0 };
    for (const lane of this.#lanes.values()) if (lane.isOwned) counts[lane.breakerState(nowMs)] += 1;
    return counts;
  }

  /** When the next lane that may send comes due; infinite if none is known. */
  nextDueAtMs(nowMs: number): number {
    let next = Number.POSITIVE_INFINITY;
    const isFull = this.#unprovenInFlight(nowMs) >= unprovenSlots(this.#options.slots);
    for (const lane of this.#lanes.values()) {
      // One of those in flight has to end first, which is an event of its own.
      if (isFull && !lane.isProven(nowMs)) continue;
      if (lane.dueAtMs < next) next = Math.min(next, Math.max(lane.dueAtMs, lane.opensAtMs(nowMs)));
    }
    return next;
  }

  #tenantOf(lane: Lane): Tenant {
    let tenant = this.#tenants.get(lane.tenant);
    if (!tenant) {
      tenant = { inFlight: 0, lanes: new Map() };
      this.#tenants.set(lane.tenant, tenant);
    }
    return tenant;
  }
}
