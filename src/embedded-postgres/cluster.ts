import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { anyFreePort, freePort } from "../free-port.ts";
import type { Binaries } from "./binaries.ts";
import { type Postmaster, readPostmaster, releaseStalePid } from "./postmaster.ts";
import { type Account, run, runOrThrow } from "./programs.ts";

export const SUPERUSER = "nuncio";
const START_TIMEOUT_S = 120;
const STOP_TIMEOUT_S = 60;
const START_TRIES = 10;

export interface Cluster {
  /** Holds the data, the log and nothing else; belongs to the account. */
  home: string;
  dataDirectory: string;
  account: Account;
  binaries: Binaries;
  password: string;
}

/** Made beside its place and renamed into it: an interrupted initdb leaves nothing that looks like a cluster. */
export async function createCluster({ home, dataDirectory, account, binaries, password }: Cluster): Promise<void> {
  for (const left of (await readdir(home)).filter((name) => name.startsWith("new-"))) {
    await rm(join(home, left), { recursive: true, force: true, maxRetries: 3 });
  }
  // A name of its own: the initdb of a killed start may still run, and clears its folder when it fails.
  const partial = join(home, `new-${randomBytes(4).toString("hex")}`);
  const passwordFile = `${partial}.password`;
  await writeFile(passwordFile, `${password}\n`, { mode: 0o600 });
  if (account !== undefined) await runOrThrow("chown", [`${account.uid}:${account.gid}`, passwordFile]);
  try {
    const flags = [`--username=${SUPERUSER}`, `--pwfile=${passwordFile}`, "--auth=scram-sha-256"];
    await runOrThrow(binaries.initdb, [`--pgdata=${partial}`, ...flags, "--encoding=UTF8", "--locale=C"], {
      account,
      cwd: home,
    });
  } finally {
    await rm(passwordFile, { force: true });
  }
  await rename(partial, dataDirectory);
}

/** Starts the cluster's server on a port of its own, kept in `portFile`. */
export async function launch(cluster: Cluster, portFile: string): Promise<Postmaster> {
  const { home, dataDirectory, account, binaries } = cluster;
  const logFile = join(home, "postgres.log");
  if (existsSync(logFile)) await rename(logFile, join(home, "postgres.previous.log"));
  await releaseStalePid(dataDirectory);
  let output = "";
  for (let tries = 0; tries < START_TRIES; tries++) {
    const port = await choosePort(portFile);
    // Only fixed words and a number: pg_ctl hands them to a shell.
    const settings = ["-p", port, "-c listen_addresses=127.0.0.1", "-c unix_socket_directories="];
    settings.push("-c max_connections=100", "-c timezone=UTC", "-c log_timezone=UTC");
    const flags = ["-D", dataDirectory, "-l", logFile, "-t", String(START_TIMEOUT_S), "-o", settings.join(" ")];
    const started = await run(binaries.pgCtl, ["start", "-w", ...flags], { account, cwd: home });
    const postmaster = await readPostmaster(dataDirectory);
    if (started.code === 0 && postmaster !== undefined) {
      await writeFile(portFile, `${port}\n`);
      return postmaster;
    }
    output = `${started.output}${await readFile(logFile, "utf8").catch(() => "")}`;
    // A port that was taken since we looked, or processes of a killed server that are still on their way out.
    if (!output.includes("in use")) break;
    await delay(500);
  }
  throw new Error(`Postgres did not start. The end of ${logFile}:\n${output.trim().split("\n").slice(-15).join("\n")}`);
}

/** The port of the last start if it is free, so that a `psql` or a bookmark goes on working. */
async function choosePort(portFile: string): Promise<number> {
  const kept = Number(await readFile(portFile, "utf8").catch(() => "0"));
  return (await freePort("127.0.0.1", kept)) ?? (await anyFreePort("127.0.0.1"));
}

export async function stop({ home, dataDirectory, account, binaries }: Cluster): Promise<void> {
  const flags = ["-D", dataDirectory, "-m", "fast", "-t", String(STOP_TIMEOUT_S)];
  const { code, output } = await run(binaries.pgCtl, ["stop", "-w", ...flags], { account, cwd: home });
  if (code !== 0 && (await readPostmaster(dataDirectory)) !== undefined) {
    throw new Error(`Postgres did not stop: ${output.trim()}`);
  }
}
