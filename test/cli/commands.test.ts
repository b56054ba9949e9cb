import { randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Command } from "commander";
import { beforeAll, describe, expect, it } from "vitest";
import { createProgram } from "../../src/cli/program.ts";
import { anyFreePort } from "../../src/free-port.ts";
import { cleanUp } from "../support/clean-up.ts";
import { runCommand, startCommand } from "../support/command-line.ts";
import { createDatabase, TEST_SECRET_KEYS, useDatabase } from "../support/database.ts";
import { startServer, startWorker } from "../support/processes.ts";
import { openReceiver } from "../support/receiver.ts";
import { OPERATOR_KEY } from "../support/service.ts";

// Each command as a user runs it, against a real server and a real worker.

const db = useDatabase();
let env: Record<string, string> = {};
let folder = "";
let tenants = 0;

beforeAll(async () => {
  const [operations, workerOperations] = [await anyFreePort("127.0.0.1"), await anyFreePort("127.0.0.1")];
  const ports = {
    NUNCIO_OPERATIONS_LISTEN: `127.0.0.1:${operations}`,
    NUNCIO_WORKER_OPERATIONS_LISTEN: `127.0.0.1:${workerOperations}`,
  };
  const settings = { NUNCIO_RETRY_SCHEDULE: "1h", NUNCIO_LOG_LEVEL: "info", ...ports };
  const [server] = await Promise.all([startServer(db.url, settings), startWorker(db.url, settings)]);
  env = { NUNCIO_ADDRESS: server.baseUrl, NUNCIO_KEY: OPERATOR_KEY, ...ports };
  folder = await mkdtemp(join(tmpdir(), "nuncio-cli-"));
  cleanUp(() => rm(folder, { recursive: true, force: true }));
});

function newTenant(): string {
  tenants += 1;
  return `tenant_${tenants}`;
}

/** Commands of one tenant. */
function tenantOf(tenant: string) {
  const run = async (args: readonly string[], stdin = "") => {
    const result = await runCommand(args, { env: { ...env, NUNCIO_TENANT: tenant }, cwd: folder, stdin });
    return result;
  };
  return {
    run,
    /** Runs it, expects it to succeed, and reads each line of `--json`. */
    json: async (args: readonly string[], stdin = "") => {
      const { code, stdout, stderr } = await run([...args, "--json"], stdin);
      expect({ code, stderr }).toMatchObject({ code: 0 });
      return stdout
        .trim()
        .split("\n")
        .filter(Boolean)
        .map((line) => JSON.parse(line) as Record<string, never>);
    },
    start: (args: readonly string[]) => startCommand(args, { env: { ...env, NUNCIO_TENANT: tenant }, cwd: folder }),
  };
}

async function file(name: string, content: string | Buffer): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, content);
  return path;
}

function everyCommand(command: Command, path: string[] = []): string[][] {
  return [path, ...command.commands.flatMap((sub) => everyCommand(sub, [...path, sub.name()]))];
}

