import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { is } from "drizzle-orm";
import { getTableConfig, PgTable } from "drizzle-orm/pg-core";
import { drizzle } from "drizzle-orm/postgres-js";
import { migrate } from "drizzle-orm/postgres-js/migrator";
import fc from "fast-check";
import postgres, { type Sql } from "postgres";
import { describe, expect, inject, it } from "vitest";
import { leastUuidAt, uuidV7EpochMs } from "../../src/core/ids.ts";
import { Secret } from "../../src/core/secret.ts";
import { ensurePartitions, findPartitionFault, PARTITION_DAYS_AHEAD } from "../../src/store/housekeeping.ts";
import { findSchemaFault, migrateDatabase } from "../../src/store/migrations.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import { recordAttempts } from "../../src/store/outbox/record.ts";
import * as schema from "../../src/store/schema.ts";
import { cleanUp } from "../support/clean-up.ts";
import { createDatabase, useDatabase } from "../support/database.ts";
import { draftEvent, newTenant, recordOf, toRow } from "../support/fixtures.ts";
import { spawnProcess } from "../support/processes.ts";

const db = useDatabase();
const DAY = 86_400_000;

function openAdmin(url: Secret): Sql {
  const sql = postgres(url.reveal(), { max: 2, onnotice: () => undefined });
  cleanUp(() => sql.end());
  return sql;
}

async function openEmptyDatabase() {
  const { url, drop } = await createDatabase({ migrated: false });
  cleanUp(drop);
  return { url, sql: openAdmin(url) };
}

/** `src/migrate.ts` as a process of its own: how it ended and what it wrote. */
function runMigrate(url: Secret | undefined): Promise<{ code: number | null; output: string }> {
  const node = new URL("../../node_modules/.bin/node", import.meta.url).pathname;
  const entrypoint = new URL("../../src/migrate.ts", import.meta.url).pathname;
  const { PATH = "" } = process.env;
  const env = { PATH, ...(url && { NUNCIO_DATABASE_URL: url.reveal() }) };
  return new Promise((resolve) => {
    const child = spawn(node, [entrypoint], { env, stdio: ["ignore", "pipe", "inherit"] });
    let output = "";
    child.stdout.on("data", (text) => {
      output += text;
    });
    child.once("close", (code) => resolve({ code, output }));
  });
}

/** Every object of the schema with its identity and its storage, and which migrations have run. */
async function describeSchema(sql: Sql) {
  const relations = await sql`
    SELECT oid::int8, relname, relkind, relfilenode::int8, relacl::text FROM pg_class
    WHERE relnamespace = 'nuncio'::regnamespace ORDER BY relname`;
  const functions = await sql`
    SELECT oid::int8, proname, prosrc, proacl::text FROM pg_proc WHERE pronamespace = 'nuncio'::regnamespace ORDER BY proname`;
  const migrations = await sql`SELECT * FROM nuncio.schema_migrations ORDER BY id`;
  return { relations: [...relations], functions: [...functions], migrations: [...migrations] };
}

/** What an older program's `npm run migrate` would have made. */
async function migrateUpTo(tag: string, sql: Sql): Promise<void> {
  const source = fileURLToPath(new URL("../../drizzle", import.meta.url));
  const folder = await mkdtemp(join(tmpdir(), "nuncio-migrations-"));
  cleanUp(() => rm(folder, { recursive: true }));
  const journal = JSON.parse(await readFile(join(source, "meta/_journal.json"), "utf8"));
  const last = journal.entries.findIndex((entry: { tag: string }) => entry.tag === tag);
  const entries = journal.entries.slice(0, last + 1);
  await mkdir(join(folder, "meta"));
  await writeFile(join(folder, "meta/_journal.json"), JSON.stringify({ ...journal, entries }));
  for (const entry of entries) await copyFile(join(source, `${entry.tag}.sql`), join(folder, `${entry.tag}.sql`));
  await migrate(drizzle(sql), {
    migrationsFolder: folder,
    migrationsSchema: "nuncio",
    migrationsTable: "schema_migrations",
  });
}

