import { setTimeout as delay } from "node:timers/promises";
import type { Sql } from "postgres";
import { type Bench, sharedNowMs } from "./bench.ts";
import { cpuMs } from "./cpu.ts";
import { type Filling, fillOutbox, startWorker } from "./nuncio.ts";
import type { BenchDatabase } from "./postgres.ts";

/** Requests after which a contestant counts as warm: its code is compiled and its sockets are open. */
export const WARM_UP_SHARE = 0.25;
const EMPTY_POLL_MS = 10;
/** Workers know of each other after a heartbeat or two. */
const JOINING_MS = 5_000;
/** So much log says that the first claims are written: from here on the CPU counts. */
const FIRST_CLAIMS_BYTES = 65_536;

export type DrainOptions = Pick<Filling, "subscriptions" | "ordering" | "spread"> & {
  /** Undefined: the default of the setting. */
  readonly maxInFlight?: number | undefined;
  readonly workers?: number;
  /** Whether the workers have joined before there is anything to do. Else their start is part of the warm-up. */
  readonly joined?: boolean;
};

/** What one emptying of a full outbox cost; the figures per delivery leave the warm-up out where that can be told. */
export type Drain = {
  readonly deliveriesPerSecond: number;
  readonly statements: number;
  readonly walKiB: number;
  readonly workerCpuUs: number;
  readonly postgresCpuUs: number;
};

/** Fills an outbox of its own and lets worker processes empty it. */
export async function drainOutbox(bench: Bench, options: DrainOptions): Promise<Drain> {
  const { postgres, receiver, size } = bench;
  const database = await postgres.createDatabase({ migrated: true });
  await fillOutbox(database, { ...options, deliveries: size.deliveries, url: receiver.url });
  const drain = await measureDrain(bench, database, options);
  await database.drop();
  return drain;
}

/**
 * Starts workers on an outbox that has `size.deliveries` rows to be delivered, and measures from the end of the warm-up to
 * the last record. `rows` says which rows those are, where there are others.
 */
export async function measureDrain(
  { postgres, receiver, size: { deliveries } }: Bench,
  database: BenchDatabase,
  {
    maxInFlight,
    workers: count = 1,
    joined = false,
    rows = "true",
  }: Pick<DrainOptions, "maxInFlight" | "workers" | "joined"> & { rows?: string },
): Promise<Drain> {
  const warmUp = Math.round(deliveries * WARM_UP_SHARE);
  await database.admin`VACUUM ANALYZE`;

  const { received } = await receiver.expect({ warmUp, total: deliveries, keepArrivals: false });
  if (joined) await database.admin`UPDATE nuncio.webhook_subscriptions SET state = 2, revision = revision + 1`;
  const before = await readCounters(database.admin);
  const start = () => startWorker(database, { maxInFlight, awaitReady: joined });
  const workers = await Promise.all(Array.from({ length: count }, start));
  if (joined) {
    await delay(JOINING_MS);
    await database.admin`UPDATE nuncio.webhook_subscriptions SET state = 1, revision = revision + 1`;
    await database.admin`SELECT pg_notify('nuncio_due', '*')`;
  }
  const workersMs = async () => sum(await Promise.all(workers.map(({ pid }) => cpuMs(pid))));
  let looks = await untilEmpty(
    database.admin,
    `(SELECT 1 WHERE pg_current_wal_lsn() < '${before.wal}'::pg_lsn + ${FIRST_CLAIMS_BYTES}) AS none`,
  );
  const atWarm = { workerMs: await workersMs(), postgresMs: await postgres.cpuMs() };
  const { warmAtMs } = await received;
  looks += await untilEmpty(database.admin, "nuncio.outbox", rows);
  const emptyAtMs = sharedNowMs();
  const atEnd = { workerMs: await workersMs(), postgresMs: await postgres.cpuMs() };
  const [{ wal } = { wal: "0/0" }] = await database.admin<{ wal: string }[]>`SELECT pg_current_wal_lsn() AS wal`;
  looks += 1;
  await Promise.all(workers.map((worker) => worker.stop()));
  const after = await readCounters(database.admin);
  const walBytes = await walBetween(database.admin, before.wal, wal);

  return {
    deliveriesPerSecond: ((deliveries - warmUp) / (emptyAtMs - warmAtMs)) * 1_000,
    statements: (after.commits - before.commits - looks) / deliveries,
    walKiB: walBytes / 1_024 / deliveries,
    workerCpuUs: ((atEnd.workerMs - atWarm.workerMs) * 1_000) / deliveries,
    postgresCpuUs: ((atEnd.postgresMs - atWarm.postgresMs) * 1_000) / deliveries,
  };
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
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