describe("nuncio", () => {
  it("explains itself", async () => {
    const { code, stdout } = await runCommand(["--help"]);
    expect(code).toBe(0);
    for (const [name] of everyCommand(createProgram("0.0.0")).filter((path) => path.length === 1))
      expect(stdout).toContain(name);
    expect(stdout).toMatch(/Exit codes: 0 done/);
    expect(await runCommand(["deliveries", "list", "--help"])).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/--state <states>/),
    });
    expect(await runCommand(["--version"])).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/),
    });
  });

  it.each(everyCommand(createProgram("0.0.0")).map((path) => [path.join(" "), path] as const))(
    "says what it does: %s",
    (_, path) => {
      const command = path.reduce(
        (found, name) => found.commands.find((sub) => sub.name() === name) as Command,
        createProgram("0.0.0"),
      );
      expect(command.helpInformation()).toContain(`Usage: nuncio ${path.join(" ")}`.trim());
      expect(`${command.description()}${command.summary()}`).not.toBe("");
    },
  );

  it.each([
    ["no command of that name", ["publsh"], 2, /unknown command 'publsh'.*\n.*publish/],
    ["a value that is none", ["deliveries", "list", "--state", "lost"], 2, /Expected one of pending, delivering/],
    ["no tenant", ["subscriptions", "list", "--tenant", ""], 2, /--tenant/],
    [
      "nothing of that id",
      ["subscriptions", "get", "sub_01900000-0000-7000-8000-000000000000"],
      3,
      /^SUBSCRIPTION_NOT_FOUND: /,
    ],
    [
      "a value that the server refuses",
      ["subscriptions", "create", "ftp://example.com"],
      3,
      /webhook_subscription\.url: /,
    ],
    ["a credential that is wrong", ["subscriptions", "list", "--key-file", "wrong-key"], 4, /^INVALID_CREDENTIAL: /],
    ["a time without its unit", ["deliveries", "list", "--after", "12"], 2, /Expected how long ago/],
    ["a duration beyond all time", ["deliveries", "list", "--after", "999999999d"], 2, /Expected how long ago/],
    ["no row at all", ["deliveries", "list", "--limit", "0"], 2, /from 1 on/],
    ["an address that is none", ["subscriptions", "list", "--address", ":8080"], 2, /neither host:port nor a URL/],
    ["a port that cannot be had", ["listen", "--port", "70000"], 2, /from 0 to 65535/],
    ["two ways at once", ["redrive", "--follow", "rdr_1", "--cancel", "rdr_2"], 2, /one of/],
    [
      "a key with a line break in it",
      ["subscriptions", "list", "--key-file", "two-lines"],
      4,
      /^The key is not one line/,
    ],
    ["something else there", ["subscriptions", "list", "--address", "OPERATIONS"], 5, /is --address its RPC port/],
    ["nobody there", ["subscriptions", "list", "--address", "127.0.0.1:1"], 5, /is it running/],
  ])("ends with a code of its own for %s", async (_, args, code, message) => {
    await file("wrong-key", "some_other_key_of_nobody\n");
    await file("two-lines", "the_first_half\nand_the_second\n");
    const result = await tenantOf("acme").run(
      args.map((arg) => (arg === "OPERATIONS" ? (env.NUNCIO_OPERATIONS_LISTEN ?? "") : arg)),
    );
    expect(result).toMatchObject({ code, stdout: "" });
    expect(result.stderr).toMatch(message);
    expect(result.stderr).not.toContain("    at ");
    expect(result.stderr).not.toContain("the_first_half");
  });

  it("asks for a key where it finds none", async () => {
    const { NUNCIO_ADDRESS = "" } = env;
    const { code, stderr } = await runCommand(["subscriptions", "list", "--tenant", "acme"], {
      env: { NUNCIO_ADDRESS },
      cwd: folder,
    });
    expect(code).toBe(4);
    expect(stderr).toMatch(/NUNCIO_KEY.*--key-file/);
  });
});

