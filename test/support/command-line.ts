import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { cleanUp } from "./clean-up.ts";

/** What a run of the command line printed and ended with. */
type Run = { readonly code: number | null; readonly stdout: string; readonly stderr: string };

export type RunningCommand = {
  readonly child: ChildProcess;
  /** Everything on both outputs so far. */
  readonly lines: string[];
  /** The first line that passes, printed already or yet to come; rejects if the command ends before. */
  line(pattern: RegExp): Promise<string>;
  readonly ended: Promise<Run>;
};

const NODE = new URL("../../node_modules/.bin/node", import.meta.url).pathname;
const ENTRYPOINT = new URL("../../src/nuncio.ts", import.meta.url).pathname;

/** `nuncio …` as a user runs it, in a folder without keys and an environment without settings but these. */
export function startCommand(
  args: readonly string[],
  { env = {}, cwd = "/", stdin = "" }: { env?: Record<string, string>; cwd?: string; stdin?: string | Buffer } = {},
): RunningCommand {
  const { PATH = "" } = process.env;
  const child = spawn(NODE, [ENTRYPOINT, ...args], { cwd, env: { PATH, NO_COLOR: "1", ...env } });
  child.stdin.on("error", () => undefined);
  child.stdin.end(stdin);
  const lines: string[] = [];
  const waiting = new Set<() => void>();
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name].on("data", (text) => {
      output[name] += text;
    });
    createInterface({ input: child[name] }).on("line", (text) => {
      lines.push(text);
      for (const check of waiting) check();
    });
  }
  const ended = new Promise<Run>((resolve) => child.once("close", (code) => resolve({ code, ...output })));
  cleanUp(async () => {
    child.kill("SIGKILL");
    await ended;
  });
  return {
    child,
    lines,
    ended,
    line(pattern) {
      return new Promise((resolve, reject) => {
        const check = () => {
          const found = lines.find((line) => pattern.test(line));
          if (found === undefined) return;
          waiting.delete(check);
          resolve(found);
        };
        waiting.add(check);
        check();
        void ended.then((run) => reject(new Error(`it ended: ${JSON.stringify(run)}`)));
      });
    },
  };
}

export function runCommand(args: readonly string[], options: Parameters<typeof startCommand>[1] = {}): Promise<Run> {
  return startCommand(args, options).ended;
}
