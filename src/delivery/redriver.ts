import type { Sql } from "postgres";
import type { Uuid } from "../core/ids.ts";
import { stepRedrive } from "../store/redrives.ts";
import { pause } from "./pause.ts";

export type RedriverOptions = {
  readonly sql: Sql;
  readonly maxPendingMs: number;
  readonly pollIntervalMs: number;
  /** A lane has something due. */
  readonly onDue: (lane: number) => void;
  readonly onEvent: (event: RedriverEvent) => void;
};

export type RedriverEvent =
  | { readonly kind: "redrive_ended"; readonly redrive: Uuid; readonly lane: number }
  | { readonly kind: "redriven"; readonly count: number }
  | { readonly kind: "failed"; readonly step: "redrive"; readonly error: unknown };

/** Events that one step looks at: a transaction of some milliseconds. */
const BATCH = 500;
/** Rows of a job that are pending at once: what a live delivery of the same subscription may have to wait behind. */
const MAX_AHEAD = 500;
/** How soon a job that has to wait is looked at again … */
const WAIT_MS = 100;
/** … and what everybody else gets of Postgres between two steps. */
const BREATH_MS = 10;

/**
 * Carries out bulk redrives until it is told to stop, one step at a time. Each step is a transaction of its own that any
 * worker may make: nothing is held between them.
 */
export async function keepRedriving(options: RedriverOptions, signal: AbortSignal): Promise<void> {
  const { sql, maxPendingMs, pollIntervalMs, onDue, onEvent } = options;
  while (!signal.aborted) {
    let pauseMs = pollIntervalMs;
    try {
      const step = await stepRedrive(sql, { batch: BATCH, maxAhead: MAX_AHEAD, maxPendingMs });
      if (step) {
        pauseMs = step.redriven === undefined ? WAIT_MS : BREATH_MS;
        if (step.redriven) {
          onEvent({ kind: "redriven", count: step.redriven });
          onDue(step.lane);
        }
        if (step.hasEnded) onEvent({ kind: "redrive_ended", redrive: step.redriveUuid, lane: step.lane });
      }
    } catch (error) {
      onEvent({ kind: "failed", step: "redrive", error });
    }
    await pause(pauseMs, signal);
  }
}