describe("nuncio publish", () => {
  it("publishes an event, once", async () => {
    const { run, json } = tenantOf(newTenant());
    const args = ["publish", "--id", "e_1", "--type", "user.created", "--user", "u_1", "--display-name", "Zoë"];
    expect(await run(args)).toMatchObject({ code: 0, stdout: "e_1  0 deliveries\n" });
    expect(await run(args)).toMatchObject({ code: 0, stdout: "e_1  known already: nothing was stored\n" });
    expect(await json(["events", "get", "e_1"])).toMatchObject([
      { event: { id: "e_1", user: { id: "u_1", displayName: "Zoë", status: "USER_STATUS_ACTIVE" } } },
    ]);
    expect((await run(["publish"])).stderr).toMatch(/--type and --user/);
  });

  it.each([
    ["one a line", (events: object[]) => events.map((event) => JSON.stringify(event)).join("\n")],
    ["a list", (events: object[]) => JSON.stringify(events, undefined, 2)],
  ])("publishes a file of them, %s, and says which are refused", async (_, write) => {
    const { run, json } = tenantOf(newTenant());
    const user = { id: "u_1", status: "USER_STATUS_ACTIVE" };
    const events = Array.from({ length: 120 }, (_, i) => ({
      id: `e_${i + 1}`,
      type: "EVENT_TYPE_USER_CREATED",
      user: i === 110 ? { ...user, id: "" } : user,
    }));
    const { code, stdout, stderr } = await run(["publish", "--file", "-"], write(events));
    expect({ code, stderr }).toMatchObject({ code: 3, stderr: "1 of 120 events were refused.\n" });
    expect(stdout).toContain("event 111: InvalidArgument");
    expect(await json(["events", "list", "--limit", "500"])).toHaveLength(119);
    expect(await json(["events", "list", "--user", "u_2"])).toEqual([]);
  });

  it("says which events have overtaken a refused one of the same user", async () => {
    const { run } = tenantOf(newTenant());
    const event = (id: string, type: string, user: string) => ({
      id,
      type: `EVENT_TYPE_USER_${type}`,
      user: { id: user, status: "USER_STATUS_ACTIVE" },
    });
    const events = [
      event("e_1", "CREATED", "u_1"),
      event("e_2", "UPDATED", "u_1"),
      event("e_3", "CREATED", "u_2"),
      event("e_4", "REACTIVATED", "u_1"),
    ];
    const { code, stderr } = await run(["publish", "--file", "-"], JSON.stringify(events));
    expect(code).toBe(3);
    expect(stderr).toMatch(/^event 4 has overtaken event 2 of the same user/);
  });

  it("names the line that is not even JSON", async () => {
    expect(await tenantOf("acme").run(["publish", "--file", "-"], "not json")).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/^the file is not JSON/),
    });
    const lines = '{"type":"EVENT_TYPE_USER_CREATED"}\n{"type":\n{}';
    expect(await tenantOf("acme").run(["publish", "--file", "-"], lines)).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/^line 2 is not JSON/),
    });
  });

  it("names the line that is no event", async () => {
    const path = await file("bad.ndjson", '{"type":"EVENT_TYPE_USER_CREATED"}\n{"tpye":1}\n');
    expect(await tenantOf("acme").run(["publish", "--file", path])).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/event 2: .*tpye/),
    });
  });
});

