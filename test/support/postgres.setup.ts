import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import postgres from "postgres";
import type { TestProject } from "vitest/node";
import { Secret } from "../../src/core/secret.ts";
import { startEmbeddedPostgres } from "../../src/embedded-postgres/embedded-postgres.ts";
import { migrateDatabase } from "../../src/store/migrations.ts";

declare module "vitest" {
  interface ProvidedContext {
    /** A superuser's URL of the Postgres that the tests run on. */
    adminUrl: string;
    /** A migrated database that `createDatabase` copies: faster than migrating once per file. */
    templateDatabase: string;
  }
}

/**
 * One Postgres for the whole run: the embedded one in a folder of its own, or the one of `NUNCIO_TEST_DATABASE_URL`
 * (its user needs CREATEDB and CREATEROLE, or be a superuser).
 */
export default async function setUpPostgres(project: TestProject): Promise<() => Promise<void>> {
  const given = process.env.NUNCIO_TEST_DATABASE_URL;
  const directory = given === undefined ? await mkdtemp(join(tmpdir(), "nuncio-test-")) : undefined;
  const embedded =
    directory === undefined ? undefined : await startEmbeddedPostgres({ directory, log: () => undefined });
  const adminUrl = given ?? (embedded as { url: string }).url;

  const templateDatabase = `nuncio_template_${process.pid}`;
  const admin = postgres(adminUrl, { max: 1, onnotice: () => undefined });
  await admin.unsafe(`DROP DATABASE IF EXISTS ${templateDatabase} WITH (FORCE)`);
  await admin.unsafe(`CREATE DATABASE ${templateDatabase} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'`);
  const url = new URL(adminUrl);
  url.pathname = `/${templateDatabase}`;
  await migrateDatabase(new Secret(url.href));

  project.provide("adminUrl", adminUrl);
  project.provide("templateDatabase", templateDatabase);
  return async () => {
    await admin.unsafe(`DROP DATABASE IF EXISTS ${templateDatabase} WITH (FORCE)`);
    await admin.end();
    await embedded?.stop();
    if (directory !== undefined) await rm(directory, { recursive: true, force: true });
  };
}
