import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import type { Secret } from "../../src/core/secret.ts";
import { cleanUp } from "./clean-up.ts";
import { TEST_SECRET_KEYS } from "./database.ts";
import { keepLines, type Lines } from "./lines.ts";
import { OPERATOR_KEY } from "./service.ts";

type LogLine = Record<string, unknown> & { readonly msg?: string };

export type RunningProcess = {
  readonly child: ChildProcess;
  readonly lines: LogLine[];
  /** The first line that passes, whether it was written already or is yet to come; rejects if the process ends before. */
  line(passes: (line: LogLine) => boolean): Promise<LogLine>;
  /** How it ended. */
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
};

const TEST_SETTINGS = {
  NUNCIO_SECRET_KEYS: TEST_SECRET_KEYS,
  NUNCIO_BOOTSTRAP_OPERATOR_KEY: OPERATOR_KEY,
  NUNCIO_LISTEN: "127.0.0.1:0",
  NUNCIO_OPERATIONS_LISTEN: "127.0.0.1:0",
  NUNCIO_WORKER_OPERATIONS_LISTEN: "127.0.0.1:0",
  NUNCIO_TARGET_ALLOW_HTTP: "true",
  NUNCIO_TARGET_ALLOWED_CIDRS: "127.0.0.0/8,::1/128",
};

/** The real server or worker as a process of its own; killed when the file is done, if it still runs then. */
export function spawnProcess(
  name: "server" | "worker",
  url: Secret,
  settings: Record<string, string> = {},
): RunningProcess {
  const node = new URL("../../node_modules/.bin/node", import.meta.url).pathname;
  const entrypoint = new URL(`../../src/${name}.ts`, import.meta.url).pathname;
  const { PATH = "" } = process.env;
  const child = spawn(node, [entrypoint], {
    env: { PATH, ...TEST_SETTINGS, NUNCIO_DATABASE_URL: url.reveal(), ...settings },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) => {
    child.once("close", (code, signal) => resolve({ code, signal }));
  });
  const lines: Lines<LogLine> = keepLines(
    ended.then((end) => () => `the ${name} ended (${JSON.stringify(end)}): ${JSON.stringify(lines.all.slice(-3))}`),
  );
  createInterface({ input: child.stdout as NonNullable<typeof child.stdout> }).on("line", (text) => {
    lines.add(JSON.parse(text) as LogLine);
  });
  cleanUp(async () => {
    child.kill("SIGKILL");
    await ended;
  });
  return { child, lines: lines.all, ended, line: lines.first };
}

/** A server that serves, and its address. */
export async function startServer(url: Secret, settings: Record<string, string> = {}) {
  const server = spawnProcess("server", url, settings);
  const { address } = await server.line(({ msg }) => msg === "server.started");
  return { ...server, baseUrl: `http://${address}` };
}

export async function startWorker(url: Secret, settings: Record<string, string> = {}) {
  const worker = spawnProcess("worker", url, settings);
  await worker.line(({ msg }) => msg === "worker.started");
  return worker;
}