describe("nuncio subscriptions", () => {
  it("creates, lists, changes, pauses, resumes, rotates, tests and deletes one", async () => {
    const { run, json } = tenantOf(newTenant());
    const receiver = await openReceiver();
    const [created] = await json([
      "subscriptions",
      "create",
      receiver.url,
      "--type",
      "user.created,user.deleted",
      "--rate",
      "50",
      "--retry",
      "5s,1m",
      "--header-file",
      await file("headers-to-add", "x-team: blue\n"),
    ]);
    expect(created).toMatchObject({
      webhookSubscription: {
        eventTypes: ["EVENT_TYPE_USER_CREATED", "EVENT_TYPE_USER_DELETED"],
        rateLimit: { requestsPerSecond: 50 },
        retryPolicy: { schedule: ["5s", "60s"] },
        headers: { "x-team": "" },
      },
      signingSecret: expect.stringMatching(/^whsec_/),
    });
    const { id } = (created as unknown as { webhookSubscription: { id: string } }).webhookSubscription;

    const table = (await run(["subscriptions", "list"])).stdout;
    expect(table.split("\n")[0]).toMatch(/^ID +STATE +EVENTS/);
    expect(table).toMatch(new RegExp(`${id} +enabled +user.created, user.deleted`));
    expect((await run(["subs", "get", id])).stdout).toMatch(/state +enabled\n[\s\S]*retries after +5s, 60s/);

    const [updated] = await json([
      "subscriptions",
      "update",
      id,
      "--description",
      "of the blue team",
      "--unset",
      "rate,types",
    ]);
    expect(updated).toMatchObject({ description: "of the blue team", url: receiver.url });
    expect(updated).not.toHaveProperty("rateLimit");
    expect(updated).not.toHaveProperty("eventTypes");
    expect(await run(["subscriptions", "update", id])).toMatchObject({ code: 2 });

    expect(await json(["subscriptions", "pause", id])).toMatchObject([{ state: "SUBSCRIPTION_STATE_PAUSED" }]);
    expect(await json(["subscriptions", "resume", id])).toMatchObject([{ state: "SUBSCRIPTION_STATE_ENABLED" }]);

    const rotated = await run(["subscriptions", "rotate", id, "--grace", "1h"]);
    expect(rotated.stdout).toMatch(/old secret until[\s\S]*Signing secret, shown this once:\n\n {2}whsec_/);

    expect(await run(["subscriptions", "test", id])).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/delivered +200/),
    });
    expect(JSON.parse(receiver.received[0]?.body ?? "")).toMatchObject({ type: "nuncio.ping" });
    await receiver.close();
    expect(await run(["subscriptions", "test", id])).toMatchObject({
      code: 1,
      stdout: expect.stringMatching(/connect-failed/),
      stderr: "The test was not delivered.\n",
    });

    expect(await run(["subscriptions", "delete", id])).toMatchObject({ code: 0 });
    expect((await run(["subscriptions", "list"])).stdout).toMatch(/has no subscriptions/);
  });
});

/** A tenant with a subscription whose receiver answers with this status, until it is told otherwise. */
async function subscribed(firstStatus: number) {
  const commands = tenantOf(newTenant());
  let status = firstStatus;
  const receiver = await openReceiver((_, response) => response.writeHead(status).end("told so"));
  const [created] = await commands.json(["subscriptions", "create", receiver.url]);
  const { id } = (created as unknown as { webhookSubscription: { id: string } }).webhookSubscription;
  const publish = (event: string, user = "u_1") =>
    commands.json(["publish", "--id", event, "--type", "user.created", "--user", user]);
  return {
    ...commands,
    id,
    receiver,
    publish,
    answer: (next: number) => {
      status = next;
    },
    /** Looks until a delivery of the event is in that state. */
    untilState: async (event: string, state: string) => {
      for (;;) {
        const [delivery] = await commands.json(["deliveries", "list", "--event", event, "--state", state]);
        if (delivery) return delivery as unknown as { id: string };
      }
    },
  };
}

