/** How often to look whether a vacuum is worth its work. */
export const VACUUM_LOOK_MS = 5_000;
/** And how seldom, while vacuums achieve nothing. */
export const LONGEST_VACUUM_PAUSE_MS = 300_000;
/** Fewer dead rows than this cost nobody anything. */
const FEWEST_DEAD = 10_000;

/** Rows of a table, as its statistics tell. */
export type RowCounts = { readonly live: number; readonly dead: number };

/** A vacuum reads each index whole: it pays when what is dead is no small part of what it reads. */
export function isWorthVacuum({ live, dead }: RowCounts): boolean {
  return dead >= FEWEST_DEAD && dead >= live / 2;
}

/**
 * The pause before the next look. A vacuum after which most of the dead are still there had to leave them, since a
 * transaction that is still open might see them: the next one waits twice as long.
 */
export function nextVacuumPauseMs(pauseMs: number, before: RowCounts, after: RowCounts): number {
  const wasOfUse = after.dead < before.dead / 2;
  return wasOfUse ? VACUUM_LOOK_MS : Math.min(pauseMs * 2, LONGEST_VACUUM_PAUSE_MS);
}