async function countMigrations(sql: Sql): Promise<number> {
  const [row] = await sql`SELECT count(*)::int AS count FROM nuncio.schema_migrations`;
  return row?.count;
}

describe("migrateDatabase", () => {
  it("[B48] makes the schema from an empty database, and changes nothing when it runs again", async () => {
    const { url, sql } = await openEmptyDatabase();
    await migrateDatabase(url);
    expect(await findSchemaFault(sql)).toBeUndefined();
    expect(await findPartitionFault(sql)).toBeUndefined();
    const before = await describeSchema(sql);
    await migrateDatabase(url);
    expect(await describeSchema(sql)).toEqual(before);
    expect(before.migrations).toHaveLength(await countMigrations(db.admin));
  });

  it("[B48] runs each migration once when several run it at once", async () => {
    const { url, sql } = await openEmptyDatabase();
    await Promise.all(Array.from({ length: 4 }, () => migrateDatabase(url)));
    expect(await countMigrations(sql)).toBe(await countMigrations(db.admin));
    expect(await findSchemaFault(sql)).toBeUndefined();
  });

  it("[B48] is safe in two processes at once, and both end with 0", async () => {
    const { url, sql } = await openEmptyDatabase();
    const ends = await Promise.all([runMigrate(url), runMigrate(url)]);
    for (const { code, output } of ends) {
      expect(output).toContain("database.migrated");
      expect(code).toBe(0);
    }
    expect(await countMigrations(sql)).toBe(await countMigrations(db.admin));
  });

  it("[B48] from the release before, with live rows and a lease of an old worker, which goes on", async () => {
    const { url, sql } = await openEmptyDatabase();
    await migrateUpTo("0008_lane_control", sql);
    expect(await findSchemaFault(sql)).toContain("older than this program");
    await ensurePartitions(sql);
    await sql`INSERT INTO nuncio.tenants (tenant_id) VALUES ('acme')`;
    const [made] = await sql`
      INSERT INTO nuncio.webhook_subscriptions (tenant_key, subscription_uuid, state, ordering, content_type, event_types, url,
        description, header_names)
      VALUES (1, gen_random_uuid(), 1, 1, 1, '{}', 'https://hooks.example.com/', '', '{}') RETURNING subscription_key AS lane`;
    const lane = made?.lane as number;
    const drafts = ["u_1", "u_2", "u_1", "u_2"].map((id) => draftEvent("acme", { user: { id, status: "ACTIVE" } }));
    await appendEvents(sql, drafts.map(toRow), { maxPendingMs: DAY });
    // What the old program sends, since neither statement has changed: only the first of each user is due.
    const claim = () =>
      claimDueDeliveries(sql, [{ lane, quota: 10, sinceMs: Number.NEGATIVE_INFINITY }], {
        leaseMs: 25_000,
        leaseToken: 7n,
      });
    const leased = await claim();
    expect(leased).toHaveLength(2);

    await migrateDatabase(url);
    expect(await findSchemaFault(sql)).toBeUndefined();
    const result = await recordAttempts(
      sql,
      leased.map((delivery) => recordOf(delivery)),
    );
    expect(result).toMatchObject({ stale: [false, false], promoted: [lane, lane] });
    // As a worker from before 0014 looks for lanes: by no index of its own any more, and right all the same.
    const [seen] = await sql`
      SELECT q.subscription_key, q.next_at <= now() AS is_due FROM nuncio.outbox q
      WHERE q.subscription_key > 0 AND q.next_at >= '-infinity' ORDER BY q.subscription_key, q.next_at LIMIT 1`;
    expect(seen).toEqual({ subscription_key: lane, is_due: true });
    const followers = await claim();
    expect(followers).toMatchObject([{ redrive: false }, { redrive: false }]);
    await recordAttempts(
      sql,
      followers.map((delivery) => recordOf(delivery)),
    );
    const [left] = await sql`SELECT count(*)::integer AS count FROM nuncio.outbox`;
    expect(left?.count).toBe(0);
  });

  it("leaves an empty database empty when a migration fails, and gives up its lock", async () => {
    const { url, sql } = await openEmptyDatabase();
    // In the way of the last things that the migrations make.
    await sql`CREATE SCHEMA nuncio`;
    await sql`CREATE FUNCTION nuncio.ensure_partitions(integer) RETURNS void LANGUAGE sql AS ''`;
    await expect(migrateDatabase(url)).rejects.toThrow();
    const left =
      await sql`SELECT relname FROM pg_class WHERE relnamespace = 'nuncio'::regnamespace AND relkind IN ('r', 'p')`;
    expect(left.map(({ relname }) => relname).filter((name) => name !== "schema_migrations")).toEqual([]);
    await sql`DROP FUNCTION nuncio.ensure_partitions(integer)`;
    await migrateDatabase(url);
    expect(await findSchemaFault(sql)).toBeUndefined();
  });

  it("refuses a database that is not UTF8, and says how to make one", async () => {
    const name = `nuncio_test_${randomBytes(6).toString("hex")}`;
    const admin = openAdmin(new Secret(inject("adminUrl")));
    await admin.unsafe(`CREATE DATABASE ${name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'`);
    cleanUp(() => admin.unsafe(`DROP DATABASE ${name} WITH (FORCE)`));
    const href = new URL(inject("adminUrl"));
    href.pathname = `/${name}`;
    const url = new Secret(href.href);
    await expect(migrateDatabase(url)).rejects.toThrow(
      "the database has encoding SQL_ASCII; create it with ENCODING 'UTF8'",
    );
    const { code, output } = await runMigrate(url);
    expect(code).toBe(1);
    expect(output).toContain("create it with ENCODING 'UTF8'");
    const [row] = await openAdmin(url)`SELECT to_regnamespace('nuncio') AS schema`;
    expect(row?.schema).toBeNull();
  });

  it("ends with 78 without a database to migrate", async () => {
    const { code, output } = await runMigrate(undefined);
    expect(code).toBe(78);
    expect(output).toContain("NUNCIO_DATABASE_URL is required");
  });
});

