import type { Sql } from "postgres";

export const DUE_CHANNEL = "nuncio_due";

/** More lanes than this are announced as "any": a payload is limited to 8,000 bytes. */
const MAX_NAMED_LANES = 500;
const ANY_LANE = "*";
const LONGEST_GATHERING_MS = 3;

export function formatDuePayload(lanes: ReadonlySet<number>): string {
  return lanes.size > MAX_NAMED_LANES ? ANY_LANE : [...lanes].join(",");
}

/** The lanes that a payload names; undefined for any lane, which a payload that we do not understand means as well. */
export function parseDuePayload(payload: string): number[] | undefined {
  const lanes = payload.split(",").map(Number);
  return payload !== "" && lanes.every(Number.isInteger) ? lanes : undefined;
}

export type WakeUp = { announce(lanes: readonly number[]): void };

/**
 * Tells workers which lanes have something due, after the commit and never inside it: a transaction that notifies holds
 * a lock of the whole cluster across its flush (QUEUE.md, finding 6). The first announcement goes out at once, those
 * that follow within a few milliseconds together. A hint: one that fails is forgotten, since workers poll.
 */
export function createWakeUp(sql: Sql, onFailure: (error: unknown) => void): WakeUp {
  let gathered = new Set<number>();
  let busy = false;

  async function drain(): Promise<void> {
    busy = true;
    while (gathered.size > 0) {
      const payload = formatDuePayload(gathered);
      gathered = new Set();
      try {
        await sql`SELECT pg_notify(${DUE_CHANNEL}, ${payload})`;
      } catch (error) {
        onFailure(error);
      }
      await new Promise((resolve) => setTimeout(resolve, LONGEST_GATHERING_MS));
    }
    busy = false;
  }

  return {
    announce(lanes) {
      for (const lane of lanes) gathered.add(lane);
      if (!busy && gathered.size > 0) void drain();
    },
  };
}
