import { sql as text } from "drizzle-orm";
import { drizzle } from "drizzle-orm/postgres-js";
import postgres from "postgres";
import { toArrayText } from "../../src/store/array-text.ts";
import { HOT_SETTINGS } from "../../src/store/database.ts";
import { claimDueDeliveries, type LaneQuota } from "../../src/store/outbox/claim.ts";
import { median, medianRatio, type Result, type Row } from "../bench.ts";
import { fillOutbox } from "../nuncio.ts";
import type { BenchDatabase } from "../postgres.ts";

const SIZES = [1, 100] as const;
const CALLS = 100;
const LEASE_MS = 25_000;

/** The claim through Drizzle's driver beside the same statement through postgres.js: what ADR 1 rests on. */
export const driver: Row = {
  name: "driver",
  async measure({ postgres: server, receiver, size, progress }) {
    const results: Result[] = [];
    for (const quota of SIZES) {
      const database = await server.createDatabase({ migrated: true });
      const deliveries = 2 * (size.rounds + 1) * CALLS * quota;
      await fillOutbox(database, { subscriptions: 1, ordering: "NONE", deliveries, url: receiver.url });
      await database.admin`VACUUM ANALYZE`;
      results.push(await compare(database, quota, size.rounds, progress));
      await database.drop();
    }
    return results;
  },
};

async function compare(
  database: BenchDatabase,
  quota: number,
  rounds: number,
  progress: (text: string) => void,
): Promise<Result> {
  const [row] = await database.admin<{ lane: number }[]>`
    SELECT subscription_key AS lane FROM nuncio.webhook_subscriptions`;
  const lanes: LaneQuota[] = [{ lane: row?.lane ?? 0, quota, sinceMs: Number.NEGATIVE_INFINITY }];
  const connect = () =>
    postgres(database.url, {
      max: 1,
      connection: { ...HOT_SETTINGS, synchronous_commit: "off" },
      onnotice: () => undefined,
    });
  const [hot, cold] = [connect(), connect()];
  const orm = drizzle(cold);
  const contestants = {
    tagged: async () => (await claimDueDeliveries(hot, lanes, { leaseMs: LEASE_MS, leaseToken: 1n })).length,
    drizzle: async () => (await orm.execute(toStatement(lanes))).length,
  };
  const ms = { tagged: [] as number[], drizzle: [] as number[] };
  for (let round = 0; round <= rounds; round++) {
    for (const name of ["tagged", "drizzle"] as const) {
      const beganAtMs = performance.now();
      for (let call = 0; call < CALLS; call++) {
        if ((await contestants[name]()) !== quota) throw new Error(`${name} did not claim ${quota}`);
      }
      // The first round prepares and compiles.
      if (round > 0) ms[name].push((performance.now() - beganAtMs) / CALLS);
    }
    if (round > 0)
      progress(`driver ${round}/${rounds}: ${quota} at once, ${describe(ms, (times) => times.at(-1) ?? 0)}`);
  }
  await Promise.all([hot.end(), cold.end()]);
  return {
    what: `time of a claim of ${quota} through Drizzle ÷ through postgres.js`,
    value: medianRatio(ms.drizzle, ms.tagged),
    unit: "ratio",
    figures: describe(ms, median),
  };
}

function describe(
  { drizzle, tagged }: { drizzle: readonly number[]; tagged: readonly number[] },
  of: (ms: readonly number[]) => number,
): string {
  return `${of(drizzle).toFixed(2)} ms ÷ ${of(tagged).toFixed(2)} ms`;
}

function toStatement(lanes: readonly LaneQuota[]) {
  return text`
    SELECT * FROM nuncio.claim_deliveries(
      ${toArrayText(lanes, ({ lane }) => lane)}::integer[],
      ${toArrayText(lanes, ({ quota }) => quota)}::integer[],
      ${toArrayText(lanes, ({ sinceMs }) => sinceMs)}::double precision[],
      false, ${LEASE_MS}::integer, ${"1"}::bigint)`;
}
