import type { Sql } from "postgres";
import type { EndReason } from "../core/delivery.ts";
import { restAfter } from "../core/share-of-time.ts";
import {
  cancelDeliveriesOfDeletedSubscription,
  type Ended,
  endExpiredDeliveries,
  endHoldingDeliveries,
  endLostDeliveries,
} from "../store/outbox/end.ts";
import { noteOrder, type OrderNote, raiseOrderFloor } from "../store/outbox/order-floor.ts";
import { promoteStranded } from "../store/outbox/promote.ts";
import { countOutboxRows } from "../store/vacuum.ts";

export type SweeperOptions = {
  readonly sql: Sql;
  readonly nowMs: () => number;
  readonly orderHoldMs: number;
  /** With fewer dead rows in the outbox than this, no floor is raised. */
  readonly manyDead?: number;
  readonly onEnded: (reason: EndReason, ended: Ended) => void;
  readonly onStranded: (lanes: readonly number[]) => void;
};

const BATCH = 500;
/** How long after its time a delivery that something holds may still be pending, unless a pass over the outbox takes long. */
const LONGEST_PAUSE_MS = 30_000;
/** With fewer dead rows than this an append reads next to nothing of what has ended. */
const MANY_DEAD = 500_000;

/** Ends what no attempt ends: what is lost, late, in the way or orphaned. Any worker may; several may at once. */
export class Sweeper {
  readonly #options: SweeperOptions;
  #wholeAtMs = Number.NEGATIVE_INFINITY;
  #isSweeping = false;
  #floorAtMs = Number.NEGATIVE_INFINITY;
  #orderNote: OrderNote | undefined;

  constructor(options: SweeperOptions) {
    this.#options = options;
  }

  async cancelOrphans(lane: number): Promise<void> {
    const { sql, onEnded } = this.#options;
    onEnded("SUBSCRIPTION_DELETED", await cancelDeliveriesOfDeletedSubscription(sql, lane, BATCH));
  }

  /** What is found by an index of its own each time. */
  async sweepLost(): Promise<void> {
    const { sql, onEnded } = this.#options;
    onEnded("WORKER_LOST", await endLostDeliveries(sql, BATCH));
  }

  /** What takes passes over the whole outbox, once in a while. Does nothing while one is on its way. */
  async sweepWhole(): Promise<void> {
    const { nowMs, orderHoldMs } = this.#options;
    const beganAtMs = nowMs();
    if (this.#isSweeping || beganAtMs < this.#wholeAtMs) return;
    this.#isSweeping = true;
    let isDone = true;
    try {
      isDone = (await this.#passOver()) < BATCH;
    } finally {
      this.#isSweeping = false;
      const pauseMs = restAfter(nowMs() - beganAtMs);
      // Where more are waiting, the next call goes on.
      if (isDone) this.#wholeAtMs = nowMs() + Math.max(pauseMs, Math.min(LONGEST_PAUSE_MS, orderHoldMs / 4));
    }
  }

  /**
   * While Postgres may clear nothing away: notes how far the users' order has come, and at a later call, once all that was being
   * appended then is there, that an append need not look further back. Does nothing while one is on its way.
   */
  async raiseOrderFloor(): Promise<void> {
    const { nowMs } = this.#options;
    if (nowMs() < this.#floorAtMs) return;
    this.#floorAtMs = Number.POSITIVE_INFINITY;
    let pauseMs = LONGEST_PAUSE_MS;
    try {
      pauseMs = await this.#stepToFloor();
    } finally {
      this.#floorAtMs = nowMs() + pauseMs;
    }
  }

  /** How long to pause before the next step. */
  async #stepToFloor(): Promise<number> {
    const { sql, nowMs, manyDead = MANY_DEAD } = this.#options;
    if (this.#orderNote === undefined) {
      if ((await countOutboxRows(sql)).dead < manyDead) return LONGEST_PAUSE_MS;
      this.#orderNote = await noteOrder(sql);
      return 0;
    }
    const beganAtMs = nowMs();
    if (!(await raiseOrderFloor(sql, this.#orderNote))) return 0;
    this.#orderNote = undefined;
    return Math.max(restAfter(nowMs() - beganAtMs), LONGEST_PAUSE_MS);
  }

  /** The most that one of the passes has found. */
  async #passOver(): Promise<number> {
    const { sql, orderHoldMs, onEnded, onStranded } = this.#options;
    const stranded = await promoteStranded(sql, BATCH);
    onStranded(stranded);
    const holding = await endHoldingDeliveries(sql, orderHoldMs, BATCH);
    onEnded("ORDER_HOLD", holding);
    const expired = await endExpiredDeliveries(sql, BATCH);
    onEnded("EXPIRED", expired);
    return Math.max(stranded.length, holding.count, expired.count);
  }
}
