import type { Sql } from "postgres";
import { isWorthVacuum, nextVacuumPauseMs, VACUUM_LOOK_MS } from "../core/vacuum-pace.ts";
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
 * comes second finds nothing to do.
 */
export async function keepVacuumed(
  { sql, maintenance, nowMs, onEvent }: VacuumerOptions,
  signal: AbortSignal,
): Promise<void> {
  let pauseMs = VACUUM_LOOK_MS;
  for (; !signal.aborted; await pause(pauseMs, signal)) {
    try {
      if (!(await mayVacuumOutbox(sql))) return;
      const before = await countOutboxRows(sql);
      if (!isWorthVacuum(before)) {
        pauseMs = VACUUM_LOOK_MS;
        continue;
      }
      const beganAtMs = nowMs();
      await vacuumOutbox(maintenance);
      const after = await countOutboxRows(sql);
      pauseMs = nextVacuumPauseMs(pauseMs, before, after);
      onEvent({ kind: "vacuumed", durationMs: nowMs() - beganAtMs, deadBefore: before.dead, deadAfter: after.dead });
    } catch (error) {
      if (!signal.aborted) onEvent({ kind: "failed", step: "vacuum", error });
    }
  }
}
