import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { drizzle } from "drizzle-orm/postgres-js";
import { migrate } from "drizzle-orm/postgres-js/migrator";
import postgres, { type Sql } from "postgres";
import type { Secret } from "../core/secret.ts";
import { ARRAY_TYPES } from "./driver-options.ts";

const FOLDER = fileURLToPath(new URL("../../drizzle", import.meta.url));

/** One lock for all migrators of a database: `drizzle` itself does not keep two apart. */
const MIGRATION_LOCK = 7_100_000_000n;

/**
 * Brings the schema up to date, or waits for another process that does. All pending migrations are one transaction: a
 * crash leaves the schema as it was.
 */
export async function migrateDatabase(url: Secret): Promise<void> {
  const sql = postgres(url.reveal(), {
    max: 1,
    ...ARRAY_TYPES,
    onnotice: () => undefined,
    connection: { lock_timeout: 10_000 },
  });
  try {
    await requireUtf8(sql);
    await sql`SET lock_timeout = 0`;
    await sql`SELECT pg_advisory_lock(${MIGRATION_LOCK.toString()}::bigint)`;
    await sql`SET lock_timeout = '10s'`;
    await migrate(drizzle(sql), {
      migrationsFolder: FOLDER,
      migrationsSchema: "nuncio",
      migrationsTable: "schema_migrations",
    });
  } finally {
    await sql.end({ timeout: 5 });
  }
}

/** Bodies are stored as text and signed as UTF-8 bytes; in another encoding those would not be the same. */
async function requireUtf8(sql: Sql): Promise<void> {
  const [row] = await sql<{ encoding: string }[]>`SELECT current_setting('server_encoding') AS encoding`;
  if (row?.encoding !== "UTF8") {
    throw new Error(`the database has encoding ${row?.encoding}; create it with ENCODING 'UTF8'`);
  }
}

/** When this code's newest migration was made: what the database has to have as well. */
async function newestMigration(): Promise<number> {
  const journal: unknown = JSON.parse(await readFile(`${FOLDER}/meta/_journal.json`, "utf8"));
  const { entries } = journal as { entries: { when: number }[] };
  return Math.max(...entries.map((entry) => entry.when));
}

/** Undefined if the schema is as new as this code or newer, else what to do about it. */
export async function findSchemaFault(sql: Sql): Promise<string | undefined> {
  const [table] = await sql<{ exists: boolean }[]>`
    SELECT to_regclass('nuncio.schema_migrations') IS NOT NULL AS exists`;
  if (!table?.exists) return "the database has no Nuncio schema: run `npm run migrate`";
  const [row] = await sql<{ newest: string | null }[]>`SELECT max(created_at) AS newest FROM nuncio.schema_migrations`;
  if (Number(row?.newest ?? 0) < (await newestMigration())) {
    return "the database's schema is older than this program: run `npm run migrate`";
  }
  return undefined;
}
