import type { ClaimedDelivery, LaneQuota } from "../store/outbox/claim.ts";

/** Rows commit out of order: one whose due time lies this little behind what was claimed can still turn up. */
const LATE_COMMIT_MS = 60_000;
/** And this often a lane is looked at from the very beginning, for what turned up later still. */
const FULL_LOOK_EVERY_MS = 5_000;
/**
 * A lane that has more than it was asked for gives at least this many the next time: its lock, its look-up and its descent
 * into the index then serve several rows. Measured with 100 lanes: 40 µs of Postgres' CPU per delivery where one or two
 * rows a time took 59, and a fifth more deliveries.
 */
const HANDFUL = 8;

type Lane = {
  readonly key: number;
  /** When there may be something to claim, by the monotonic clock. */
  dueAtMs: number;
  inFlight: number;
  /** Whether the last claim brought all that it might. */
  hasMore: boolean;
  /** The number of the last pick that it was in; 0 for none. */
  lastPick: number;
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
  #picks = 0;

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

  /**
   * Quotas for at most `free` rows of the lanes that may have something due and may send more: spread evenly, but a
   * handful at least for a lane with more to give. Who was not picked for longest comes first, so that lanes take turns
   * and one that was quiet waits behind nobody's backlog.
   */
  pick(nowMs: number, free: number): LanePick[] {
    const ready = [...this.#lanes.values()]
      .filter((lane) => lane.dueAtMs <= nowMs && lane.inFlight < this.#maxInFlight)
      .sort((a, b) => a.lastPick - b.lastPick)
      .slice(0, Math.max(0, free));
    const picks: LanePick[] = [];
    this.#picks += 1;
    let left = free;
    for (const [i, lane] of ready.entries()) {
      if (left === 0) break;
      const share = Math.max(lane.hasMore ? HANDFUL : 1, Math.ceil(left / (ready.length - i)));
      const quota = Math.min(this.#maxInFlight - lane.inFlight, left, share);
      left -= quota;
      picks.push({ lane: lane.key, quota, sinceMs: this.#beginOfLook(lane, nowMs), wakes: lane.wakes });
      lane.lastPick = this.#picks;
      // To the end of the map: it stays all but sorted, which is what the sort above is quick at.
      this.#lanes.delete(lane.key);
      this.#lanes.set(lane.key, lane);
    }
    return picks;
  }

  #beginOfLook(lane: Lane, nowMs: number): number {
    if (nowMs - lane.lookedFromStartAtMs < FULL_LOOK_EVERY_MS) return lane.sinceMs;
    lane.lookedFromStartAtMs = nowMs;
    return Number.NEGATIVE_INFINITY;
  }

  /** What the claim of these picks brought: a lane that gave less than its quota has nothing more for now. */
  claimed(picks: readonly LanePick[], claimed: readonly ClaimedDelivery[]): void {
    const latest = new Map<number, { count: number; dueAtMs: number }>();
    for (const { subscriptionKey, wasDueAtMs } of claimed) {
      const seen = latest.get(subscriptionKey);
      latest.set(subscriptionKey, {
        count: (seen?.count ?? 0) + 1,
        dueAtMs: Math.max(seen?.dueAtMs ?? 0, wasDueAtMs),
      });
      this.#laneOf(subscriptionKey).inFlight += 1;
    }
    for (const pick of picks) {
      const lane = this.#laneOf(pick.lane);
      const found = latest.get(pick.lane);
      lane.hasMore = (found?.count ?? 0) >= pick.quota;
      if (found) lane.sinceMs = found.dueAtMs - LATE_COMMIT_MS;
      if (!lane.hasMore && lane.wakes === pick.wakes) lane.dueAtMs = Number.POSITIVE_INFINITY;
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
      lane = {
        key,
        dueAtMs: Number.POSITIVE_INFINITY,
        inFlight: 0,
        hasMore: false,
        lastPick: 0,
        wakes: 0,
        sinceMs: Number.NEGATIVE_INFINITY,
        lookedFromStartAtMs: Number.NEGATIVE_INFINITY,
      };
      this.#lanes.set(key, lane);
    }
    return lane;
  }
}
