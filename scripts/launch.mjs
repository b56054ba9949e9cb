// Runs on whatever Node the machine has, before anything is installed: no TypeScript and no package in here.
//
//   node scripts/launch.mjs start               the whole system on this machine
//   node scripts/launch.mjs test [args]         vitest run [args]
//   node scripts/launch.mjs nuncio [args]       the command line, on the terminal's stdin
//   node scripts/launch.mjs run <file> [args]   one entrypoint
//
// Each installs what is missing and then runs on the Node that package.json pins (npm package `node`).
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { constants } from "node:os";
import { basename, delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const OLDEST_LAUNCHER_NODE = 20;
const OLDEST_RUNTIME_NODE = 24;
// One Ctrl-C arrives here up to three times: from the terminal, from npm, and from npm's shell.
const SAME_SIGNAL_MS = 500;

const project = dirname(dirname(fileURLToPath(import.meta.url)));
const bin = join(project, "node_modules", ".bin");
const pinnedNode = join(bin, "node");
const installedMark = join(project, "node_modules", ".nuncio-install");
const ownNodeMajor = Number(process.versions.node.split(".")[0]);

function fail(message) {
  process.stderr.write(`${message}\n`);
  process.exit(1);
}

/** What an installation depends on: a lock file that changed, or a node_modules of another machine, counts as missing. */
function wantedInstallation() {
  const lock = readFileSync(join(project, "package-lock.json"));
  return createHash("sha256").update(lock).update(`${process.platform}-${process.arch}`).digest("hex");
}

function isInstalled() {
  return existsSync(installedMark) && readFileSync(installedMark, "utf8").trim() === wantedInstallation();
}

// `npm install`, not `npm ci`: some versions of npm refuse a lock file that also serves other platforms.
function install() {
  process.stdout.write("Installing the packages in package-lock.json (npm install; once, about 20 seconds) …\n");
  const flags = ["install", "--include=dev", "--no-audit", "--no-fund", "--loglevel=error"];
  const npmCli = process.env.npm_execpath;
  const installed =
    npmCli && basename(npmCli).startsWith("npm")
      ? spawnSync(process.execPath, [npmCli, ...flags], { cwd: project, stdio: "inherit" })
      : spawnSync("npm", flags, { cwd: project, stdio: "inherit", shell: process.platform === "win32" });
  if (installed.error || installed.status !== 0) {
    const reason = installed.error ? installed.error.message : `exit ${installed.status ?? installed.signal}`;
    fail(
      `npm install failed (${reason}). Check the messages above and the connection to the package registry ` +
        "(npm config get registry), then run the command again; removing node_modules makes the next try a fresh one.",
    );
  }
  writeFileSync(installedMark, `${wantedInstallation()}\n`);
}

/** The pinned Node; the machine's own when that is new enough and the pinned one cannot run here. */
function runtime() {
  if (existsSync(pinnedNode) && spawnSync(pinnedNode, ["--version"]).status === 0) return pinnedNode;
  if (ownNodeMajor >= OLDEST_RUNTIME_NODE) return process.execPath;
  return fail(
    `Nuncio runs on Node ${OLDEST_RUNTIME_NODE}, and ${pinnedNode} is missing or does not run here. Its install script ` +
      "fetches it: run `npm rebuild node --ignore-scripts=false` " +
      `(npm config get ignore-scripts shows the setting), or install Node ${OLDEST_RUNTIME_NODE} yourself.`,
  );
}

function commandLine([command, ...rest]) {
  if (command === "start" && rest.length === 0) return [join("src", "start.ts")];
  if (command === "test") return [join("node_modules", "vitest", "vitest.mjs"), "run", ...rest];
  if (command === "nuncio") return [join("src", "nuncio.ts"), ...rest];
  if (command === "run" && rest.length > 0) return rest;
  return fail("Usage: launch.mjs start | test [vitest arguments] | nuncio [arguments] | run <file> [arguments]");
}

/**
 * Runs the child until it has ended, and ends as it ended. The child has a process group of its own, so that every
 * signal reaches it through here, once. Its stdin ends with this process: a child that asks to (NUNCIO_EXIT_WITH_PARENT)
 * stops even when this process is killed.
 */
function run(args, stdin) {
  const child = spawn(runtime(), args, {
    cwd: project,
    stdio: [stdin, "inherit", "inherit"],
    detached: process.platform !== "win32",
    env: {
      ...process.env,
      PATH: `${bin}${delimiter}${process.env.PATH ?? ""}`,
      ...(stdin === "pipe" ? { NUNCIO_EXIT_WITH_PARENT: "1" } : {}),
    },
  });
  const lastForwarded = new Map();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
    process.on(signal, () => {
      const now = Date.now();
      if (now - (lastForwarded.get(signal) ?? 0) < SAME_SIGNAL_MS) return;
      lastForwarded.set(signal, now);
      child.kill(signal);
    });
  }
  // Nothing is written to it; a child that ends may reset it, and its exit says all there is to say.
  child.stdin?.on("error", () => undefined);
  child.once("error", (error) => fail(`Cannot start ${args[0]}: ${error.message}`));
  child.once("exit", (code, signal) => process.exit(code ?? 128 + (constants.signals[signal] ?? 0)));
}

if (ownNodeMajor < OLDEST_LAUNCHER_NODE) {
  fail(
    `Nuncio starts on Node ${OLDEST_LAUNCHER_NODE} or later; this is ${process.version}. ` +
      `Install a current Node (https://nodejs.org), then run the command again; Node ${OLDEST_RUNTIME_NODE} comes with the packages.`,
  );
}
const [command] = process.argv.slice(2);
const args = commandLine(process.argv.slice(2));
if (!isInstalled()) install();
run(args, command === "test" || command === "nuncio" ? "inherit" : "pipe");
