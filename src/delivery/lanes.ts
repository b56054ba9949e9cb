import type { ClaimedDelivery, LaneQuota } from "../store/outbox/claim.ts";

/** Rows commit out of order: one whose due time lies this little behind what was claimed can still turn up. */
const LATE_COMMIT_MS = 60_000;
/** And this often a lane is looked at from the very beginning, for what turned up later still. */
const FULL_LOOK_EVERY_MS = 5_000;

type Lane = {
  readonly key: number;
  /** When there may be something to claim, by the monotonic clock. */
  dueAtMs: number;
  inFlight: number;
  /** Counts the wakes, so that one that comes while a claim is on its way is not forgotten when that finds nothing. */
  wakes: number;
  sinceMs: number;
  lookedFromStartAtMs: number;
};

export type LanePick = LaneQuota & { readonly wakes: number };

/**
 * What this worker knows of the lanes: which may have due rows, and how many of each it is sending. Knowledge, not
 * truth: the outbox decides, and a look at it every poll interval mends whatever is wrong here.
 */
export class Lanes {
  readonly #lanes = new Map<number, Lane>();
  readonly #maxInFlight: number;
  /** Where the next pick begins, so that the lanes take turns. */
  #turn = 0;

  constructor(maxInFlight: number) {
    this.#maxInFlight = maxInFlight;
  }

  /** There may be something due at this time. */
  wake(key: number, dueAtMs: number): void {
    const lane = this.#laneOf(key);
    lane.dueAtMs = Math.min(lane.dueAtMs, dueAtMs);
    lane.wakes += 1;
  }

  /** Something may be due anywhere. */
  wakeAll(nowMs: number): void {
    for (const key of this.#lanes.keys()) this.wake(key, nowMs);
  }

  /** Quotas for at most `free` rows, spread evenly over the lanes that may have something due and may send more. */
  pick(nowMs: number, free: number): LanePick[] {
    const ready = [...this.#lanes.values()].filter(
      (lane) => lane.dueAtMs <= nowMs && lane.inFlight < this.#maxInFlight,
    );
    if (ready.length === 0 || free <= 0) return [];
    const first = this.#turn % ready.length;
    const inTurn = [...ready.slice(first), ...ready.slice(0, first)].slice(0, free);
    this.#turn = first + inTurn.length;
    let left = free;
    return inTurn.map((lane, i) => {
      const quota = Math.min(this.#maxInFlight - lane.inFlight, Math.ceil(left / (inTurn.length - i)));
      left -= quota;
      const fromStart = nowMs - lane.lookedFromStartAtMs >= FULL_LOOK_EVERY_MS;
      if (fromStart) lane.lookedFromStartAtMs = nowMs;
      return { lane: lane.key, quota, sinceMs: fromStart ? Number.NEGATIVE_INFINITY : lane.sinceMs, wakes: lane.wakes };
    });
  }

  /** What the claim of these picks brought: a lane that gave less than its quota has nothing more for now. */
  claimed(picks: readonly LanePick[], claimed: readonly ClaimedDelivery[]): void {
    const latest = new Map<number, { count: number; dueAt: number }>();
    for (const { subscriptionKey, wasDueAtMs } of claimed) {
      const seen = latest.get(subscriptionKey);
      latest.set(subscriptionKey, {
        count: (seen?.count ?? 0) + 1,
        dueAt: Math.max(seen?.dueAt ?? 0, wasDueAtMs),
      });
      this.#laneOf(subscriptionKey).inFlight += 1;
    }
    for (const pick of picks) {
      const lane = this.#laneOf(pick.lane);
      const found = latest.get(pick.lane);
      if (found) lane.sinceMs = found.dueAt - LATE_COMMIT_MS;
      if ((found?.count ?? 0) < pick.quota && lane.wakes === pick.wakes) lane.dueAtMs = Number.POSITIVE_INFINITY;
    }
  }

  /** One request of the lane is over. */
  finished(key: number): void {
    this.#laneOf(key).inFlight -= 1;
  }

  /** Forgets lanes with nothing to do, so that memory follows the work and not the history. */
  forgetIdle(): void {
    for (const [key, lane] of this.#lanes) {
      if (lane.inFlight === 0 && lane.dueAtMs === Number.POSITIVE_INFINITY) this.#lanes.delete(key);
    }
  }

  /** When the next lane that may send comes due; infinite if none is known. */
  nextDueAtMs(): number {
    let next = Number.POSITIVE_INFINITY;
    for (const lane of this.#lanes.values()) {
      if (lane.inFlight < this.#maxInFlight) next = Math.min(next, lane.dueAtMs);
    }
    return next;
  }

  #laneOf(key: number): Lane {
    let lane = this.#lanes.get(key);
    if (!lane) {
      const never = Number.NEGATIVE_INFINITY;
      lane = {
        key,
        dueAtMs: Number.POSITIVE_INFINITY,
        inFlight: 0,
        wakes: 0,
        sinceMs: Number.NEGATIVE_INFINITY,
        lookedFromStartAtMs: never,
      };
      this.#lanes.set(key, lane);
    }
    return lane;
  }
}
