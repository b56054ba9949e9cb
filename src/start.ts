import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { get } from "node:http";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { setTimeout as delay } from "node:timers/promises";
import { EXIT_BAD_SETTINGS, SETTINGS } from "./config.ts";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "./embedded-postgres/embedded-postgres.ts";
import { freePort } from "./free-port.ts";
import {
  describeEnd,
  exitWithParent,
  forEachLine,
  type ProcessEnd,
  type SupervisedProcess,
  superviseProcess,
} from "./supervisor.ts";

// The whole system on one machine: a Postgres, the migrations, the server and the worker, started in this order and
// stopped in the reverse one. It fills in settings that are missing and hands all of them on; each process judges its own.

const READY_TIMEOUT_MS = 60_000;
const READY_POLL_MS = 100;
/** What the server and the worker get on top of NUNCIO_SHUTDOWN_TIMEOUT_MS before they are killed. */
const DRAIN_MARGIN_MS = 5_000;
const DEATHS_BEFORE_READY = 3;
const WATCH_POSTGRES_MS = 1_000;

/** Why the system ends: the reason of the abort that every step listens to. */
class Ending extends Error {
  readonly exitCode: number;

  constructor(exitCode: number, message: string) {
    super(message);
    this.exitCode = exitCode;
  }
}

interface Service {
  name: keyof typeof OPERATIONS;
  process: SupervisedProcess;
  ready: boolean;
}

interface System {
  env: NodeJS.ProcessEnv;
  postgres?: EmbeddedPostgres;
  services: Service[];
  ending: AbortController;
}

const OPERATIONS = { server: SETTINGS.operationsListen, worker: SETTINGS.workerOperationsListen };

process.exitCode = await main();

async function main(): Promise<number> {
  const directory = join(process.cwd(), ".nuncio");
  const system: System = { env: { ...process.env }, services: [], ending: new AbortController() };
  const { signal } = system.ending;
  stopOnSignal(system);
  try {
    await mkdir(directory, { recursive: true });
    const lock = await takeLock(directory);
    try {
      await fillInSettings(system, directory);
      await portsAreFree(system, lock.previousWasKilled);
      if (!system.env.NUNCIO_DATABASE_URL) await startPostgres(system, directory);
      await migrate(system);
      startServices(system);
      await Promise.all(system.services.map((service) => becomesReady(service, system)));
      printWhatToTry(system.env);
      await end(signal);
    } finally {
      await stopAll(system);
      await lock.release();
    }
    return 0;
  } catch (error) {
    return explain(error);
  }
}

// One system per folder

interface Lock {
  /** The start before this one did not end by itself, so its processes may still be draining. */
  previousWasKilled: boolean;
  release(): Promise<void>;
}

/**
 * Holds the folder until this process ends, however it ends: the lock is the operating system's, on a file that SQLite
 * keeps open (Node itself has no file locks, and a file with a pid in it outlives a kill). The pid is for the message.
 */
async function takeLock(directory: string): Promise<Lock> {
  const pidFile = join(directory, "start.pid");
  const database = new DatabaseSync(join(directory, "start.lock"), { timeout: 0 });
  try {
    database.exec("PRAGMA journal_mode = OFF; BEGIN EXCLUSIVE");
  } catch (cause) {
    const pid = (await readFile(pidFile, "utf8").catch(() => "unknown")).trim();
    throw new Error(
      `Nuncio already runs in ${directory} (pid ${pid}). Stop that one first, or start in another folder.`,
      { cause },
    );
  }
  const previousWasKilled = existsSync(pidFile);
  await writeFile(pidFile, `${process.pid}\n`);
  return {
    previousWasKilled,
    release: async () => {
      await rm(pidFile, { force: true });
      database.close();
    },
  };
}

// Settings

async function fillInSettings({ env }: System, directory: string): Promise<void> {
  env.NUNCIO_BOOTSTRAP_OPERATOR_KEY ??= await kept(
    join(directory, "operator-key"),
    () => `nop_${randomBytes(32).toString("base64url")}`,
  );
  env.NUNCIO_SECRET_KEYS ??= await kept(
    join(directory, "secret-keys"),
    () => `k1:${randomBytes(32).toString("base64")}`,
  );
  // Every call and every attempt would scroll what is printed below away.
  env.NUNCIO_LOG_LEVEL ??= "warn";
  // A receiver on this machine is what one tries first; elsewhere both stay refused.
  env.NUNCIO_TARGET_ALLOW_HTTP ??= "true";
  env.NUNCIO_TARGET_ALLOWED_CIDRS ??= "127.0.0.0/8,::1/128";
}

/** Made once; on disk before anyone uses it, for what is encrypted with a lost key is lost. */
async function kept(file: string, make: () => string): Promise<string> {
  if (!existsSync(file)) await writeFile(file, `${make()}\n`, { mode: 0o600, flush: true });
  return (await readFile(file, "utf8")).trim();
}

