import { type ChildProcess, spawn } from "node:child_process";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { describe, expect, it } from "vitest";
import { freePort } from "../../src/free-port.ts";
import { cleanUp } from "../support/clean-up.ts";

const START = new URL("../../src/start.ts", import.meta.url).pathname;
const NODE = new URL("../../node_modules/.bin/node", import.meta.url).pathname;

type Started = {
  readonly child: ChildProcess;
  /** The first line that has all of these in it, from now on or before. */
  line(...parts: string[]): Promise<string>;
  count(part: string): number;
  readonly ended: Promise<number | null>;
};

/** What `npm start` runs, in this folder and on these ports. */
function start(directory: string, ports: readonly number[]): Started {
  const [rpc, operations, worker] = ports;
  const child = spawn(NODE, [START], {
    cwd: directory,
    env: {
      PATH: process.env.PATH,
      NUNCIO_LISTEN: `127.0.0.1:${rpc}`,
      NUNCIO_OPERATIONS_LISTEN: `127.0.0.1:${operations}`,
      NUNCIO_WORKER_OPERATIONS_LISTEN: `127.0.0.1:${worker}`,
    },
    stdio: ["ignore", "pipe", "inherit"],
    detached: true,
  });
  const lines: string[] = [];
  const waiting = new Set<() => void>();
  createInterface({ input: child.stdout as NonNullable<typeof child.stdout> }).on("line", (line) => {
    lines.push(line);
    for (const check of waiting) check();
  });
  const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
  cleanUp(() => child.kill("SIGKILL"));
  return {
    child,
    ended,
    count: (part) => lines.filter((line) => line.includes(part)).length,
    line: (...parts) =>
      new Promise((resolve) => {
        const check = () => {
          const found = lines.find((line) => parts.every((part) => line.includes(part)));
          if (found === undefined) return;
          waiting.delete(check);
          resolve(found);
        };
        waiting.add(check);
        check();
      }),
  };
}

describe("npm start", () => {
  it("runs the whole, stops on Ctrl-C, finds its data and keys again, and takes up what a killed one left", {
    timeout: 90_000,
  }, async () => {
    const directory = await mkdtemp(join(tmpdir(), "nuncio-start-"));
    await chmod(directory, 0o711);
    cleanUp(() => rm(directory, { recursive: true, force: true }));
    const ports = await Promise.all([0, 1, 2].map(() => freePort("127.0.0.1", 0)));
    const call = async (key: string, rpc: string, body: object) => {
      const response = await fetch(`http://127.0.0.1:${ports[0]}/nuncio.v1.EventService/${rpc}`, {
        method: "POST",
        headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
        body: JSON.stringify(body),
      });
      return (await response.json()) as Record<string, unknown>;
    };
    const keyOf = async (started: Started) => /nop_\S+/.exec(await started.line("Operator key"))?.[0] ?? "";

    const first = start(directory, ports as number[]);
    await first.line("Ctrl-C stops everything");
    const key = await keyOf(first);
    const event = { id: "e1", tenantId: "acme", type: "EVENT_TYPE_USER_DELETED", user: { id: "u_1" } };
    expect(await call(key, "Publish", { event })).toMatchObject({ eventId: "e1" });

    // A second one in the same folder says so and leaves the first alone.
    const second = start(directory, ports as number[]);
    expect(await second.ended).not.toBe(0);
    expect(await call(key, "Publish", { event })).toMatchObject({ duplicate: true });

    first.child.kill("SIGINT");
    expect(await first.ended).toBe(0);

    const again = start(directory, ports as number[]);
    await again.line("Ctrl-C stops everything");
    expect(await keyOf(again)).toBe(key);
    expect(await call(key, "GetEvent", { tenantId: "acme", id: "e1" })).toMatchObject({ event: { id: "e1" } });
    // Killed outright: Postgres stays, and the next start takes it up.
    again.child.kill("SIGKILL");
    await again.ended;
    const adopting = start(directory, ports as number[]);
    await adopting.line("Ctrl-C stops everything");
    expect(await call(key, "Publish", { event })).toMatchObject({ duplicate: true });
    adopting.child.kill("SIGTERM");
    expect(await adopting.ended).toBe(0);
  });
});
