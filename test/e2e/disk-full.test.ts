import { execFile, execFileSync } from "node:child_process";
import { mkdtempSync, rmdirSync } from "node:fs";
import { chmod, mkdir, mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { Code } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { cleanUp } from "../support/clean-up.ts";
import { useOwnPostgres } from "../support/own-postgres.ts";
import { startPair, survive } from "../support/survival.ts";

const run = promisify(execFile);

/** Only root may mount a small disk, and not in every container. */
function mayMount(): boolean {
  const folder = mkdtempSync(join(tmpdir(), "nuncio-mount-"));
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], { stdio: "ignore" });
    execFileSync("umount", [folder], { stdio: "ignore" });
    return true;
  } catch {
    // What is missing stands in the title of what is skipped.
    return false;
  } finally {
    rmdirSync(folder);
  }
}

describe.skipIf(!mayMount())("a disk that is full (needs the right to mount one)", { timeout: 120_000 }, () => {
  let disk = "";
  const postgres = useOwnPostgres(async () => {
    disk = await mkdtemp(join(tmpdir(), "nuncio-disk-"));
    await run("mount", ["-t", "tmpfs", "-o", "size=320m", "tmpfs", disk]);
    await chmod(disk, 0o755);
    cleanUp(async () => {
      await run("umount", ["--lazy", disk]);
      await rm(disk, { recursive: true, force: true });
    });
    const home = join(disk, "postgres");
    await mkdir(home);
    return home;
  });
  const pair = startPair(postgres);

  it("[B09] [B44] makes publishes UNAVAILABLE, loses nothing, and is over once there is room", async () => {
    const { failures } = await survive(pair, async (traffic) => {
      const ballast = await open(join(disk, "ballast"), "w");
      const chunk = Buffer.alloc(1_048_576, 1);
      const isFull = await (async () => {
        for (;;) await ballast.write(chunk);
      })().catch((error: { code?: string }) => error.code === "ENOSPC");
      await ballast.close();
      expect(isFull).toBe(true);
      await traffic.until(({ failures: seen }) => seen.length >= 10);
      const before = traffic.accepted.length;
      await traffic.until(({ failures: seen }) => seen.length >= 20);
      expect(traffic.accepted.length).toBe(before);
      await rm(join(disk, "ballast"));
      // What Postgres does without room for its log is to stop; who watches over it starts it again.
      await postgres.start();
    });
    expect(failures).toContain(Code.Unavailable);
  });
});