describe("findSchemaFault", () => {
  it("tells a database without schema from one that is older", async () => {
    const { url, sql } = await openEmptyDatabase();
    expect(await findSchemaFault(sql)).toMatch(/no Nuncio schema: run `npm run migrate`/);
    await migrateDatabase(url);
    expect(await findSchemaFault(sql)).toBeUndefined();
    await sql`DELETE FROM nuncio.schema_migrations WHERE created_at = (SELECT max(created_at) FROM nuncio.schema_migrations)`;
    expect(await findSchemaFault(sql)).toMatch(/schema is older than this program: run `npm run migrate`/);
    await sql`DELETE FROM nuncio.schema_migrations`;
    expect(await findSchemaFault(sql)).toMatch(/older/);
  });

  it("takes a schema that is newer than this program", async () => {
    const { url, sql } = await openEmptyDatabase();
    await migrateDatabase(url);
    await sql`INSERT INTO nuncio.schema_migrations (hash, created_at) VALUES ('of the next release', 32503680000000)`;
    expect(await findSchemaFault(sql)).toBeUndefined();
  });
});

describe("a process on a database that is not migrated", () => {
  it.each(["server", "worker"] as const)("[B48] (the %s) waits, and starts by itself once it is", async (name) => {
    const { url } = await openEmptyDatabase();
    const running = spawnProcess(name, url);
    const { waitingFor } = await running.line(({ msg }) => msg === "process.waiting");
    expect(waitingFor).toMatch(/no Nuncio schema/);
    expect(running.lines.map(({ msg }) => msg)).not.toContain(`${name}.started`);
    await migrateDatabase(url);
    await running.line(({ msg }) => msg === `${name}.started`);
    running.child.kill("SIGTERM");
    expect(await running.ended).toEqual({ code: 0, signal: null });
  });

  it("ends with 0 when it is told to stop while it waits", async () => {
    const { url } = await openEmptyDatabase();
    const server = spawnProcess("server", url);
    await server.line(({ msg }) => msg === "process.waiting");
    server.child.kill("SIGTERM");
    expect(await server.ended).toEqual({ code: 0, signal: null });
  });
});

