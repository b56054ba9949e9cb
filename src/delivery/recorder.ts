import type { Sql } from "postgres";
import { isTransient } from "../store/database.ts";
import { type AttemptRecord, type RecordResult, recordAttempts } from "../store/outbox/record.ts";

/** At most this many records in one statement. */
const MAX_BATCH = 256;
/** How long the first record of a batch waits for company. No receiver waits for it, and its slot is free already. */
const GATHER_MS = 10;
const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 2_000;

export type Recorded = { readonly record: AttemptRecord; readonly stale: boolean };

/** A batch that is written, and what it changed beside its own deliveries. */
export type RecordedBatch = Omit<RecordResult, "stale"> & { readonly recorded: readonly Recorded[] };

/**
 * Writes records in batches, one statement at a time: what comes while one is on its way goes with the next. While
 * Postgres is away the records wait here and are tried again; a lease that passes on meanwhile makes them stale, no more.
 */
export class Recorder {
  readonly #sql: Sql;
  readonly #onRecorded: (batch: RecordedBatch) => void;
  readonly #onFailure: (error: unknown, waiting: number) => void;
  #waiting: AttemptRecord[] = [];
  #writing = 0;
  #running: Promise<void> | undefined;
  #gatherNow: () => void = () => undefined;
  #closing = false;
  /** When the records that wait began to wait, or some were last written. */
  #movedAtMs = Number.POSITIVE_INFINITY;
  readonly #nowMs: () => number;

  constructor(
    sql: Sql,
    nowMs: () => number,
    onRecorded: (batch: RecordedBatch) => void,
    onFailure: (error: unknown, waiting: number) => void,
  ) {
    this.#sql = sql;
    this.#nowMs = nowMs;
    this.#onRecorded = onRecorded;
    this.#onFailure = onFailure;
  }

  /** How many are not written yet: a bound for the claims, which must not run ahead of the records. */
  get pending(): number {
    return this.#waiting.length + this.#writing;
  }

  /** Since when no record was written although some wait; 0 where none waits. In milliseconds. */
  get standsStillMs(): number {
    return this.pending === 0 ? 0 : this.#nowMs() - this.#movedAtMs;
  }

  add(record: AttemptRecord): void {
    if (this.pending === 0) this.#movedAtMs = this.#nowMs();
    this.#waiting.push(record);
    if (this.#waiting.length >= MAX_BATCH) this.#gatherNow();
    this.#running ??= this.#run();
  }

  /** Resolves when all that was added is written. */
  async flush(): Promise<void> {
    this.#closing = true;
    this.#gatherNow();
    while (this.#running) await this.#running;
  }

  async #run(): Promise<void> {
    while (this.#waiting.length > 0) {
      if (this.#waiting.length < MAX_BATCH && !this.#closing) await this.#gather();
      const batch = this.#waiting.splice(0, MAX_BATCH);
      this.#writing = batch.length;
      await this.#write(batch);
      this.#writing = 0;
    }
    this.#running = undefined;
  }

  #gather(): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, GATHER_MS);
      this.#gatherNow = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  async #write(batch: readonly AttemptRecord[]): Promise<void> {
    for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(pauseMs * 2, LONGEST_PAUSE_MS)) {
      try {
        const { stale, ...changes } = await recordAttempts(this.#sql, batch);
        this.#movedAtMs = this.#nowMs();
        this.#onRecorded({
          ...changes,
          recorded: batch.map((record, i) => ({ record, stale: stale[i] as boolean })),
        });
        return;
      } catch (error) {
        this.#onFailure(error, this.pending);
        if (!isTransient(error)) {
          await this.#writeApart(batch);
          return;
        }
        await new Promise((resolve) => setTimeout(resolve, pauseMs));
      }
    }
  }

  /**
   * What Postgres refuses it will refuse again. Halves, so that one record which cannot be written keeps no other from
   * being written; its own lease ends, its delivery is made again, and as a lost claim it runs out.
   */
  async #writeApart(batch: readonly AttemptRecord[]): Promise<void> {
    if (batch.length === 1) return;
    const half = Math.ceil(batch.length / 2);
    await this.#write(batch.slice(0, half));
    await this.#write(batch.slice(half));
  }
}
