import { randomBytes } from "node:crypto";
import postgres, { type Sql } from "postgres";
import { beforeAll, inject } from "vitest";
import { openSecretBox, parseKeyring, type SecretBox } from "../../src/core/encryption.ts";
import { Secret } from "../../src/core/secret.ts";
import { type Database, type DatabaseRole, openDatabase } from "../../src/store/database.ts";
import { cleanUp } from "./clean-up.ts";

/** A database of one test file, as its server, its worker and its superuser see it. */
export type TestDatabase = {
  readonly url: Secret;
  readonly server: Database;
  readonly worker: Database;
  /** For what no process of ours may do: to look everywhere, and to move times. */
  readonly admin: Sql;
  readonly box: SecretBox;
};

export const TEST_SECRET_KEYS = `k1:${Buffer.alloc(32, 7).toString("base64")}`;

/** Gives the file a migrated database of its own, and drops it when the file is done. */
export function useDatabase(): TestDatabase {
  const database: Partial<{ -readonly [K in keyof TestDatabase]: TestDatabase[K] }> = {
    box: openSecretBox(parseKeyring(TEST_SECRET_KEYS), randomBytes),
  };
  let drop: () => Promise<void> = async () => undefined;
  beforeAll(async () => {
    const created = await createDatabase();
    drop = created.drop;
    database.url = created.url;
    database.server = openTestDatabase(created.url, "nuncio_server");
    database.worker = openTestDatabase(created.url, "nuncio_worker");
    database.admin = postgres(created.url.reveal(), { max: 2, onnotice: () => undefined });
  });
  cleanUp(async () => {
    await Promise.all([database.server?.close(), database.worker?.close(), database.admin?.end()]);
    await drop();
  });
  return database as TestDatabase;
}

export function openTestDatabase(url: Secret, role: DatabaseRole): Database {
  return openDatabase({
    url,
    role,
    connections: 4,
    hotConnections: 3,
    statementTimeoutMs: 10_000,
  });
}

/** A copy of the template, or an empty database. */
export async function createDatabase({ migrated = true } = {}): Promise<{ url: Secret; drop: () => Promise<void> }> {
  const adminUrl = inject("adminUrl");
  const name = `nuncio_test_${randomBytes(6).toString("hex")}`;
  const admin = postgres(adminUrl, { max: 1, onnotice: () => undefined });
  const template = migrated ? inject("templateDatabase") : "template0";
  await admin.unsafe(`CREATE DATABASE ${name} TEMPLATE ${template}`);
  await admin.end();
  const url = new URL(adminUrl);
  url.pathname = `/${name}`;
  const drop = async () => {
    const again = postgres(adminUrl, { max: 1, onnotice: () => undefined });
    await again.unsafe(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
    await again.end();
  };
  return { url: new Secret(url.href), drop };
}
