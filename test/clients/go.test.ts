import { type ChildProcess, execFile, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { appendFile, cp, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createDatabase, TEST_SECRET_KEYS } from "../support/database.ts";
import { OPERATOR_KEY } from "../support/service.ts";

const run = promisify(execFile);
const MODULE = join("clients", "go");
const COMPILING_MS = 180_000;

// Unlike `go version`, this also refuses a Go older than go.mod asks for.
const hasGo = spawnSync("go", ["list", "-m"], { cwd: MODULE }).status === 0;

describe.skipIf(!hasGo)(`the Go client${hasGo ? "" : " (skipped: no Go of go.mod's version on the PATH)"}`, () => {
  describe("against a running server", () => {
    let server: ChildProcess;
    let address: string;
    let dropDatabase: () => Promise<void> = async () => undefined;

    beforeAll(async () => {
      const database = await createDatabase();
      dropDatabase = database.drop;
      server = spawn(join("node_modules", ".bin", "node"), [join("src", "server.ts")], {
        stdio: ["ignore", "pipe", "inherit"],
        env: {
          PATH: process.env.PATH,
          NUNCIO_DATABASE_URL: database.url.reveal(),
          NUNCIO_SECRET_KEYS: TEST_SECRET_KEYS,
          NUNCIO_BOOTSTRAP_OPERATOR_KEY: OPERATOR_KEY,
          NUNCIO_LISTEN: "127.0.0.1:0",
          NUNCIO_OPERATIONS_LISTEN: "127.0.0.1:0",
        },
      });
      address = await addressOf(server);
    });
    afterAll(async () => {
      if (server?.exitCode === null && server.kill("SIGTERM")) await once(server, "exit");
      await dropDatabase();
    });

    it("publishes, reads, lists and learns reasons over Connect on HTTP/1.1 and over gRPC on cleartext HTTP/2", {
      timeout: COMPILING_MS,
    }, async () => {
      const output = await go(["test", "-count=1", "-v", "./..."], {
        NUNCIO_TEST_ADDRESS: `http://${address}`,
        NUNCIO_TEST_OPERATOR_KEY: OPERATOR_KEY,
      });

      expect(output).toContain("--- PASS: TestConnectOverHTTP1 ");
      expect(output).toContain("--- PASS: TestGRPCOverCleartextHTTP2 ");
    });
  });

  it("is formatted by gofmt and has nothing that go vet minds", { timeout: COMPILING_MS }, async () => {
    expect((await run("gofmt", ["-l", MODULE])).stdout).toBe("");
    await go(["vet", "./..."]);
  });

  it("has a go.mod and a go.sum that go mod tidy leaves alone", { timeout: COMPILING_MS }, async () => {
    await go(["mod", "tidy", "-diff"]);
  });

  it("is refused by the staleness check for a changed and an extra file", { timeout: COMPILING_MS }, async () => {
    const copy = await mkdtemp(join(tmpdir(), "nuncio-go-gen-"));
    try {
      await cp(join(MODULE, "gen"), copy, { recursive: true });
      await appendFile(join(copy, "nuncio", "v1", "user.pb.go"), "// edited\n");
      await writeFile(join(copy, "extra.go"), "package gen\n");
      const check = run(process.execPath, [join("scripts", "generate-go.mjs"), "--check", copy]);

      await expect(check).rejects.toMatchObject({
        code: 1,
        stderr: /\n {2}extra\.go\n {2}nuncio\/v1\/user\.pb\.go\n$/,
      });
    } finally {
      await rm(copy, { recursive: true });
    }
  });
});

/** Rejects with everything that Go said when it fails. */
async function go(args: string[], env: NodeJS.ProcessEnv = {}): Promise<string> {
  try {
    const { stdout } = await run("go", args, { cwd: MODULE, env: { ...process.env, ...env } });
    return stdout;
  } catch (error) {
    const { stdout, stderr } = error as { stdout: string; stderr: string };
    throw new Error(`go ${args.join(" ")} failed\n${stdout}\n${stderr}`, { cause: error });
  }
}

/** Where it listens, once it does; rejects with its log when it ends before that. */
async function addressOf(server: ChildProcess): Promise<string> {
  const lines: string[] = [];
  const reader = createInterface({ input: server.stdout as NodeJS.ReadableStream });
  for await (const line of reader) {
    lines.push(line);
    const { msg, address } = JSON.parse(line);
    if (msg !== "server.started") continue;
    // What it logs from here on nobody reads; a full pipe would stop it.
    server.stdout?.resume();
    return address;
  }
  throw new Error(`the server ended before it listened:\n${lines.join("\n")}`);
}
