import type { Sql } from "postgres";
import type { Uuid } from "../core/ids.ts";
import { nextRedrive, stepRedrive } from "../store/redrives.ts";
import { pause } from "./pause.ts";

export type RedriverOptions = {
  readonly sql: Sql;
  readonly maxPendingMs: number;
  readonly payloadRetentionMs: number;
  readonly pollIntervalMs: number;
  /** A lane has something due, since this time of the database. */
  readonly onDue: (lane: number, sinceMs: number) => void;
  readonly onEvent: (event: RedriverEvent) => void;
};

export type RedriverEvent =
  | { readonly kind: "redrive_ended"; readonly redrive: Uuid; readonly lane: number }
  | { readonly kind: "redriven"; readonly count: number }
  | { readonly kind: "failed"; readonly step: "redrive"; readonly error: unknown };

/** Events that one step looks at: a transaction of some milliseconds. Fewer after a step that failed, which may take too long. */
const BATCH = 500;
const SMALLEST_BATCH = 10;
/** Rows of a job that are pending at once: what a live delivery of the same subscription may have to wait behind. */
const MAX_AHEAD = 500;
/** What everybody else gets of Postgres between two steps … */
const BREATH_MS = 10;
/** … and how long is waited when every job has to wait. */
const WAIT_MS = 100;

/**
 * Carries out bulk redrives until it is told to stop, one step at a time, each job in its turn. Each step is a transaction of
 * its own that any worker may make: nothing is held between them.
 */
export async function keepRedriving(options: RedriverOptions, signal: AbortSignal): Promise<void> {
  const { sql, pollIntervalMs, onDue, onEvent } = options;
  /** Jobs that have had to wait since the last step that got on. */
  const waiting = new Set<Uuid>();
  let batch = BATCH;
  while (!signal.aborted) {
    let pauseMs = BREATH_MS;
    try {
      const redrive = await nextRedrive(sql);
      const step = redrive && (await stepRedrive(sql, redrive, { ...options, batch, maxAhead: MAX_AHEAD }));
      batch = Math.min(BATCH, batch * 2);
      if (redrive === undefined) pauseMs = pollIntervalMs;
      else if (step === undefined || (step.redriven === undefined && !step.hasEnded)) {
        if (waiting.has(redrive)) pauseMs = WAIT_MS;
        waiting.add(redrive);
      } else {
        waiting.clear();
        if (step.redriven) {
          onEvent({ kind: "redriven", count: step.redriven });
          onDue(step.lane, step.atMs);
        }
        if (step.hasEnded) onEvent({ kind: "redrive_ended", redrive, lane: step.lane });
      }
    } catch (error) {
      onEvent({ kind: "failed", step: "redrive", error });
      batch = Math.max(SMALLEST_BATCH, Math.floor(batch / 2));
      pauseMs = pollIntervalMs;
    }
    await pause(pauseMs, signal);
  }
}