/** Where to reach what listens at this setting's address. */
function addressOf({ name, fallback, parse }: typeof SETTINGS.listen, env: NodeJS.ProcessEnv) {
  try {
    const { host, port } = parse(env[name] ?? fallback ?? "");
    return { name, host: { "0.0.0.0": "127.0.0.1", "::": "::1" }[host] ?? host, port };
  } catch (cause) {
    throw new Ending(EXIT_BAD_SETTINGS, `${name}: ${(cause as Error).message}`);
  }
}

/**
 * Another program on one of our ports would answer in our name, so this comes before anything is started. What a killed
 * start left behind ends by itself within its drain time, and is waited for.
 */
async function portsAreFree({ env, ending }: System, previousWasKilled: boolean): Promise<void> {
  const giveUpAt = performance.now() + (previousWasKilled ? drainTimeoutMs(env) : 0);
  let said = false;
  for (const setting of [SETTINGS.listen, SETTINGS.operationsListen, SETTINGS.workerOperationsListen]) {
    const { name, host, port } = addressOf(setting, env);
    while ((await freePort(host, port)) === undefined) {
      if (performance.now() >= giveUpAt) {
        throw new Ending(1, `${host}:${port} is in use by another program. Set ${name} to an address that is free.`);
      }
      if (!said) say(`The last start was killed; waiting for its processes to leave ${host}:${port} …`);
      said = true;
      await delay(READY_POLL_MS, undefined, { signal: ending.signal });
    }
  }
}

// The parts

async function startPostgres(system: System, directory: string): Promise<void> {
  say("Postgres starts …");
  const options = { directory, log: say };
  const postgres = await startEmbeddedPostgres(options);
  system.postgres = postgres;
  system.env.NUNCIO_DATABASE_URL = postgres.url;
  // For `npm run nuncio -- doctor` in another terminal.
  await writeFile(join(directory, "database-url"), `${postgres.url}\n`, { mode: 0o600 });
  system.ending.signal.throwIfAborted();
  say(`Postgres is ready, data in ${postgres.dataDirectory}`);
  void keepPostgresRunning(system, postgres, options).catch((error) => system.ending.abort(error));
}

/** It is not our child, so we look. It comes back on the same port, and the others reconnect by themselves. */
async function keepPostgresRunning(
  { ending }: System,
  postgres: EmbeddedPostgres,
  options: { directory: string; log: (line: string) => void },
): Promise<void> {
  for (;;) {
    await delay(WATCH_POSTGRES_MS, undefined, { signal: ending.signal, ref: false });
    if (ending.signal.aborted || (await postgres.isRunning())) continue;
    say("Postgres has died; it starts again …");
    const { url } = await startEmbeddedPostgres(options);
    if (url !== postgres.url) throw new Ending(1, "Postgres came back on another port: its old one was taken.");
    // The end came meanwhile, and found nothing to stop.
    if (ending.signal.aborted) return postgres.stop();
    say("Postgres is ready again");
  }
}

/** Applies what is missing of drizzle/; resolves when the schema is the one that server and worker expect. */
async function migrate({ env, ending: { signal } }: System): Promise<void> {
  const child = spawn(process.execPath, [entrypoint("migrate")], {
    env,
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
  });
  const stop = () => child.kill("SIGTERM");
  signal.addEventListener("abort", stop);
  const lastLines: string[] = [];
  for (const output of [child.stdout, child.stderr]) {
    forEachLine(output, (line) => {
      lastLines.push(line);
      say(`migrate | ${line}`);
    });
  }
  const { promise, resolve, reject } = Promise.withResolvers<Pick<ProcessEnd, "code" | "signal">>();
  child.once("error", reject);
  child.once("close", (code, killedBy) => resolve({ code, signal: killedBy }));
  const ended = await promise;
  signal.removeEventListener("abort", stop);
  signal.throwIfAborted();
  if (ended.code !== 0) {
    throw new Ending(1, [`The migration ended with ${describeEnd(ended)}:`, ...lastLines.slice(-20)].join("\n"));
  }
  say("The schema is up to date");
}

function startServices(system: System): void {
  for (const name of Object.keys(OPERATIONS) as Service["name"][]) {
    const service: Service = {
      name,
      ready: false,
      process: superviseProcess({
        name,
        command: process.execPath,
        args: [entrypoint(name)],
        env: system.env,
        log: say,
        onDeath: (end) => {
          if (service.ready || end.deathsInARow <= DEATHS_BEFORE_READY) return;
          system.ending.abort(new Ending(1, lastWords(end, `died ${end.deathsInARow} times before it was ready`)));
        },
        onFatal: (end) => system.ending.abort(new Ending(EXIT_BAD_SETTINGS, lastWords(end, "refuses its settings"))),
      }),
    };
    system.services.push(service);
  }
}

function lastWords({ name, lastLines }: ProcessEnd, what: string): string {
  return [`The ${name} ${what}. Its last words:`, ...lastLines.map((line) => `  ${line}`)].join("\n");
}

