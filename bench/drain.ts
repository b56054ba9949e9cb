import { setTimeout as delay } from "node:timers/promises";
import type { Sql } from "postgres";
import type { SubscriptionOrdering } from "../src/core/subscription.ts";
import { type Bench, sharedNowMs } from "./bench.ts";
import { cpuMs } from "./cpu.ts";
import { fillOutbox, startWorker } from "./nuncio.ts";

/** Requests after which a contestant counts as warm: its code is compiled and its sockets are open. */
export const WARM_UP_SHARE = 0.25;
const EMPTY_POLL_MS = 10;

export type DrainOptions = {
  readonly subscriptions: number;
  readonly ordering: SubscriptionOrdering;
  /** Undefined: the default of the setting. */
  readonly maxInFlight: number | undefined;
};

/** What one emptying of a full outbox cost; the figures per delivery leave the warm-up out where that can be told. */
export type Drain = {
  readonly deliveriesPerSecond: number;
  readonly statements: number;
  readonly walKiB: number;
  readonly workerCpuUs: number;
  readonly postgresCpuUs: number;
};

/** Fills an outbox, lets a worker process empty it, and measures from the end of the warm-up to the last record. */
export async function drainOutbox(
  bench: Bench,
  { subscriptions, ordering, maxInFlight }: DrainOptions,
): Promise<Drain> {
  const { postgres, receiver, size } = bench;
  const { deliveries } = size;
  const warmUp = Math.round(deliveries * WARM_UP_SHARE);
  const database = await postgres.createDatabase({ migrated: true });
  await fillOutbox(database, { subscriptions, ordering, deliveries, url: receiver.url });
  await database.admin`VACUUM ANALYZE`;

  const { received } = await receiver.expect({ warmUp, total: deliveries, keepArrivals: false });
  const before = await readCounters(database.admin);
  const worker = await startWorker(database, { maxInFlight, awaitReady: false });
  let looks = await untilEmpty(
    database.admin,
    "(SELECT 1 WHERE NOT EXISTS (SELECT FROM nuncio.delivery_attempts)) AS none",
  );
  const atWarm = { workerMs: await cpuMs(worker.pid), postgresMs: await postgres.cpuMs() };
  const { warmAtMs } = await received;
  looks += await untilEmpty(database.admin, "nuncio.outbox");
  const emptyAtMs = sharedNowMs();
  const atEnd = { workerMs: await cpuMs(worker.pid), postgresMs: await postgres.cpuMs() };
  const [{ wal } = { wal: "0/0" }] = await database.admin<{ wal: string }[]>`SELECT pg_current_wal_lsn() AS wal`;
  looks += 1;
  await worker.stop();
  const after = await readCounters(database.admin);
  const walBytes = await walBetween(database.admin, before.wal, wal);
  await database.drop();

  return {
    deliveriesPerSecond: ((deliveries - warmUp) / (emptyAtMs - warmAtMs)) * 1_000,
    statements: (after.commits - before.commits - looks) / deliveries,
    walKiB: walBytes / 1_024 / deliveries,
    workerCpuUs: ((atEnd.workerMs - atWarm.workerMs) * 1_000) / deliveries,
    postgresCpuUs: ((atEnd.postgresMs - atWarm.postgresMs) * 1_000) / deliveries,
  };
}

/** Resolves when the table has no row (that matches), with the number of looks that took. */
export async function untilEmpty(admin: Sql, table: string, condition = "true"): Promise<number> {
  for (let looks = 1; ; looks++) {
    const [row] = await admin.unsafe<{ is_full: boolean }[]>(
      `SELECT EXISTS (SELECT FROM ${table} WHERE ${condition}) AS is_full`,
    );
    if (!row?.is_full) return looks;
    await delay(EMPTY_POLL_MS);
  }
}

/** Every statement of the worker is a transaction of its own, so commits count statements. Our own looks go off. */
async function readCounters(admin: Sql): Promise<{ commits: number; wal: string }> {
  await admin`SELECT pg_stat_force_next_flush()`;
  const [row] = await admin<{ commits: string; wal: string }[]>`
    SELECT xact_commit AS commits, pg_current_wal_lsn() AS wal
    FROM pg_stat_database WHERE datname = current_database()`;
  return { commits: Number(row?.commits), wal: row?.wal ?? "0/0" };
}

async function walBetween(admin: Sql, from: string, to: string): Promise<number> {
  const [row] = await admin<{ bytes: string }[]>`SELECT pg_wal_lsn_diff(${to}, ${from}) AS bytes`;
  return Number(row?.bytes);
}