describe("nuncio deliveries", () => {
  it("lists them, shows one with its attempts, delivers it again, cancels it", async () => {
    const { run, id, publish, answer, receiver, untilState } = await subscribed(500);
    await publish("e_1");
    await receiver.until(() => receiver.received.length === 1);
    const delivery = await untilState("e_1", "pending");

    const list = (await run(["deliveries", "list", "--subscription", id])).stdout;
    expect(list).toMatch(new RegExp(`${delivery.id} +pending +user.created +u_1 +${id} +1`));
    expect((await run(["deliveries", "list", "--after", "1h", "--state", "delivered"])).stdout).toBe(
      "No such deliveries.\n",
    );
    const shown = (await run(["deliveries", "get", delivery.id])).stdout;
    expect(shown).toMatch(/state +pending\n/);
    expect(shown).toMatch(/\n1 +\S+ +\d+ ms +http-status +500/);
    expect(shown).toContain("answer to attempt 1  told so");

    answer(200);
    expect(await run(["deliveries", "redrive", delivery.id])).toMatchObject({ code: 0 });
    await untilState("e_1", "delivered");
    answer(500);
    await publish("e_2", "u_2");
    await receiver.until(() => receiver.received.length === 3);
    const other = await untilState("e_2", "pending");
    expect((await run(["deliveries", "cancel", other.id])).stdout).toMatch(/cancelled \(cancelled-by-request\)/);
    expect((await run(["events", "get", "e_2"])).stdout).toMatch(/"id":"e_2"[\s\S]*cancelled \(cancelled-by-request\)/);
    expect(await run(["deliveries", "cancel", delivery.id])).toMatchObject({
      code: 3,
      stderr: expect.stringMatching(/^DELIVERY_ENDED/),
    });
  });

  it("hands no control characters of others to the terminal", async () => {
    const { run, json } = tenantOf(newTenant());
    const receiver = await openReceiver((_, response) =>
      response.writeHead(500).end("\u001b]0;owned\u0007a\u202eb\nc\u0000"),
    );
    await json(["subscriptions", "create", receiver.url, "--description", "\u001b[2Jgone\u202e"]);
    await json(["publish", "--id", "e_1", "--type", "user.created", "--user", "u_1"]);
    await receiver.until(() => receiver.received.length === 1);
    const [delivery] = await json(["deliveries", "list"]);
    const { stdout } = await run(["deliveries", "get", (delivery as unknown as { id: string }).id]);
    const [subscription] = await json(["subscriptions", "list"]);
    const shown = stdout + (await run(["subscriptions", "get", (subscription as unknown as { id: string }).id])).stdout;
    const event = {
      id: "e_2",
      type: "EVENT_TYPE_USER_CREATED",
      user: { id: "u_2", displayName: "\u009b31mred\u202e\u061c", status: "USER_STATUS_ACTIVE" },
    };
    await run(["publish", "--file", "-"], JSON.stringify(event));
    const { stdout: whole } = await run(["events", "get", "e_2"]);
    expect(JSON.parse(whole.split("\n")[0] ?? "").user.displayName).toBe(event.user.displayName);
    const { stderr } = await run(["publish", "--file", "-"], JSON.stringify({ "\u009b2Jbad": 1 }));
    expect(stderr).toContain("bad");
    expect(whole + stderr).not.toMatch(/[\u0080-\u009f\u202e\u061c]/);
    expect(shown).toContain("gone");
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what it is about
    expect(shown).not.toMatch(/[\u0000-\u0009\u000b-\u001f\u007f\u202e]/);
  });
});

describe("a list", () => {
  it("says that it is not all, to a script as well", async () => {
    const { run } = tenantOf(newTenant());
    const user = { id: "u_1", status: "USER_STATUS_ACTIVE" };
    const events = Array.from({ length: 3 }, (_, i) => ({ id: `e_${i}`, type: "EVENT_TYPE_USER_CREATED", user }));
    await run(["publish", "--file", "-"], JSON.stringify(events));
    expect(await run(["events", "list", "--limit", "2", "--json"])).toMatchObject({
      code: 0,
      stderr: "Only the newest 2: --limit shows more.\n",
    });
    expect(await run(["events", "list", "--limit", "3", "--json"])).toMatchObject({ code: 0, stderr: "" });
  });

  it("ends quietly when its reader has had enough", async () => {
    const { start } = tenantOf(newTenant());
    const list = start(["events", "list", "--help"]);
    list.child.stdout?.destroy();
    expect((await list.ended).stderr).not.toContain("EPIPE");
  });
});

describe("nuncio operational-events", () => {
  it("tells what was given up", async () => {
    const { run, json, id, publish, untilState } = await subscribed(500);
    expect((await run(["ops"])).stdout).toMatch(/Nothing has happened/);
    await json(["subscriptions", "update", id, "--retry", "1s"]);
    await publish("e_1");
    await untilState("e_1", "dead-lettered");
    expect((await run(["operational-events", "--subscription", id])).stdout).toMatch(
      new RegExp(`delivery-dead-lettered +RETRIES_EXHAUSTED +1 +${id}`),
    );
    expect(await json(["operational-events", "--type", "subscription-disabled"])).toEqual([]);
  });
});