describe("the tables", () => {
  const tables = Object.values(schema).flatMap((value) => (is(value, PgTable) ? [getTableConfig(value)] : []));

  it("are the ones of src/store/schema.ts and the list of migrations", async () => {
    const found = await db.admin`
      SELECT relname FROM pg_class
      WHERE relnamespace = 'nuncio'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY relname`;
    expect(found.map(({ relname }) => relname)).toEqual(
      [...tables.map(({ name }) => name), "schema_migrations"].sort(),
    );
  });

  it.each(tables)("have its columns, types and nullability: $name", async ({ name, columns, primaryKeys }) => {
    const found = await db.admin`
      SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
        a.atthasdef OR a.attidentity <> '' AS has_default
      FROM pg_attribute a WHERE a.attrelid = ${`nuncio.${name}`}::regclass AND a.attnum > 0 AND NOT a.attisdropped
      ORDER BY a.attnum`;
    expect([...found]).toEqual(
      columns.map((column) => ({
        name: column.name,
        type: column.getSQLType(),
        not_null: column.notNull,
        has_default: column.hasDefault || column.generatedIdentity !== undefined,
      })),
    );
    const [key] = await db.admin`
      SELECT array_agg(a.attname::text ORDER BY array_position(i.indkey::int2[], a.attnum)) AS columns
      FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
      WHERE i.indrelid = ${`nuncio.${name}`}::regclass AND i.indisprimary`;
    const declared = primaryKeys[0]?.columns ?? columns.filter(({ primary }) => primary);
    expect(key?.columns ?? []).toEqual(declared.map((column) => column.name));
  });
});

