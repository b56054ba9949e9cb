import type { Sql } from "postgres";
import type { Uuid } from "../core/ids.ts";
import type { DisableReason } from "../core/operational-event.ts";
import { restAfter } from "../core/share-of-time.ts";
import { isTransient } from "../store/database.ts";
import { disableSubscription, GONE_UNLESS_SUCCESS_MS, type LaneReport, reportLanes } from "../store/lane-states.ts";
import {
  countDue,
  countLeases,
  getLanes,
  type LaneSighting,
  listLanes,
  listLanesSince,
  scanLanes,
  scanTheseLanes,
} from "../store/outbox/lanes.ts";
import { beat, HEARTBEAT_LIFE_MS, HEARTBEAT_MS, leave } from "../store/workers.ts";
import type { LaneOutcome } from "./lane.ts";
import { Lanes } from "./lanes.ts";
import { pause } from "./pause.ts";

export type LaneKeeperOptions = {
  readonly sql: Sql;
  readonly nowMs: () => number;
  readonly random: () => number;
  /** The retry schedule, in milliseconds. */
  readonly schedule: readonly number[];
  readonly worker: Uuid;
  readonly concurrency: number;
  readonly maxInFlight: number;
  readonly leaseMs: number;
  readonly onEvent: (event: LaneEvent) => void;
  /** More may be claimed than a moment ago. */
  readonly onOpened: () => void;
};

export type LaneEvent =
  | { readonly kind: "lane_failing" | "lane_recovered"; readonly lane: number; readonly subscriptionId?: string }
  | {
      readonly kind: "lane_disabled";
      readonly lane: number;
      readonly subscriptionId?: string;
      readonly reason: DisableReason;
    }
  | { readonly kind: "workers"; readonly count: number }
  | { readonly kind: "failed"; readonly step: "heartbeat" | "lanes" | "report" | "disable"; readonly error: unknown };

const PAGE = 1_000;
/** A backlog longer than this is spread over the minute as if it were this long. */
const MOST_COUNTED = 100_000;
const PACED_AT_ONCE = 16;
const FAILURE_PAUSE_MS = 250;
/** How much later than its due time a row may commit and still be seen by a look that is not whole: what one statement may take. */
const SEEN_LATE_MS = 5_000;
/** There is a look at the whole outbox this often, whatever it takes; and one at what has come due lately. */
const LONGEST_WITHOUT_WHOLE_LOOK_MS = 60_000;
const LONGEST_WITHOUT_LOOK_MS = 5_000;
/** Where the index takes longer than this, it is full of what has ended, and the rows themselves are read for a while. */
const SLOW_INDEX_MS = 500;
const INDEX_AGAIN_MS = 300_000;

/**
 * Keeps what the worker knows of the lanes in step with the database: which workers live, what others wrote down about a
 * lane, what has to be counted before anything begins; and writes down what it learns itself.
 */