describe("nuncio redrive", () => {
  it("starts a job and follows it to its end, with progress", async () => {
    const { run, json, id, publish, answer, receiver, untilState } = await subscribed(500);
    await json(["subscriptions", "update", id, "--retry", "1s"]);
    for (const n of [1, 2, 3]) await publish(`e_${n}`, `u_${n}`);
    for (const n of [1, 2, 3]) await untilState(`e_${n}`, "dead-lettered");
    answer(200);
    const { code, stdout, stderr } = await run(["redrive", "--subscription", id, "--after", "1h"]);
    expect({ code }).toEqual({ code: 0 });
    expect(stdout).toMatch(/^rdr_\S+ is done: 3 events looked at, 3 made pending, 0 left out as overtaken\.\n/);
    expect(stdout).toContain(`nuncio deliveries list --subscription ${id} --state pending`);
    expect(stderr).toMatch(/100% \| 3 events looked at, 3 made pending/);
    for (const n of [1, 2, 3]) await untilState(`e_${n}`, "delivered");
    expect(receiver.received.at(-1)?.headers["x-identity-redrive"]).toBe("1");
  });

  it("leaves it running where it is told to, finds it again and ends it", async () => {
    const { run, json, id, publish } = await subscribed(200);
    await publish("e_1");
    const started = await run([
      "redrive",
      "--subscription",
      id,
      "--state",
      "delivered",
      "--request-id",
      "r1",
      "--detach",
    ]);
    expect(started).toMatchObject({ code: 0 });
    const redrive = /^rdr_\S+/.exec(started.stdout)?.[0] ?? "";
    const [again] = await json([
      "redrive",
      "--subscription",
      id,
      "--state",
      "delivered",
      "--request-id",
      "r1",
      "--detach",
    ]);
    expect(again).toMatchObject({ id: redrive });
    expect(await json(["redrive", "--follow", redrive])).toMatchObject([
      { id: redrive, state: "REDRIVE_STATE_SUCCEEDED" },
    ]);
    expect((await run(["redrive", "--cancel", redrive])).code).not.toBe(2);
    expect(await run(["redrive"])).toMatchObject({ code: 2, stderr: expect.stringMatching(/--subscription/) });
  });
});

describe("nuncio tail", () => {
  it("shows what happens from now on, until Ctrl-C", async () => {
    const { start, run, publish, answer, untilState } = await subscribed(500);
    await publish("e_before", "u_before");
    await untilState("e_before", "pending");
    const tail = start(["tail"]);
    await tail.line(/^Watching /);
    await publish("e_1");
    await tail.line(/ pending .*user\.created .*u_1 .*attempt 1 .*next /);
    answer(204);
    const { id } = await untilState("e_1", "pending");
    await run(["deliveries", "redrive", id]);
    await tail.line(/ delivered .*u_1 .*attempt 2/);
    tail.child.kill("SIGINT");
    expect(await tail.ended).toMatchObject({ code: 0 });
    expect(tail.lines.join("\n")).not.toContain("u_before");
  });
});

