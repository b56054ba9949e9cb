/** What work that reads a whole table may take of the time, so that it never crowds out what it serves. */
const LARGEST_SHARE = 0.01;

/** How long such work has to rest after it took so long, in milliseconds. */
export function restAfter(tookMs: number): number {
  return tookMs * (1 / LARGEST_SHARE - 1);
}
