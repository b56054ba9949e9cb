import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { EXIT_WITH_PARENT } from "../src/config.ts";
import { anyFreePort } from "../src/free-port.ts";
import { forEachLine } from "../src/supervisor.ts";

/** What `npm start` runs, with a folder, ports and keys of its own: it neither needs nor disturbs another one. */
export type OwnNuncio = {
  readonly address: string;
  readonly operatorKey: string;
  readonly directory: string;
  /** Rejects if it ends before it is stopped. */
  readonly ended: Promise<never>;
  /** Resolves when it has ended and its data is gone. A second call makes it hurry. */
  stop(): Promise<void>;
};

const START = fileURLToPath(new URL("../src/start.ts", import.meta.url));
/** What a receiver fails comes back at once: nobody wants to watch a demo for the days of the default schedule. */
const RETRY_SCHEDULE = "200ms,500ms,1s,2s";
const STOP_TIMEOUT_MS = 60_000;
const KEPT_LINES = 30;

export async function startOwnNuncio(): Promise<OwnNuncio> {
  const directory = await mkdtemp(join(tmpdir(), "nuncio-demo-"));
  // Postgres doesn't run as root; the account it takes instead passes through here to its data.
  await chmod(directory, 0o711);
  const [port, operationsPort, workerOperationsPort] = await freePorts(3);
  const operatorKey = `nop_${randomBytes(32).toString("base64url")}`;
  const address = `127.0.0.1:${port}`;
  const child = spawn(process.execPath, [START], {
    cwd: directory,
    env: {
      ...withoutNuncio(process.env),
      [EXIT_WITH_PARENT]: "1",
      NUNCIO_LISTEN: address,
      NUNCIO_OPERATIONS_LISTEN: `127.0.0.1:${operationsPort}`,
      NUNCIO_WORKER_OPERATIONS_LISTEN: `127.0.0.1:${workerOperationsPort}`,
      NUNCIO_BOOTSTRAP_OPERATOR_KEY: operatorKey,
      NUNCIO_RETRY_SCHEDULE: RETRY_SCHEDULE,
      NUNCIO_SHUTDOWN_TIMEOUT_MS: "5000",
      NUNCIO_LOG_LEVEL: "warn",
    },
    // Its stdin ends with us, however we end, and then it stops everything by itself.
    stdio: ["pipe", "pipe", "pipe"],
    // A Ctrl-C in the terminal reaches us alone; we stop it when we are done with it.
    detached: true,
  });
  child.stdin.on("error", () => undefined);
  const exit = exitOf(child);
  const ended = exit.then(({ how, lastLines }) => {
    throw new Error([`Nuncio ended with ${how}. Its last words:`, ...lastLines].join("\n  "));
  });
  // Nobody listens any more once it is asked to stop.
  ended.catch(() => undefined);
  const stop = async () => {
    child.kill("SIGTERM");
    const kill = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT_MS);
    await exit;
    clearTimeout(kill);
    await rm(directory, { recursive: true, force: true });
  };
  return { address, operatorKey, directory, ended, stop };
}

function exitOf(child: ChildProcess): Promise<{ how: string; lastLines: string[] }> {
  const lastLines: string[] = [];
  const keep = (line: string) => {
    lastLines.push(line);
    if (lastLines.length > KEPT_LINES) lastLines.shift();
  };
  for (const output of [child.stdout, child.stderr]) forEachLine(output, keep);
  const { promise, resolve } = Promise.withResolvers<{ how: string; lastLines: string[] }>();
  child.once("error", (error) => keep(error.message));
  child.once("close", (code, signal) => resolve({ how: signal ?? `exit ${code}`, lastLines }));
  return promise;
}

/** Settings that are meant for another Nuncio. */
function withoutNuncio(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !name.startsWith("NUNCIO_")));
}

async function freePorts(count: number): Promise<number[]> {
  const ports = new Set<number>();
  while (ports.size < count) {
    ports.add(await anyFreePort("127.0.0.1"));
  }
  return [...ports];
}
