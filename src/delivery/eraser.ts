import type { Sql } from "postgres";
import type { Uuid } from "../core/ids.ts";
import { stepErasure } from "../store/erasures.ts";
import { pause } from "./pause.ts";

export type EraserOptions = {
  readonly sql: Sql;
  readonly pollIntervalMs: number;
  /** Lanes where something has come due. */
  readonly onDue: (lanes: readonly number[]) => void;
  readonly onEvent: (event: EraserEvent) => void;
};

export type EraserEvent =
  | { readonly kind: "erasure_ended"; readonly erasure: Uuid }
  | { readonly kind: "failed"; readonly step: "erase"; readonly error: unknown };

/** Events that one step empties, under the user's lock: a transaction of some milliseconds. */
const BATCH = 100;
/** How soon what is being sent is looked at again. */
const WAIT_MS = 1_000;
/** What everybody else gets of Postgres between two steps. */
const BREATH_MS = 10;

/** Carries out erasures until it is told to stop, one step at a time; nothing is held between them. */
export async function keepErasing(options: EraserOptions, signal: AbortSignal): Promise<void> {
  const { sql, pollIntervalMs, onDue, onEvent } = options;
  while (!signal.aborted) {
    let pauseMs = pollIntervalMs;
    try {
      const step = await stepErasure(sql, BATCH);
      if (step) {
        pauseMs = step.erased > 0 || step.hasEnded ? BREATH_MS : WAIT_MS;
        if (step.lanes.length > 0) onDue(step.lanes);
        if (step.hasEnded) onEvent({ kind: "erasure_ended", erasure: step.erasureUuid });
      }
    } catch (error) {
      onEvent({ kind: "failed", step: "erase", error });
    }
    await pause(pauseMs, signal);
  }
}