export class LaneKeeper {
  readonly lanes: Lanes;
  readonly #options: LaneKeeperOptions;
  readonly #stopping = new AbortController();
  readonly #beating: Promise<void>;
  #mustPrepare = true;
  #preparing: Promise<void> | undefined;
  #reporting: Promise<void> | undefined;
  #beatenAtMs = Number.NEGATIVE_INFINITY;
  #lookedAtMs = Number.NEGATIVE_INFINITY;
  /** When the next look has to be a whole one. */
  #wholeAtMs = Number.NEGATIVE_INFINITY;
  /** When there may be another look that is not. */
  #partialAtMs = Number.NEGATIVE_INFINITY;
  /** When a whole look may go by the index again. */
  #indexAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: LaneKeeperOptions) {
    this.#options = options;
    const { worker, concurrency, maxInFlight, leaseMs } = options;
    this.lanes = new Lanes({ worker, slots: concurrency, maxInFlight, leaseMs });
    this.#beating = this.#beatLoop();
  }

  /** Something may have come due in these lanes: `Due` says since when. */
  wake(keys: readonly number[], sinceMs?: number): void {
    const now = this.#options.nowMs();
    for (const key of keys) if (this.lanes.appeared(key, { dueAtMs: now, sinceMs })) this.#mustPrepare = true;
  }

  /** There are lanes of which something has to be found out. */
  hasStrangers(): void {
    this.#mustPrepare = true;
  }

  /** Finds out what has to be known before lanes are picked; at once if nothing is missing. */
  prepare(): Promise<void> | undefined {
    // A heartbeat that hangs: by now the others have taken our lanes over.
    if (this.isSilent) this.lanes.setWorkers([], this.#options.nowMs());
    if (!this.#mustPrepare && !this.#preparing) return undefined;
    this.#preparing ??= this.#prepare().finally(() => {
      this.#preparing = undefined;
    });
    return this.#preparing;
  }

  async #prepare(): Promise<void> {
    const { sql, nowMs } = this.#options;
    this.#mustPrepare = false;
    const strangers = [...this.lanes.takeStrangers(), ...this.lanes.takeReturned(nowMs())];
    try {
      await this.#meet(strangers);
      const uncounted = this.lanes.uncounted();
      await this.#meet(uncounted);
      if (uncounted.length > 0) this.lanes.counted(uncounted, await countLeases(sql, uncounted), nowMs());
      await this.#paceSome();
    } catch (error) {
      // Again after the next look at the outbox, which need not see them.
      for (const key of strangers) this.lanes.addStranger(key);
      this.#options.onEvent({ kind: "failed", step: "lanes", error });
    }
  }

  async #meet(keys: readonly number[]): Promise<void> {
    for (let i = 0; i < keys.length; i += PAGE) {
      for (const sighting of await this.#seeThese(keys.slice(i, i + PAGE))) {
        if (sighting.deleted) this.lanes.retire(sighting.lane);
        else this.lanes.sight(sighting, this.#options.nowMs());
      }
    }
  }

  /** By the index, which is read from the beginning of each lane; where that takes too long, by reading the table. */
  async #seeThese(keys: readonly number[]): Promise<LaneSighting[]> {
    const { sql, nowMs } = this.#options;
    const askedAtMs = nowMs();
    try {
      return await getLanes(sql, keys);
    } catch (error) {
      if (nowMs() - askedAtMs <= SLOW_INDEX_MS) throw error;
      return scanTheseLanes(sql, keys);
    }
  }

  /** A few lanes at a time: the others' claims wait for this. */
  async #paceSome(): Promise<void> {
    const unpaced = this.lanes.unpaced();
    if (unpaced.length === 0) return;
    const keys = unpaced.slice(0, PACED_AT_ONCE);
    const waiting = await countDue(this.#options.sql, keys, MOST_COUNTED);
    for (const key of keys) this.lanes.pace(key, waiting.get(key) ?? 0, this.#options.nowMs());
    this.#mustPrepare ||= unpaced.length > keys.length;
  }

  /**
   * Looks through the lanes with rows; returns how many it has seen, and which belong to a deleted subscription.
   *
   * As a rule each look is a whole one. Where that takes long, because there are thousands of lanes or because a transaction
   * elsewhere keeps Postgres from clearing away what has ended, the looks between see only what has come due since the one
   * before, and where those take long too there are fewer.
   */
  async look(signal: AbortSignal): Promise<{ lanes: number; orphaned: number[] }> {
    const { nowMs } = this.#options;
    const beganAtMs = nowMs();
    this.lanes.forgetIdle(beganAtMs);
    // Without a look that succeeded there is nothing since which to look.
    const isWhole = beganAtMs >= this.#wholeAtMs || this.#lookedAtMs === Number.NEGATIVE_INFINITY;
    void this.report();
    if (!isWhole && beganAtMs < this.#partialAtMs) return { lanes: 0, orphaned: [] };
    // What is asked for from here on is not over with this look.
    if (isWhole) this.#wholeAtMs = Number.POSITIVE_INFINITY;
    else this.#partialAtMs = Number.POSITIVE_INFINITY;
    const orphaned: number[] = [];
    let lanes = 0;
    let seen: LaneSighting[];
    let after = 0;
    try {
      do {
        seen = isWhole ? await this.#seeWhole(after) : await this.#seeSince(after);
        for (const sighting of seen) {
          if (sighting.deleted) {
            orphaned.push(sighting.lane);
            this.lanes.retire(sighting.lane);
          } else this.lanes.sight(sighting, nowMs(), { isPartial: !isWhole });
        }
        lanes += seen.length;
        after = seen.at(-1)?.lane ?? after;
      } while (seen.length === PAGE && !signal.aborted);
      this.#lookedAtMs = beganAtMs;
    } finally {
      const pauseMs = restAfter(nowMs() - beganAtMs);
      if (isWhole) {
        this.#wholeAtMs = Math.min(this.#wholeAtMs, nowMs() + Math.min(pauseMs, LONGEST_WITHOUT_WHOLE_LOOK_MS));
      } else this.#partialAtMs = Math.min(this.#partialAtMs, nowMs() + Math.min(pauseMs, LONGEST_WITHOUT_LOOK_MS));
      this.#mustPrepare = true;
    }
    return { lanes, orphaned };
  }

  #seeSince(after: number): Promise<LaneSighting[]> {
    const { sql, nowMs } = this.#options;
    return listLanesSince(sql, { after, limit: PAGE, overdueMs: nowMs() - this.#lookedAtMs + SEEN_LATE_MS });
  }

  /** By the index; while that is slow all at once by reading the table, and when that fails by the index again. */
  async #seeWhole(after: number): Promise<LaneSighting[]> {
    const { sql, nowMs } = this.#options;
    const askedAtMs = nowMs();
    if (askedAtMs >= this.#indexAtMs) {
      try {
        return await listLanes(sql, { after, limit: PAGE });
      } catch (error) {
        if (nowMs() - askedAtMs <= SLOW_INDEX_MS) throw error;
      } finally {
        if (nowMs() - askedAtMs > SLOW_INDEX_MS) this.#indexAtMs = nowMs() + INDEX_AGAIN_MS;
      }
    }
    try {
      return await scanLanes(sql, after);
    } catch (error) {
      this.#indexAtMs = Number.NEGATIVE_INFINITY;
      throw error;
    }
  }

  /** Whether others must think that this worker has gone: its heartbeats do not get through. */
  get isSilent(): boolean {
    return this.#options.nowMs() - this.#beatenAtMs > HEARTBEAT_LIFE_MS;
  }

  /** Something may have been missed, and nobody knows since when: the next look is a whole one. */
  catchUp(): void {
    this.#wholeAtMs = Number.NEGATIVE_INFINITY;
  }

  /** Something has come due somewhere: the next look does not rest. */
  lookSoon(): void {
    this.#partialAtMs = Number.NEGATIVE_INFINITY;
  }

  /** One request of the lane is over. */
  finished(lane: number, outcome: LaneOutcome): void {
    const { nowMs, random, schedule } = this.#options;
    const isUrgent = this.lanes.finished(lane, outcome, { nowMs: nowMs(), random: random(), schedule });
    if (isUrgent) {
      this.#mustPrepare = true;
      void this.report();
    }
    const isGone = outcome.kind === "failed" && outcome.isGone;
    if (isGone && !this.lanes.hasSucceededWithin(lane, GONE_UNLESS_SUCCESS_MS, nowMs())) {
      void this.#disable(lane, "gone");
    }
  }

  /** Writes down what was learned, one statement at a time. */
  report(): Promise<void> {
    this.#reporting ??= this.#report().finally(() => {
      this.#reporting = undefined;
    });
    return this.#reporting;
  }

  async #report(): Promise<void> {
    // Whatever else this turn of the event loop brings goes along.
    await new Promise((resolve) => setImmediate(resolve));
    const { sql, nowMs, onEvent } = this.#options;
    const reports = this.lanes.takeReports(nowMs());
    if (reports.length === 0) return;
    try {
      const failing = await reportLanes(sql, reports);
      for (const report of reports) this.#announce(report);
      for (const lane of failing) await this.#disable(lane, "failing");
    } catch (error) {
      // Hints: what Postgres refuses is dropped, so that it keeps nothing else from being told.
      if (isTransient(error)) this.lanes.putBack(reports);
      onEvent({ kind: "failed", step: "report", error });
    }
  }

  #announce({ lane, event }: LaneReport): void {
    if (event === "subscription.failing") this.#options.onEvent({ kind: "lane_failing", lane });
    if (event === "subscription.recovered") this.#options.onEvent({ kind: "lane_recovered", lane });
  }

  async #disable(lane: number, reason: DisableReason): Promise<void> {
    const { sql, onEvent } = this.#options;
    try {
      if (await disableSubscription(sql, lane, reason)) onEvent({ kind: "lane_disabled", lane, reason });
    } catch (error) {
      onEvent({ kind: "failed", step: "disable", error });
    }
  }

  async #beatLoop(): Promise<void> {
    const { sql, nowMs, worker, onEvent, onOpened } = this.#options;
    while (!this.#stopping.signal.aborted) {
      let pauseMs = HEARTBEAT_MS;
      try {
        const workers = await beat(sql, worker);
        this.#beatenAtMs = nowMs();
        if (this.lanes.setWorkers(workers, nowMs())) {
          onEvent({ kind: "workers", count: workers.length });
          this.#mustPrepare = true;
          this.catchUp();
          onOpened();
        }
      } catch (error) {
        onEvent({ kind: "failed", step: "heartbeat", error });
        pauseMs = FAILURE_PAUSE_MS;
      }
      await pause(pauseMs, this.#stopping.signal);
    }
  }

  /** Leaves the lanes to the others, who count what is still on its way here. */
  async leave(): Promise<void> {
    this.#stopping.abort();
    await this.#beating;
    try {
      await leave(this.#options.sql, this.#options.worker);
    } catch (error) {
      // Its heartbeat grows old by itself.
      this.#options.onEvent({ kind: "failed", step: "heartbeat", error });
    }
  }
}
