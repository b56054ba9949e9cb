import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { cleanUp } from "./clean-up.ts";
import { keepLines } from "./lines.ts";

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
  const output = { stdout: "", stderr: "" };
  const ended = new Promise<Run>((resolve) => child.once("close", (code) => resolve({ code, ...output })));
  const lines = keepLines<string>(ended.then((run) => () => `it ended: ${JSON.stringify(run)}`));
  for (const name of ["stdout", "stderr"] as const) {
    child[name].on("data", (text) => {
      output[name] += text;
    });
    createInterface({ input: child[name] }).on("line", lines.add);
  }
  cleanUp(async () => {
    child.kill("SIGKILL");
    await ended;
  });
  return { child, lines: lines.all, ended, line: (pattern) => lines.first((line) => pattern.test(line)) };
}

export function runCommand(args: readonly string[], options: Parameters<typeof startCommand>[1] = {}): Promise<Run> {
  return startCommand(args, options).ended;
}
