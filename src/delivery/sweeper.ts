import type { Sql } from "postgres";
import type { EndReason } from "../core/delivery.ts";
import {
  cancelDeliveriesOfDeletedSubscription,
  type Ended,
  endExpiredDeliveries,
  endHoldingDeliveries,
  endLostDeliveries,
} from "../store/outbox/end.ts";
import { promoteStranded } from "../store/outbox/promote.ts";

export type SweeperOptions = {
  readonly sql: Sql;
  readonly nowMs: () => number;
  readonly orderHoldMs: number;
  readonly onEnded: (reason: EndReason, ended: Ended) => void;
  readonly onStranded: (lanes: readonly number[]) => void;
};

const BATCH = 500;
/** How long after its time a delivery that something holds may still be pending … */
const LONGEST_PAUSE_MS = 30_000;
/** … but where a pass over the outbox takes long, passes take no more than this part of the time. */
const LARGEST_SHARE = 0.05;

/** Ends what no attempt ends: what is lost, late, in the way or orphaned. Any worker may; several may at once. */
export class Sweeper {
  readonly #options: SweeperOptions;
  #wholeAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: SweeperOptions) {
    this.#options = options;
  }

  async cancelOrphans(lane: number): Promise<void> {
    const { sql, onEnded } = this.#options;
    onEnded("SUBSCRIPTION_DELETED", await cancelDeliveriesOfDeletedSubscription(sql, lane, BATCH));
  }

  /** What is found by an index each time, and what takes a pass over the whole outbox once in a while. */
  async sweep(): Promise<void> {
    const { sql, nowMs, orderHoldMs, onEnded, onStranded } = this.#options;
    onEnded("WORKER_LOST", await endLostDeliveries(sql, BATCH));

    const now = nowMs();
    if (now < this.#wholeAtMs) return;
    const stranded = await promoteStranded(sql, BATCH);
    onStranded(stranded);
    const holding = await endHoldingDeliveries(sql, orderHoldMs, BATCH);
    onEnded("ORDER_HOLD", holding);
    const expired = await endExpiredDeliveries(sql, BATCH);
    onEnded("EXPIRED", expired);
    // Where more are waiting, the next call goes on.
    if (Math.max(stranded.length, holding.count, expired.count) === BATCH) return;
    const pauseMs = (nowMs() - now) * (1 / LARGEST_SHARE - 1);
    this.#wholeAtMs = nowMs() + Math.max(pauseMs, Math.min(LONGEST_PAUSE_MS, orderHoldMs / 4));
  }
}
