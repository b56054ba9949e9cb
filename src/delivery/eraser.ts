import type { Sql } from "postgres";
import type { Uuid } from "../core/ids.ts";
import { nextErasure, stepErasure } from "../store/erasures.ts";
import { pause } from "./pause.ts";

export type EraserOptions = {
  readonly sql: Sql;
  readonly pollIntervalMs: number;
  /** Lanes where something has come due, since this time of the database. */
  readonly onDue: (lanes: readonly number[], sinceMs: number) => void;
  readonly onEvent: (event: EraserEvent) => void;
};

export type EraserEvent =
  | { readonly kind: "erasure_ended"; readonly erasure: Uuid }
  | { readonly kind: "failed"; readonly step: "erase"; readonly error: unknown };

/** Events that one step empties, under the user's lock: a transaction of some milliseconds. Fewer after a step that failed. */
const BATCH = 100;
const SMALLEST_BATCH = 5;
/** What everybody else gets of Postgres between two steps … */
const BREATH_MS = 10;
/** … and how soon what is being sent is looked at again. */
const WAIT_MS = 500;

/** Carries out erasures until it is told to stop, one step at a time, each in its turn; nothing is held between them. */
export async function keepErasing(options: EraserOptions, signal: AbortSignal): Promise<void> {
  const { sql, pollIntervalMs, onDue, onEvent } = options;
  let batch = BATCH;
  while (!signal.aborted) {
    let pauseMs = BREATH_MS;
    try {
      const erasure = await nextErasure(sql);
      const step = erasure && (await stepErasure(sql, erasure, batch));
      batch = Math.min(BATCH, batch * 2);
      if (erasure === undefined) pauseMs = pollIntervalMs;
      else if (step === undefined || step.hasToWait) pauseMs = WAIT_MS;
      if (step && step.lanes.length > 0) onDue(step.lanes, step.atMs);
      if (erasure && step?.hasEnded) onEvent({ kind: "erasure_ended", erasure });
    } catch (error) {
      onEvent({ kind: "failed", step: "erase", error });
      batch = Math.max(SMALLEST_BATCH, Math.floor(batch / 2));
      pauseMs = pollIntervalMs;
    }
    await pause(pauseMs, signal);
  }
}
