import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import postgres, { type Sql } from "postgres";
import { Secret } from "../src/core/secret.ts";
import { startEmbeddedPostgres } from "../src/embedded-postgres/embedded-postgres.ts";
import { migrateDatabase } from "../src/store/migrations.ts";
import { cpuMsOfChildren } from "./cpu.ts";

export type BenchDatabase = {
  readonly url: string;
  readonly admin: Sql;
  drop(): Promise<void>;
};

export type BenchPostgres = {
  readonly version: string;
  /** A database of its own for each measurement, so that none meets what another left behind. */
  createDatabase(options: { migrated: boolean }): Promise<BenchDatabase>;
  /** CPU that all processes of this Postgres have used so far. */
  cpuMs(): Promise<number>;
  stop(): Promise<void>;
};

const TEMPLATE = "bench_template";

/**
 * A Postgres of the version that `npm start` runs, with its settings (fsync on), in a folder that goes away with it.
 * `sharedBuffers`: as `shared_buffers` takes it; undefined: Postgres' default.
 */
export async function startBenchPostgres(sharedBuffers?: string): Promise<BenchPostgres> {
  const directory = await mkdtemp(join(tmpdir(), "nuncio-bench-"));
  const start = () => startEmbeddedPostgres({ directory, log: () => undefined });
  let embedded = await start();
  if (sharedBuffers !== undefined) {
    const sql = postgres(embedded.url, { max: 1 });
    await sql.unsafe(`ALTER SYSTEM SET shared_buffers = '${sharedBuffers}'`);
    await sql.end();
    await embedded.stop();
    embedded = await start();
  }
  const admin = postgres(embedded.url, { max: 1, onnotice: () => undefined });
  await admin.unsafe(`CREATE DATABASE ${TEMPLATE}`);
  await migrateDatabase(new Secret(nameDatabase(embedded.url, TEMPLATE)));
  const [row] = await admin<{ version: string }[]>`SELECT current_setting('server_version') AS version`;
  const postmaster = Number((await readFile(join(embedded.dataDirectory, "postmaster.pid"), "utf8")).split("\n")[0]);
  let made = 0;

  return {
    version: row?.version ?? "unknown",
    async createDatabase({ migrated }) {
      made += 1;
      const name = `bench_${made}`;
      await admin.unsafe(`CREATE DATABASE ${name} TEMPLATE ${migrated ? TEMPLATE : "template0"}`);
      // Pages that are first touched after a checkpoint are logged whole: let that not fall into a measurement.
      await admin`CHECKPOINT`;
      const url = nameDatabase(embedded.url, name);
      const sql = postgres(url, { max: 1, onnotice: () => undefined });
      return {
        url,
        admin: sql,
        async drop() {
          await sql.end();
          await admin.unsafe(`DROP DATABASE ${name} WITH (FORCE)`);
        },
      };
    },
    cpuMs: () => cpuMsOfChildren(postmaster),
    async stop() {
      await admin.end();
      await embedded.stop();
      await rm(embedded.dataDirectory, { recursive: true, force: true });
      await rm(directory, { recursive: true, force: true });
    },
  };
}

function nameDatabase(url: string, name: string): string {
  const named = new URL(url);
  named.pathname = `/${name}`;
  return named.href;
}