describe("nuncio listen", () => {
  it("receives, verifies and prints events, passes them on, and unsubscribes", async () => {
    const { start, json } = tenantOf(newTenant());
    const mine = await openReceiver((_, response) => response.writeHead(202).end());
    const listen = start(["listen", "--forward", mine.url]);
    const url = /http:\S+/.exec(await listen.line(/ listens at /))?.[0] ?? "";
    await json(["publish", "--id", "e_1", "--type", "user.created", "--user", "u_1", "--display-name", "Zoë"]);
    expect(await listen.line(/verified/)).toMatch(
      /verified {2}user\.created {2}e_1 {2}attempt 1 {2}→ 202 by your receiver/,
    );
    await listen.line(/"displayName": "Zoë"/);
    expect(mine.received).toHaveLength(1);
    expect(mine.received[0]?.headers["webhook-signature"]).toMatch(/^v1,/);
    expect(JSON.parse(mine.received[0]?.body ?? "")).toMatchObject({ id: "e_1" });

    const forged = await fetch(url, { method: "POST", body: "{}", headers: { "webhook-id": "e_2" } });
    expect(forged.status).toBe(401);
    await listen.line(/NOT VERIFIED/);
    expect(mine.received).toHaveLength(1);

    expect(await json(["subscriptions", "list"])).toHaveLength(1);
    listen.child.kill("SIGINT");
    expect(await listen.ended).toMatchObject({ code: 0 });
    expect(await json(["subscriptions", "list"])).toEqual([]);
  });

  it("unsubscribes also when nobody reads what it prints any more", async () => {
    const { start, json } = tenantOf(newTenant());
    const listen = start(["listen", "--no-body"]);
    await listen.line(/ listens at /);
    listen.child.stdout?.destroy();
    await json(["publish", "--id", "e_1", "--type", "user.created", "--user", "u_1"]);
    expect(await listen.ended).toMatchObject({ code: 0, stderr: expect.stringMatching(/is unsubscribed/) });
    expect(await json(["subscriptions", "list"])).toEqual([]);
  });

  it("answers as it is told, so that retries can be watched", async () => {
    const { start, json, run } = tenantOf(newTenant());
    const listen = start(["listen", "--status", "503", "--no-body"]);
    await listen.line(/ listens at /);
    await json(["publish", "--id", "e_1", "--type", "user.created", "--user", "u_1"]);
    await listen.line(/verified .*→ 503/);
    expect((await run(["deliveries", "list"])).stdout).toMatch(/pending|delivering/);
    listen.child.kill("SIGTERM");
    expect(await listen.ended).toMatchObject({ code: 0 });
  });
});

