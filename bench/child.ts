import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const STOP_TIMEOUT_MS = 20_000;
const READY_TIMEOUT_MS = 30_000;

/** A process of the bench's own that answers one message at a time. */
export type Peer<Request, Answer> = {
  readonly pid: number;
  /** Resolves with the next message of the peer. */
  readonly ready: Promise<Answer>;
  ask(request: Request): Promise<Answer>;
  stop(): Promise<void>;
};

export function startPeer<Request, Answer>(file: string, env: Record<string, string> = {}): Peer<Request, Answer> {
  const child = fork(fileURLToPath(new URL(`peers/${file}`, import.meta.url)), {
    env: { ...process.env, ...env },
    execArgv: process.execArgv,
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
  // One listener for all that is asked: whoever waits is answered in turn, or hears that the peer has died.
  let waiting = Promise.withResolvers<Answer>();
  child.on("message", (answer) => waiting.resolve(answer as Answer));
  child.once("error", (error) => waiting.reject(error));
  child.once("exit", (code) => waiting.reject(new Error(`${file} ended with ${code}`)));
  waiting.promise.catch(() => undefined);
  return {
    pid: child.pid as number,
    ready: waiting.promise,
    ask(request) {
      waiting = Promise.withResolvers<Answer>();
      waiting.promise.catch(() => undefined);
      child.send(request as object);
      return waiting.promise;
    },
    stop: () => stop(child),
  };
}

/** One of Nuncio's own processes, as an operator would start it. */
export type RealProcess = { readonly pid: number; stop(): Promise<void> };

/** Starts `src/server.ts` or `src/worker.ts`, and resolves when its `/readyz` says so if `operationsPort` is given. */
export async function startReal(
  name: "server" | "worker",
  env: Record<string, string>,
  readyPort?: number,
): Promise<RealProcess> {
  const file = fileURLToPath(new URL(`../src/${name}.ts`, import.meta.url));
  const flags = process.env.NUNCIO_BENCH_PROFILE?.split(" ") ?? [];
  const child = spawn(process.execPath, [...flags, file], {
    env: { PATH: process.env.PATH, ...env },
    stdio: ["ignore", "inherit", "inherit"],
  });
  const started = { pid: child.pid as number, stop: () => stop(child) };
  if (readyPort === undefined) return started;
  for (const deadline = Date.now() + READY_TIMEOUT_MS; Date.now() < deadline; await delay(50)) {
    if (child.exitCode !== null) break;
    const response = await fetch(`http://127.0.0.1:${readyPort}/readyz`).catch(() => undefined);
    if (response?.ok) return started;
  }
  await stop(child);
  throw new Error(`${name} did not become ready`);
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  child.kill("SIGTERM");
  const kill = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT_MS);
  await ended;
  clearTimeout(kill);
}
