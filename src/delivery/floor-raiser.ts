import type { Sql } from "postgres";
import { restAfter } from "../core/share-of-time.ts";
import { noteOrder, type OrderNote, raiseOrderFloor } from "../store/outbox/order-floor.ts";
import { countOutboxRows } from "../store/vacuum.ts";

export type FloorRaiserOptions = {
  readonly sql: Sql;
  readonly nowMs: () => number;
  /** With fewer dead rows in the outbox than this an append reads next to nothing of what has ended. */
  readonly manyDead?: number;
};

const MANY_DEAD = 500_000;
const PAUSE_MS = 30_000;

/**
 * While Postgres may clear nothing away: notes how far the users' order has come, and at a later call, once all that was being
 * appended then is there, that an append need not look further back.
 */
export class FloorRaiser {
  readonly #options: FloorRaiserOptions;
  #nextAtMs = Number.NEGATIVE_INFINITY;
  #note: OrderNote | undefined;

  constructor(options: FloorRaiserOptions) {
    this.#options = options;
  }

  /** The next step, once it is time for it. Does nothing while one is on its way. */
  async step(): Promise<void> {
    const { nowMs } = this.#options;
    if (nowMs() < this.#nextAtMs) return;
    this.#nextAtMs = Number.POSITIVE_INFINITY;
    let pauseMs = PAUSE_MS;
    try {
      pauseMs = await this.#step();
    } finally {
      this.#nextAtMs = nowMs() + pauseMs;
    }
  }

  /** How long to pause before the next one. */
  async #step(): Promise<number> {
    const { sql, nowMs, manyDead = MANY_DEAD } = this.#options;
    if (this.#note === undefined) {
      if ((await countOutboxRows(sql)).dead < manyDead) return PAUSE_MS;
      this.#note = await noteOrder(sql);
      return 0;
    }
    const beganAtMs = nowMs();
    if (!(await raiseOrderFloor(sql, this.#note))) return 0;
    this.#note = undefined;
    return Math.max(restAfter(nowMs() - beganAtMs), PAUSE_MS);
  }
}
