import type { Sql } from "postgres";

export const DUE_CHANNEL = "nuncio_due";

/** A payload is limited to 8,000 bytes … */
const LANES_PER_PAYLOAD = 500;
/** … and where more lanes than this have something due, any may. */
const MAX_NAMED_LANES = 5_000;
const ANY_LANE = "*";
const LONGEST_GATHERING_MS = 3;

/** What has come due, as far as it is known. */
export type Due = {
  /** Undefined: any. */
  readonly lanes: readonly number[] | undefined;
  /**
   * The least due time of what is announced, by the database's clock, in milliseconds since 1970: rows commit later than they
   * are due, and claims may have passed by meanwhile. Undefined: about now.
   */
  readonly sinceMs?: number | undefined;
};

/** As many payloads as it takes: each `7,8`, or with a time `1764173721345.678:7,8`. */
export function formatDuePayloads(lanes: ReadonlySet<number>, sinceMs?: number): string[] {
  if (lanes.size > MAX_NAMED_LANES) return [ANY_LANE];
  const time = sinceMs === undefined ? "" : `${sinceMs}:`;
  const named = [...lanes];
  const payloads: string[] = [];
  for (let i = 0; i < named.length; i += LANES_PER_PAYLOAD) {
    payloads.push(time + named.slice(i, i + LANES_PER_PAYLOAD).join(","));
  }
  return payloads;
}

/** A payload that we do not understand means any lane. */
export function parseDuePayload(payload: string): Due {
  const [, time, list = ""] = /^(?:(\d+(?:\.\d+)?):)?(\d+(?:,\d+)*)$/.exec(payload) ?? [];
  if (list === "") return { lanes: undefined };
  return { lanes: list.split(",").map(Number), sinceMs: time === undefined ? undefined : Number(time) };
}

export type WakeUp = {
  /** `sinceMs` as in `Due`: whoever moves rows says it, whoever changes a subscription need not. */
  announce(lanes: readonly number[], sinceMs?: number): void;
};

/**
 * Tells workers which lanes have something due, after the commit and never inside it: a transaction that notifies holds
 * a lock of the whole cluster across its flush (QUEUE.md, finding 6). The first announcement goes out at once, those
 * that follow within a few milliseconds together. A hint: one that fails is forgotten, since workers poll.
 */
export function createWakeUp(sql: Sql, onFailure: (error: unknown) => void): WakeUp {
  let gathered = new Set<number>();
  let gatheredSinceMs = Number.POSITIVE_INFINITY;
  let undated = new Set<number>();
  let busy = false;

  function takePayloads(): string[] {
    const payloads = [...formatDuePayloads(gathered, gatheredSinceMs), ...formatDuePayloads(undated)];
    [gathered, gatheredSinceMs, undated] = [new Set(), Number.POSITIVE_INFINITY, new Set()];
    return payloads;
  }

  async function drain(): Promise<void> {
    busy = true;
    for (let payloads = takePayloads(); payloads.length > 0; payloads = takePayloads()) {
      try {
        await sql`SELECT pg_notify(${DUE_CHANNEL}, p.payload) FROM unnest(${payloads}::text[]) AS p (payload)`;
      } catch (error) {
        onFailure(error);
      }
      await new Promise((resolve) => setTimeout(resolve, LONGEST_GATHERING_MS));
    }
    busy = false;
  }

  return {
    announce(lanes, sinceMs) {
      if (lanes.length === 0) return;
      for (const lane of lanes) (sinceMs === undefined ? undated : gathered).add(lane);
      if (sinceMs !== undefined) gatheredSinceMs = Math.min(gatheredSinceMs, sinceMs);
      if (!busy) void drain();
    },
  };
}
