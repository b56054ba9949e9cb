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
import { type Promoted, promoteStranded } from "../store/outbox/promote.ts";

export type SweeperOptions = {
  readonly sql: Sql;
  readonly nowMs: () => number;
  readonly orderHoldMs: number;
  readonly onEnded: (reason: EndReason, ended: Ended) => void;
  readonly onStranded: (promoted: Promoted) => void;
};

const BATCH = 500;
/** How long after its time a delivery that something holds may still be pending, unless a pass over the outbox takes long. */
const LONGEST_PAUSE_MS = 30_000;

/** Ends what no attempt ends: what is lost, late, in the way or orphaned. Any worker may; several may at once. */
export class Sweeper {
  readonly #options: SweeperOptions;
  #wholeAtMs = Number.NEGATIVE_INFINITY;
  #isSweeping = false;

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

  /** The most that one of the passes has found. */
  async #passOver(): Promise<number> {
    const { sql, orderHoldMs, onEnded, onStranded } = this.#options;
    const stranded = await promoteStranded(sql, BATCH);
    onStranded(stranded);
    const holding = await endHoldingDeliveries(sql, orderHoldMs, BATCH);
    onEnded("ORDER_HOLD", holding);
    const expired = await endExpiredDeliveries(sql, BATCH);
    onEnded("EXPIRED", expired);
    return Math.max(stranded.promoted.length, holding.count, expired.count);
  }
}