describe("partitions", () => {
  const PARENTS = ["events", "delivery_attempts"] as const;

  async function listPartitions(parent: string) {
    const rows = await db.admin`
      SELECT c.oid::int8, c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds FROM pg_inherits i
      JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = ${`nuncio.${parent}`}::regclass ORDER BY c.relname`;
    return [...rows] as unknown as { oid: string; name: string; bounds: string }[];
  }

  async function dropPartitions() {
    for (const parent of PARENTS)
      for (const { name } of await listPartitions(parent)) await db.admin.unsafe(`DROP TABLE nuncio.${name}`);
  }

  /** 00:00 UTC of today, by the database's clock. */
  async function startOfToday(): Promise<number> {
    const [row] = await db.admin`SELECT extract(epoch FROM date_trunc('day', now(), 'UTC'))::float8 AS seconds`;
    return (row?.seconds as number) * 1000;
  }

  const suffixOf = (ms: number) => new Date(ms).toISOString().slice(0, 10).replaceAll("-", "");

  async function expectedNames(parent: string) {
    const today = await startOfToday();
    return Array.from({ length: PARTITION_DAYS_AHEAD + 2 }, (_, i) => `${parent}_${suffixOf(today + (i - 1) * DAY)}`);
  }

  it.each(["UTC", "Pacific/Kiritimati", "America/Adak"])(
    "are made from yesterday to 14 days ahead in UTC, for a session in %s",
    async (zone) => {
      await dropPartitions();
      await db.admin.begin(async (tx) => {
        await tx`SELECT set_config('TimeZone', ${zone}, true)`;
        await tx`SELECT nuncio.ensure_partitions(${PARTITION_DAYS_AHEAD}::integer)`;
      });
      for (const parent of PARENTS) {
        const names = (await listPartitions(parent)).map(({ name }) => name);
        expect(names).toEqual(await expectedNames(parent));
      }
    },
  );

  it("are left as they are by a second call", async () => {
    await ensurePartitions(db.server.hot);
    const before = await Promise.all(PARENTS.map(listPartitions));
    await ensurePartitions(db.worker.hot);
    expect(await Promise.all(PARENTS.map(listPartitions))).toEqual(before);
  });

  it("are made once when the server and the worker make them at the same time", async () => {
    await dropPartitions();
    await Promise.all(Array.from({ length: 6 }, (_, i) => ensurePartitions((i % 2 ? db.server : db.worker).hot)));
    for (const parent of PARENTS)
      expect((await listPartitions(parent)).map(({ name }) => name)).toEqual(await expectedNames(parent));
  });

  it("[B49] are made beside one that went missing, without touching the others", async () => {
    await ensurePartitions(db.server.hot);
    const before = await listPartitions("events");
    await db.admin.unsafe(`DROP TABLE nuncio.${before[5]?.name}`);
    await ensurePartitions(db.server.hot);
    const after = await listPartitions("events");
    expect(after.map(({ name, bounds }) => [name, bounds])).toEqual(before.map(({ name, bounds }) => [name, bounds]));
    expect(after.filter((_, i) => i !== 5)).toEqual(before.filter((_, i) => i !== 5));
  });

  it("are not made further ahead than 60 days, nor for a past of more than a day", async () => {
    for (const days of [-1, 61]) {
      await expect(db.worker.hot`SELECT nuncio.ensure_partitions(${days}::integer)`).rejects.toThrow(
        "days_ahead must be 0–60",
      );
    }
  });

  it("take an event key of any millisecond of a day, the first and the last included", async () => {
    await ensurePartitions(db.server.hot);
    const today = await startOfToday();
    const day = fc.integer({ min: -1, max: PARTITION_DAYS_AHEAD });
    const withinDay = fc.oneof(fc.constantFrom(0, 1, DAY - 1), fc.nat(DAY - 1));
    const rest = fc.constantFrom("least", "greatest");
    const samples = fc.sample(fc.tuple(day, withinDay, rest), { numRuns: 300, seed: 48 });
    const keys = samples.map(([offset, ms, end]) => {
      const least = leastUuidAt(today + offset * DAY + ms);
      return end === "least" ? least : `${least.slice(0, 13)}-ffff-ffff-ffffffffffff`;
    });
    const placed = await db.admin`
      INSERT INTO nuncio.events (event_key, tenant_key, event_type, user_sequence, event_id, user_id, body)
      SELECT k::uuid, 1000000 + i, 1, 0, '', '', '' FROM unnest(${keys}::text[]) WITH ORDINALITY AS x (k, i)
      RETURNING event_key AS key, (SELECT relname FROM pg_class WHERE oid = events.tableoid) AS partition`;
    expect(placed).toHaveLength(300);
    for (const { key, partition } of placed) expect(partition).toBe(`events_${suffixOf(uuidV7EpochMs(key))}`);
    await db.admin`DELETE FROM nuncio.events WHERE tenant_key > 1000000`;
  });

  it("take the key that an append makes, on the day that the key names", async () => {
    await ensurePartitions(db.server.hot);
    const event = draftEvent(newTenant());
    await appendEvents(db.server.hot, [toRow(event)], { maxPendingMs: 7 * DAY });
    const [row] = await db.admin`
      SELECT event_key AS key, (SELECT relname FROM pg_class WHERE oid = events.tableoid) AS partition FROM nuncio.events WHERE event_id = ${event.id}`;
    expect(row?.partition).toBe(`events_${suffixOf(uuidV7EpochMs(row?.key))}`);
  });

  it("begin at the same UUID that src/core reckons for a millisecond", async () => {
    const times = [0, 1, 999, 1_795_391_999_999, 1_795_392_000_000, 4_102_444_800_001];
    const rows = await db.admin`
      SELECT nuncio.least_uuid_at(timestamptz 'epoch' + ms * interval '1 ms')::text AS least
      FROM unnest(${times}::float8[]) WITH ORDINALITY AS x (ms, i) ORDER BY i`;
    expect(rows.map(({ least }) => least)).toEqual(times.map(leastUuidAt));
  });

  it.each(PARENTS)("are reported when tomorrow's is missing: %s", async (parent) => {
    await ensurePartitions(db.server.hot);
    expect(await findPartitionFault(db.worker.hot)).toBeUndefined();
    const tomorrow = suffixOf((await startOfToday()) + DAY);
    await db.admin.unsafe(`DROP TABLE nuncio.${parent}_${tomorrow}`);
    expect(await findPartitionFault(db.worker.hot)).toMatch(/^tomorrow's partitions are missing/);
    await ensurePartitions(db.worker.hot);
    expect(await findPartitionFault(db.server.hot)).toBeUndefined();
  });
});
