import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { run } from "./programs.ts";

export interface Postmaster {
  pid: number;
  port: number;
}

/** What postmaster.pid says, if the process that it names is a Postgres on this data directory. */
export async function readPostmaster(dataDirectory: string): Promise<Postmaster | undefined> {
  // One line each for pid, data directory, start time and port; shared memory further down.
  const file = await readFile(postmasterFile(dataDirectory), "utf8").catch(() => "");
  const [pid, directory, , port] = file.split("\n");
  if (directory !== dataDirectory) return undefined;
  const commandLine = await commandLineOf(Number(pid));
  return commandLine?.includes(dataDirectory) ? { pid: Number(pid), port: Number(port) } : undefined;
}

/**
 * Clearing up after a killed server is left to Postgres, except that it refuses for as long as any process of our user
 * has the old pid: a stranger after the restart of a container, or a zombie where process 1 reaps none. Then the pid is
 * made one that cannot exist. The rest of the file stays, so that Postgres still sees whether shared memory is in use.
 */
export async function releaseStalePid(dataDirectory: string): Promise<void> {
  const file = postmasterFile(dataDirectory);
  if (!existsSync(file) || (await readPostmaster(dataDirectory)) !== undefined) return;
  const content = await readFile(file, "utf8");
  await writeFile(file, content.replace(/^\d+/, String(2 ** 31 - 1)));
}

function postmasterFile(dataDirectory: string): string {
  return join(dataDirectory, "postmaster.pid");
}

async function commandLineOf(pid: number): Promise<string | undefined> {
  if (process.platform === "linux") {
    // A zombie has an empty one: it holds nothing any more.
    return (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")) || undefined;
  }
  const { code, output } = await run("ps", ["-o", "command=", "-ww", "-p", String(pid)]);
  return code === 0 ? output : undefined;
}