async function becomesReady(service: Service, { env, ending }: System): Promise<void> {
  const { name } = service;
  const address = addressOf(OPERATIONS[name], env);
  const giveUpAt = performance.now() + READY_TIMEOUT_MS;
  say(`${name} starts …`);
  while (!(await answersReady(address))) {
    if (performance.now() > giveUpAt) {
      throw new Ending(1, `The ${name} is not ready after ${READY_TIMEOUT_MS / 1000} s; its output above may say why.`);
    }
    await delay(READY_POLL_MS, undefined, { signal: ending.signal });
  }
  service.ready = true;
  say(`${name} is ready`);
}

async function answersReady({ host, port }: { host: string; port: number }): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const request = get({ host, port, path: "/readyz", agent: false, timeout: 2_000 }, (response) => {
    response.resume();
    resolve(response.statusCode === 200);
  });
  request.once("timeout", () => request.destroy(new Error("no answer")));
  request.once("error", () => resolve(false));
  return promise;
}

function entrypoint(name: string): string {
  return join(import.meta.dirname, `${name}.ts`);
}

// The end

/** The first Ctrl-C drains; the second kills the server and the worker, whose leases then expire. */
function stopOnSignal(system: System): void {
  const endFor = (why: string) => {
    if (!system.ending.signal.aborted) say(`${why}: everything stops`);
    system.ending.abort(new Ending(0, why));
  };
  const stop = (signal: NodeJS.Signals) => {
    if (!system.ending.signal.aborted) return endFor(signal);
    say(`${signal} again: the server and the worker are killed`);
    for (const { process } of system.services) void process.stop("SIGKILL", 0);
  };
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, stop);
  // Nobody is left who could stop us.
  exitWithParent(() => endFor("The launcher is gone"));
  for (const output of [process.stdout, process.stderr]) output.on("error", () => endFor("The terminal is gone"));
}

async function stopAll({ env, services, postgres, ending }: System): Promise<void> {
  // Whatever ended the start, nothing is started again from here on.
  ending.abort(new Ending(0, "stopped"));
  if (services.length > 0) say("Stopping the server and the worker; deliveries under way are finished first …");
  await Promise.all(services.map(({ process }) => process.stop("SIGTERM", drainTimeoutMs(env))));
  if (postgres === undefined) return;
  await postgres.stop();
  say("Postgres has stopped");
}

function drainTimeoutMs(env: NodeJS.ProcessEnv): number {
  const { name, fallback } = SETTINGS.shutdownTimeoutMs;
  const drainMs = Number(env[name] ?? fallback);
  // What is no number the processes have refused already.
  return (Number.isFinite(drainMs) ? drainMs : 0) + DRAIN_MARGIN_MS;
}

async function end(signal: AbortSignal): Promise<never> {
  const { promise, reject } = Promise.withResolvers<never>();
  signal.addEventListener("abort", () => reject(signal.reason));
  signal.throwIfAborted();
  return promise;
}

function explain(error: unknown): number {
  // Timers and the like reject with an AbortError whose cause is the reason.
  const reason = error instanceof Error && error.name === "AbortError" ? error.cause : error;
  if (reason instanceof Ending && reason.exitCode === 0) return 0;
  const { message, code, path } = reason as NodeJS.ErrnoException;
  process.stderr.write(`\n${message}\n`);
  if (code === "EACCES") process.stderr.write(`${path} belongs to another user: was it started as root before?\n`);
  return reason instanceof Ending ? reason.exitCode : 1;
}

// What one reads

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function printWhatToTry(env: NodeJS.ProcessEnv): void {
  const { host, port } = addressOf(SETTINGS.listen, env);
  const url = `http://${host.includes(":") ? `[${host}]` : host}:${port}`;
  const key = env.NUNCIO_BOOTSTRAP_OPERATOR_KEY;
  const curl = (rpc: string, body: object) =>
    [
      `curl -sS ${url}/nuncio.v1.${rpc}`,
      `  -H 'authorization: Bearer ${key}'`,
      "  -H 'content-type: application/json'",
      `  -d '${JSON.stringify(body)}'`,
    ].join(" \\\n");
  const subscription = { url: "http://127.0.0.1:3000/webhooks", description: "a receiver on this machine" };
  const user = { id: "u_1", displayName: "Zoë", status: "USER_STATUS_ACTIVE" };
  say(`
Nuncio is ready: ${url}  (Connect, gRPC and gRPC-Web)
Operator key:    ${key}

Subscribe a receiver to the events of the tenant acme; the answer holds its signing secret:

${curl("WebhookSubscriptionService/CreateWebhookSubscription", { tenantId: "acme", webhookSubscription: subscription })}

Publish an event:

${curl("EventService/Publish", { event: { tenantId: "acme", type: "EVENT_TYPE_USER_CREATED", user } })}

See what became of it:

${curl("DeliveryService/ListDeliveries", { tenantId: "acme" })}

Or let the command line do all of that, from another terminal (docs/command-line.md):

npm run nuncio -- listen --tenant acme
npm run nuncio -- publish --tenant acme --type user.created --user u_1 --display-name Zoë

Ctrl-C stops everything; data and keys stay in .nuncio. NUNCIO_LOG_LEVEL=info shows every call and attempt.
`);
}
