import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import postgres, { type Sql } from "postgres";
import { beforeAll } from "vitest";
import { Secret } from "../../src/core/secret.ts";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "../../src/embedded-postgres/embedded-postgres.ts";
import { migrateDatabase } from "../../src/store/migrations.ts";
import { cleanUp } from "./clean-up.ts";

/** A Postgres that belongs to one test file, which may do to it what it likes. */
export type OwnPostgres = {
  readonly url: Secret;
  /** A superuser's connection that comes back after each fault. */
  readonly admin: Sql;
  /** SIGKILL to the postmaster: its children notice and follow. */
  kill(): Promise<void>;
  stop(): Promise<void>;
  /** On the same port, with the same data. */
  start(): Promise<void>;
};

/** `directory` holds its data: a folder of the system's temporary ones unless something smaller is wanted. */
export function useOwnPostgres(
  directory: () => Promise<string> = () => mkdtemp(join(tmpdir(), "nuncio-own-")),
): OwnPostgres {
  const own: Partial<{ -readonly [K in keyof OwnPostgres]: OwnPostgres[K] }> = {};
  beforeAll(async () => {
    const home = await directory();
    let running: EmbeddedPostgres = await startEmbeddedPostgres({ directory: home, log: () => undefined });
    own.url = new Secret(running.url);
    own.admin = postgres(running.url, { max: 1, fetch_types: false, onnotice: () => undefined });
    own.kill = async () => {
      const [pid] = (await readFile(join(running.dataDirectory, "postmaster.pid"), "utf8")).split("\n");
      process.kill(Number(pid), "SIGKILL");
    };
    own.stop = () => running.stop();
    own.start = async () => {
      running = await startEmbeddedPostgres({ directory: home, log: () => undefined });
    };
    cleanUp(async () => {
      await own.admin?.end({ timeout: 1 });
      await running.stop().catch(() => undefined);
      await rm(home, { recursive: true, force: true });
    });
    await migrateDatabase(own.url);
  });
  return own as OwnPostgres;
}
