import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { EXIT_BAD_SETTINGS, EXIT_WITH_PARENT } from "./config.ts";

/** A child that ran this long was healthy: its next death counts as the first. */
const HEALTHY_AFTER_MS = 30_000;
const KEPT_LINES = 20;

/** How one run of a supervised process ended. */
export interface ProcessEnd {
  name: string;
  code: number | null;
  signal: NodeJS.Signals | null;
  /** Deaths without a healthy run between them, this one included. */
  deathsInARow: number;
  /** The last lines of its output, oldest first. */
  lastLines: string[];
}

export interface SupervisedProcess {
  /** The running child's process id; undefined between a death and the restart, and after a stop. */
  pid(): number | undefined;
  /**
   * Sends the signal, SIGKILL after `timeoutMs`, and resolves when the child has ended; it is not started again.
   * A second call sends its own signal, so that a stop can become harder.
   */
  stop(signal: NodeJS.Signals, timeoutMs: number): Promise<void>;
}

export interface SupervisedProcessOptions {
  name: string;
  command: string;
  args: string[];
  env: NodeJS.ProcessEnv;
  /** Gets the child's output and what the supervisor does, line by line, each with the name before it. */
  log: (line: string) => void;
  /** Called after each death that nobody asked for and that is followed by a restart. */
  onDeath?: (end: ProcessEnd) => void;
  /** Called instead when the child exits with EXIT_BAD_SETTINGS: it would meet the same settings again. */
  onFatal: (end: ProcessEnd) => void;
  restartDelayMs?: (deathsInARow: number) => number;
}

/** At once the first time, then 0.25 s, doubling, at most 5 s. */
export function restartDelayMs(deathsInARow: number): number {
  return deathsInARow <= 1 ? 0 : Math.min(5_000, 250 * 2 ** (deathsInARow - 2));
}

/**
 * Keeps one child process running until it is stopped.
 *
 * The child leads a process group of its own: a terminal's Ctrl-C reaches only us, and we end our children in order.
 * If we are killed outright, the child's stdin ends, and `exitWithParent` in the child takes it from there.
 */
export function superviseProcess(options: SupervisedProcessOptions): SupervisedProcess {
  const { name, command, args, env, log, onDeath, onFatal } = options;
  const delayMs = options.restartDelayMs ?? restartDelayMs;
  let child: ChildProcess | undefined;
  let restart: NodeJS.Timeout | undefined;
  let deathsInARow = 0;
  let stopping = false;
  const ended = Promise.withResolvers<void>();

  const start = () => {
    const startedAt = performance.now();
    const lastLines: string[] = [];
    const keep = (line: string) => {
      lastLines.push(line);
      if (lastLines.length > KEPT_LINES) lastLines.shift();
      log(`${name} | ${line}`);
    };
    child = spawn(command, args, {
      env: { ...env, [EXIT_WITH_PARENT]: "1" },
      stdio: ["pipe", "pipe", "pipe"],
      detached: true,
    });
    // Nothing is ever written to it, but a child that closes its end must not take us down.
    child.stdin?.on("error", (error) => log(`${name} | stdin: ${error.message}`));
    for (const output of [child.stdout, child.stderr]) forEachLine(output, keep);
    child.once("error", (error) => keep(`cannot run ${command}: ${error.message}`));
    // "close" and not "exit": by then the last lines have arrived. It follows a failed spawn too.
    child.once("close", (code, signal) => {
      child = undefined;
      if (stopping) return ended.resolve();
      deathsInARow = performance.now() - startedAt >= HEALTHY_AFTER_MS ? 1 : deathsInARow + 1;
      const end: ProcessEnd = { name, code, signal, deathsInARow, lastLines };
      if (code === EXIT_BAD_SETTINGS) {
        log(`${name} | ended with exit ${code} (bad settings); not started again`);
        ended.resolve();
        return onFatal(end);
      }
      const delay = delayMs(deathsInARow);
      log(`${name} | ended with ${describeEnd(end)}; starts again ${delay === 0 ? "now" : `in ${delay} ms`}`);
      restart = setTimeout(start, delay);
      return onDeath?.(end);
    });
  };

  const stop = (signal: NodeJS.Signals, timeoutMs: number): Promise<void> => {
    stopping = true;
    clearTimeout(restart);
    if (child === undefined) {
      ended.resolve();
      return ended.promise;
    }
    child.kill(signal);
    if (signal === "SIGKILL") {
      killGroup(child.pid);
      return ended.promise;
    }
    const kill = setTimeout(() => {
      log(`${name} | still runs ${timeoutMs} ms after ${signal}; it is killed`);
      killGroup(child?.pid);
    }, timeoutMs);
    return ended.promise.finally(() => clearTimeout(kill));
  };

  start();
  return { pid: () => child?.pid, stop };
}

/**
 * Calls back once when the process that supervises us is gone, however it went. Without a supervisor it does nothing.
 * It does not keep this process alive.
 */
export function exitWithParent(onParentGone: () => void): void {
  if (process.env[EXIT_WITH_PARENT] !== "1") return;
  const { stdin } = process;
  // Which of them comes first depends on how the parent's end was closed; a reset is an end like any other.
  const gone = () => {
    stdin.off("end", gone).off("close", gone).off("error", gone);
    stdin.on("error", () => undefined);
    onParentGone();
  };
  stdin.on("end", gone).on("close", gone).on("error", gone).resume();
  // A pipe is a socket here and can be let go of; the types speak of a terminal.
  (stdin as { unref?: () => void }).unref?.();
}

export function describeEnd({ code, signal }: Pick<ProcessEnd, "code" | "signal">): string {
  return signal === null ? `exit ${code}` : signal;
}

export function forEachLine(stream: Readable | null, onLine: (line: string) => void): void {
  if (stream !== null) createInterface({ input: stream, crlfDelay: Number.POSITIVE_INFINITY }).on("line", onLine);
}

function killGroup(leader: number | undefined): void {
  if (leader === undefined) return;
  try {
    process.kill(-leader, "SIGKILL");
  } catch (error) {
    // It ended in this very moment.
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}
