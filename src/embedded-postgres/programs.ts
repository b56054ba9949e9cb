import { spawn } from "node:child_process";

/** Postgres refuses to run as root. Undefined: we are not root, and it runs as ourselves. */
export type Account = { uid: number; gid: number; name: string } | undefined;

interface RunOptions {
  account?: Account;
  cwd?: string;
}

/** Runs a program to its end, in a session of its own and without the PG… settings of our environment. */
export async function run(
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

export async function runOrThrow(command: string, args: string[], options?: RunOptions): Promise<void> {
  const { code, output } = await run(command, args, options);
  if (code !== 0) throw new Error(`${command} failed (exit ${code}): ${output.trim()}`);
}
