import type { Sql } from "postgres";
import { isWorthVacuum, LONGEST_VACUUM_PAUSE_MS, nextVacuumPauseMs, VACUUM_LOOK_MS } from "../core/vacuum-pace.ts";
import { countOutboxRows, mayVacuumOutbox, vacuumOutbox } from "../store/vacuum.ts";
import { pause } from "./pause.ts";

export type VacuumerOptions = {
  readonly sql: Sql;
  /** A client whose statements may take minutes. */
  readonly maintenance: Sql;
  readonly nowMs: () => number;
  readonly onEvent: (event: VacuumEvent) => void;
};

export type VacuumEvent =
  | {
      readonly kind: "vacuumed";
      readonly durationMs: number;
      /** Dead rows before and after. After a long transaction began elsewhere, nothing can be cleared away. */
      readonly deadBefore: number;
      readonly deadAfter: number;
    }
  | { readonly kind: "failed"; readonly step: "vacuum"; readonly error: unknown };

/**
 * Vacuums the outbox whenever it pays, until it is told to stop, where Postgres lets the worker. Every worker has one: who
 * comes while another is at it is sent away by Postgres.
 */
export async function keepVacuumed(options: VacuumerOptions, signal: AbortSignal): Promise<void> {
  const { sql, onEvent } = options;
  let pauseMs = VACUUM_LOOK_MS;
  for (; !signal.aborted; await pause(pauseMs, signal)) {
    try {
      if (!(await mayVacuumOutbox(sql))) return;
      const before = await countOutboxRows(sql);
      pauseMs = isWorthVacuum(before) ? await vacuumOnce(options, before, pauseMs, signal) : VACUUM_LOOK_MS;
    } catch (error) {
      if (!signal.aborted) onEvent({ kind: "failed", step: "vacuum", error });
      pauseMs = Math.min(pauseMs * 2, LONGEST_VACUUM_PAUSE_MS);
    }
  }
}

/** Returns the pause that follows. */
async function vacuumOnce(
  { sql, maintenance, nowMs, onEvent }: VacuumerOptions,
  before: Awaited<ReturnType<typeof countOutboxRows>>,
  pauseMs: number,
  signal: AbortSignal,
): Promise<number> {
  const beganAtMs = nowMs();
  await vacuumOutbox(maintenance, signal);
  const after = await countOutboxRows(sql);
  // Another one was at it.
  if (after.vacuums === before.vacuums) return pauseMs;
  onEvent({ kind: "vacuumed", durationMs: nowMs() - beganAtMs, deadBefore: before.dead, deadAfter: after.dead });
  return nextVacuumPauseMs(pauseMs, before, after);
}