describe("nuncio verify", () => {
  it("says of a request that was really sent which signature fails and why", async () => {
    const { run, json } = tenantOf(newTenant());
    const receiver = await openReceiver();
    const [created] = await json(["subscriptions", "create", receiver.url]);
    const { signingSecret } = created as unknown as { signingSecret: string };
    await json(["publish", "--id", "e_1", "--type", "user.created", "--user", "u_1"]);
    await receiver.until(() => receiver.received.length === 1);
    const [{ headers, body }] = receiver.received as [(typeof receiver.received)[0]];
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}`);
    const kept = [
      "--headers",
      await file("headers.txt", lines.join("\r\n")),
      "--secret-file",
      await file("secret", `${signingSecret}\n`),
    ];

    const good = await run(["verify", "--body", await file("body.json", body), ...kept]);
    expect(good).toMatchObject({ code: 0, stderr: "" });
    expect(good.stdout).toMatch(/^good {4}webhook-signature: .*\ngood {4}x-identity-signature: /);
    const broken = await run(["verify", "--body", "-", ...kept], `${body}\n`);
    expect(broken).toMatchObject({ code: 1, stderr: "2 of 2 signatures failed.\n" });
    expect(broken.stdout).toMatch(/FAILED {2}webhook-signature: NO_MATCH, the body has a line break at its end/);

    const other = await runCommand(
      ["verify", "--body", join(folder, "body.json"), "--json", ...lines.flatMap((line) => ["--header", line])],
      { env: { NUNCIO_SIGNING_SECRET: `whsec_${randomBytes(32).toString("base64")}` } },
    );
    expect(other.code).toBe(1);
    expect(
      other.stdout
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line).fault),
    ).toEqual(["NO_MATCH", "NO_MATCH"]);
    expect(other.stdout + broken.stdout + good.stdout).not.toContain(signingSecret.slice(6));
  });

  it("wants a secret, and not on the command line", async () => {
    const { code, stderr } = await runCommand(["verify", "--body", "-"]);
    expect({ code, stderr }).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/NUNCIO_SIGNING_SECRET.*--secret-file/),
    });
  });
});

describe("nuncio doctor", () => {
  const settings = () => ({
    ...env,
    NUNCIO_DATABASE_URL: db.url.reveal(),
    NUNCIO_SECRET_KEYS: TEST_SECRET_KEYS,
    NUNCIO_BOOTSTRAP_OPERATOR_KEY: OPERATOR_KEY,
  });
  const examine = async (changes: Record<string, string | undefined>) => {
    const all = Object.entries({ ...settings(), ...changes }).filter(([, value]) => value !== undefined);
    const run = await runCommand(["doctor", "--json"], {
      env: Object.fromEntries(all) as Record<string, string>,
      cwd: folder,
    });
    const findings = run.stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as { check: string; verdict: string; detail: string });
    return {
      ...run,
      findings,
      faults: findings.filter(({ verdict }) => verdict === "fault").map(({ check }) => check),
    };
  };

  it("finds no fault where there is none", async () => {
    const { code, findings, faults } = await examine({});
    expect(faults).toEqual([]);
    expect(code).toBe(0);
    expect(findings.map(({ check }) => check)).toEqual([
      "settings of the server",
      "settings of the worker",
      "database",
      "durability",
      "schema",
      "roles",
      "partitions",
      "secret keys",
      "clock",
      "NOTIFY",
      "old transactions",
      "vacuum",
      "workers",
      "server",
      "credential",
      "readiness of the server",
      "readiness of the worker",
    ]);
  });

  it.each([
    [
      "a setting that is wrong",
      { NUNCIO_LEASE_MS: "19000" },
      ["settings of the worker"],
      /NUNCIO_LEASE_MS must be at least/,
    ],
    [
      "a key that opens nothing",
      { NUNCIO_SECRET_KEYS: `k9:${Buffer.alloc(32, 1).toString("base64")}` },
      ["secret keys"],
      /k1/,
    ],
    ["a key that is wrong", { NUNCIO_KEY: "some_other_key_of_nobody" }, ["credential"], /refuses the key/],
    ["a database URL that is none", { NUNCIO_DATABASE_URL: "postgres://u:p%ss@127.0.0.1/x" }, ["database"], /./],
    ["no server there", { NUNCIO_ADDRESS: "127.0.0.1:1" }, ["server"], /does not answer/],
    [
      "no database there",
      { NUNCIO_DATABASE_URL: "postgres://nobody:secret-word@127.0.0.1:1/none" },
      ["database"],
      /does not answer/,
    ],
  ])("finds %s", async (_, changes, expected, message) => {
    // A stored secret, for the keys to open.
    await tenantOf(newTenant()).json(["subscriptions", "create", "http://127.0.0.1:9009/"]);
    const { code, faults, stdout, findings } = await examine(changes);
    expect(faults).toEqual(expected);
    expect(code).toBe(1);
    expect(
      findings
        .filter(({ verdict }) => verdict === "fault")
        .map(({ detail }) => detail)
        .join("\n"),
    ).toMatch(message);
    expect(stdout).not.toContain("secret-word");
  });

  it("judges no process whose settings are not here, and asks the server all the same", async () => {
    const { code, findings } = await examine({ NUNCIO_DATABASE_URL: undefined, NUNCIO_SECRET_KEYS: undefined });
    expect(code).toBe(0);
    expect(findings.filter(({ verdict }) => verdict === "skipped").map(({ check }) => check)).toEqual([
      "settings of the server",
      "settings of the worker",
      "database",
    ]);
  });

  it("finds a name that is no setting, and a database that was not migrated", async () => {
    const { findings } = await examine({ NUNCIO_LISTEM: "x" });
    expect(findings).toContainEqual({
      check: "settings",
      verdict: "warning",
      detail: "no setting has the name NUNCIO_LISTEM",
    });
    const { url, drop } = await createDatabase({ migrated: false });
    cleanUp(drop);
    const { faults } = await examine({ NUNCIO_DATABASE_URL: url.reveal() });
    expect(faults).toContain("schema");
  });
});
