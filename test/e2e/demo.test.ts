import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { create } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient, createRouterTransport } from "@connectrpc/connect";
import { Webhook } from "standardwebhooks";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { compare, type Outcome, type Subscribed } from "../../examples/compare.ts";
import { retryPauseMs } from "../../examples/emitter.ts";
import { type Gateway, openGateway } from "../../examples/gateway.ts";
import { FrontDoor } from "../../examples/lives.ts";
import { inventPeople } from "../../examples/people.ts";
import { type Body, badMomentOf, Inbox, type Received } from "../../examples/receiver.ts";
import type { UserEvent } from "../../examples/user-event.ts";
import { ErrorInfoSchema, RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import { type Event, EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { EventService, PublishResponseSchema } from "../../gen/nuncio/v1/event_service_pb.ts";
import { UserSchema } from "../../gen/nuncio/v1/user_pb.ts";
import { forEachLine } from "../../src/supervisor.ts";
import { createDatabase, TEST_SECRET_KEYS } from "../support/database.ts";

describe("the comparison", () => {
  it("finds nothing when every event arrives once and unchanged", () => {
    expect(compare(outcome())).toEqual([]);
  });

  it("takes no notice of the order of arrival, nor of an event that is published again", () => {
    const turned = outcome();
    turned.all.received.reverse();
    delete turned.emissions[1]?.deliveries;
    expect(compare(turned)).toEqual([]);
  });

  const faults: [string, (broken: TestOutcome) => void, string[]][] = [
    [
      "a dropped delivery",
      ({ all }) => all.received.splice(1, 1),
      ["acme/all: user.updated evt_2 of u_1 never arrives"],
    ],
    [
      "a changed field",
      ({ all }) => {
        all.received[1] = altered(all.received[1], (body) => ({ ...body, type: "user.created" }));
      },
      ['acme/all: user.updated evt_2 of u_1: body.type is "user.created", not "user.updated"'],
    ],
    [
      "a name that only looks the same",
      ({ all }) => {
        all.received[1] = alteredUser(all.received[1], { displayName: "Zoe\u0308" });
      },
      ['acme/all: user.updated evt_2 of u_1: body.data.user.displayName is "Zoe\\u0308", not "Zo\\u00eb"'],
    ],
    [
      "a field that nobody emitted",
      ({ all }) => {
        all.received[0] = alteredUser(all.received[0], { locale: "de" });
      },
      ['acme/all: user.created evt_1 of u_1: body.data.user.locale is "de", not unset'],
    ],
    [
      "an empty name that has become none",
      ({ all }) => {
        all.received[0] = alteredUser(all.received[0], { displayName: undefined });
      },
      ['acme/all: user.created evt_1 of u_1: body.data.user.displayName is unset, not ""'],
    ],
    [
      "a changed path that is missing",
      ({ all }) => {
        all.received[1] = altered(all.received[1], ({ data, ...rest }) => ({
          ...rest,
          data: { ...data, changed: ["displayName"] },
        }));
      },
      [
        'acme/all: user.updated evt_2 of u_1: body.data.changed is ["displayName"], not ["displayName","name.givenName"]',
      ],
    ],
    [
      "a changed path without its previous null",
      ({ all }) => {
        all.received[1] = altered(all.received[1], ({ data, ...rest }) => ({
          ...rest,
          data: { ...data, previous: { displayName: "" } },
        }));
      },
      ['acme/all: user.updated evt_2 of u_1: body.data.previous.name is unset, not {"givenName":null}'],
    ],
    [
      "an extra event",
      ({ all }) => all.received.push(altered(all.received[0], (body) => ({ ...body, id: "evt_9" }), "evt_9")),
      ["acme/all: user.created evt_9 of u_1 arrives unexpectedly"],
    ],
    [
      "an event that is accepted twice",
      ({ all }) => all.received.push(all.received[0] as Received),
      ["acme/all: user.created evt_1 of u_1 is accepted 2 times"],
    ],
    [
      "another tenant's event",
      ({ all }) =>
        all.received.push(altered(all.received[0], (body) => ({ ...body, tenantid: "globex", id: "evt_8" }), "evt_8")),
      ["acme/all: user.created evt_8 of u_1 arrives unexpectedly, of tenant globex"],
    ],
    [
      "an event that the filter leaves out",
      ({ all, leavers }) => leavers.received.push(all.received[0] as Received),
      ["acme/leavers: user.created evt_1 of u_1 arrives unexpectedly"],
    ],
    [
      "another content type",
      ({ leavers }) => {
        leavers.received[0] = { ...(leavers.received[0] as Received), contentType: "text/plain" };
      },
      ['acme/leavers: user.deactivated evt_3 of u_1: content-type is "text/plain"'],
    ],
    [
      "sequences that run backwards",
      ({ all }) => {
        all.received[0] = altered(all.received[0], (body) => ({ ...body, usersequence: "00000000000000000099" }));
      },
      [
        "acme/all: user.updated evt_2 of u_1 has sequence 00000000000000000002, the event before it 00000000000000000099",
      ],
    ],
    [
      "a sequence that does not sort as text",
      ({ leavers }) => {
        leavers.received[1] = altered(leavers.received[1], (body) => ({ ...body, usersequence: "4" }));
      },
      ['acme/leavers: user.deleted evt_4 of u_1 has usersequence "4"'],
    ],
    [
      "a delivery that Nuncio gave up",
      ({ all }) => {
        all.listed[1] = { eventId: "evt_2", state: "DEAD_LETTERED" };
      },
      ["acme/all: ListDeliveries has user.updated evt_2 of u_1 as DEAD_LETTERED"],
    ],
    [
      "deliveries that Nuncio lists too few or too many of",
      ({ all }) => {
        all.listed[0] = { eventId: "evt_7", state: "DELIVERED" };
      },
      [
        "acme/all: ListDeliveries has user.created evt_1 of u_1 as nothing",
        "acme/all: ListDeliveries has evt_7 unexpectedly",
      ],
    ],
    [
      "an event that Nuncio never accepted",
      ({ emissions }) => {
        emissions[0] = { ...emissions[0]!, state: "lost", why: "refused" };
      },
      ["gateway: user.created evt_1 of u_1 is lost: refused"],
    ],
    [
      "an event that found fewer subscriptions than there are",
      ({ emissions }) => {
        emissions[2] = { ...emissions[2]!, deliveries: 1 };
      },
      ["gateway: Nuncio stores 1 deliveries of user.deactivated evt_3 of u_1, not 2"],
    ],
    [
      "a receiver that keeps a deleted user",
      ({ all }) => {
        const { type, usersequence, data } = all.received[2]!.body;
        all.beliefs.set("u_1", { type, usersequence, user: data.user });
      },
      ["acme/all: the receiver knows u_1, who does not exist"],
    ],
    [
      "a change that the gateway never emitted",
      ({ people }) => people.set("acme", [{ ...PERSON, id: "u_2" }]),
      ["acme/all: the receiver does not know u_2"],
    ],
    [
      "a receiver that stopped at an older state",
      ({ people, all }) => {
        people.set("acme", [{ ...PERSON, displayName: "new" }]);
        all.beliefs.set("u_1", { type: "user.created", usersequence: SEQUENCES[0]!, user: PERSON });
      },
      ['acme/all: the receiver\'s u_1.displayName is "", not "new"'],
    ],
    [
      "a fault that the receiver saw",
      ({ all }) => all.faults.push("two attempts differ"),
      ["acme/all: two attempts differ"],
    ],
  ];

  it.each(faults)("reports %s, and nothing else", (_, breakIt, expected) => {
    const broken = outcome();
    breakIt(broken);
    expect(compare(broken)).toEqual(expected);
  });
});

describe("the gateway", () => {
  let gateway: Gateway;
  afterEach(() => gateway.close());

  it("emits the event of every path, and none where nothing changes", async () => {
    const { events, published } = nuncioThatAnswers(() => undefined);
    gateway = await openGateway(events);
    const door = new FrontDoor(gateway.address, "acme", AbortSignal.timeout(10_000));
    const login = { provider: "google", subject: "1", profile: { displayName: "Zoë", externalId: "x1" } };

    const steps: [string, () => Promise<unknown>, string[]][] = [
      ["sign-up", () => door.signUp({ displayName: "" }), ["USER_CREATED u_1"]],
      ["first login", () => door.logIn(login, 201), ["USER_CREATED google|2"]],
      ["the same login", () => door.logIn(login, 200), []],
      [
        "a login with news",
        () => door.logIn({ ...login, profile: { displayName: "Zoe" } }, 200),
        ["USER_UPDATED google|2 displayName"],
      ],
      [
        "a profile change",
        () => door.change("u_1", { displayName: null, name: { givenName: "Z" } }),
        ["USER_UPDATED u_1 displayName,name.givenName"],
      ],
      ["no profile change", () => door.change("u_1", { displayName: null }), []],
      ["suspend", () => door.turn("u_1", "suspend"), ["USER_UPDATED u_1 status"]],
      ["unsuspend", () => door.turn("u_1", "unsuspend"), ["USER_UPDATED u_1 status"]],
      ["deactivate", () => door.turn("u_1", "deactivate"), ["USER_DEACTIVATED u_1 status,deactivateTime"]],
      ["reactivate", () => door.turn("u_1", "reactivate"), ["USER_REACTIVATED u_1 status,deactivateTime"]],
      [
        "delete an active person",
        () => door.remove("google|2"),
        ["USER_DEACTIVATED google|2 status,deactivateTime", "USER_DELETED google|2"],
      ],
      ["log in after that", () => door.logIn(login, 201), ["USER_CREATED google|3"]],
      ["deactivate again", () => door.turn("u_1", "deactivate"), ["USER_DEACTIVATED u_1 status,deactivateTime"]],
      ["delete who is deactivated", () => door.remove("u_1"), ["USER_DELETED u_1"]],
    ];
    for (const [step, take, expected] of steps) {
      const before = gateway.emissions.length;
      await take();
      await expect.poll(() => gateway.waiting()).toBe(0);
      const ids = gateway.emissions.slice(before).map(({ event }) => event.id);
      expect(
        ids.map((id) => toWords(published.find((event) => event.id === id))),
        step,
      ).toEqual(expected);
    }
    const deleted = published.find(({ type, user }) => type === EventType.USER_DELETED && user?.id === "google|2");
    expect(deleted?.user).toEqual(create(UserSchema, { id: "google|2", externalId: "x1" }));
  });

  it("answers while Nuncio is away, and publishes each event once it is back, with the same id and in order", async () => {
    let away = true;
    const { events, published } = nuncioThatAnswers(() => {
      if (away) throw new ConnectError("restarting", Code.Unavailable);
    });
    gateway = await openGateway(events);
    const door = new FrontDoor(gateway.address, "acme", AbortSignal.timeout(10_000));
    const { id } = await door.signUp({ displayName: "a" });
    await door.change(id, { displayName: "b" });
    await expect.poll(() => published.length).toBeGreaterThan(1);
    expect(gateway.waiting()).toBe(2);

    away = false;
    await expect.poll(() => gateway.waiting(), { timeout: 10_000 }).toBe(0);
    const [created, updated] = gateway.emissions.map(({ event }) => event.id);
    expect(published.map((event) => event.id).slice(-2)).toEqual([created, updated]);
    expect(new Set(published.slice(0, -1).map((event) => event.id))).toEqual(new Set([created]));
  });

  it("gives up what Nuncio refuses, and goes on with the next event of the same person", async () => {
    const { events } = nuncioThatAnswers((event) => {
      if (event.type === EventType.USER_CREATED) throw new ConnectError("no", Code.InvalidArgument);
    });
    gateway = await openGateway(events);
    const door = new FrontDoor(gateway.address, "acme", AbortSignal.timeout(10_000));
    const { id } = await door.signUp({});
    await door.change(id, { displayName: "b" });
    await expect.poll(() => gateway.emissions.map(({ state }) => state)).toEqual(["lost", "accepted"]);
  });
});

describe("the pause before an event is published again", () => {
  it.each([
    ["UNAVAILABLE", new ConnectError("", Code.Unavailable), 100],
    ["RESOURCE_EXHAUSTED with RetryInfo", exhausted(2n), 2_000],
    ["DEADLINE_EXCEEDED", new ConnectError("", Code.DeadlineExceeded), 100],
    ["CANCELED by a server that is killed", new ConnectError("", Code.Canceled), 100],
    ["INTERNAL from a connection that breaks", new ConnectError("", Code.Internal), 100],
    ["INTERNAL from Nuncio", internal(), undefined],
    ["RESOURCE_EXHAUSTED without RetryInfo", new ConnectError("", Code.ResourceExhausted), undefined],
    ["INVALID_ARGUMENT", new ConnectError("", Code.InvalidArgument), undefined],
    ["ALREADY_EXISTS", new ConnectError("", Code.AlreadyExists), undefined],
  ])("fits %s", (_, failure, leastMs) => {
    const pauseMs = retryPauseMs(failure, 1);
    if (leastMs === undefined) expect(pauseMs).toBeUndefined();
    else expect(pauseMs).toBeGreaterThanOrEqual(leastMs);
  });
});

describe("the receiver", () => {
  const secret = `whsec_${Buffer.alloc(32, 5).toString("base64")}`;

  it("refuses bytes that are not the ones that were signed", () => {
    const inbox = new Inbox("acme/all", secret, () => undefined);
    const raw = Buffer.from(JSON.stringify(BODIES[0]));
    const headers = signed(raw, "evt_1", { delivery: goodDelivery(0) });
    expect(inbox.receive(Buffer.concat([raw, Buffer.from(" ")]), headers)).toBe(401);
    expect(inbox.received).toEqual([]);
    expect(inbox.faults).toHaveLength(1);
  });

  it("accepts an event once, and the newer one whichever comes first", () => {
    const inbox = new Inbox("acme/all", secret, () => undefined);
    for (const i of [1, 0, 1]) {
      const raw = Buffer.from(JSON.stringify(BODIES[i]));
      expect(inbox.receive(raw, signed(raw, `evt_${i + 1}`, { delivery: goodDelivery(i) }))).toBe(204);
    }
    expect(inbox.received.map(({ webhookId }) => webhookId)).toEqual(["evt_2", "evt_1"]);
    expect(inbox.duplicates).toBe(1);
    expect(inbox.beliefs.get("u_1")?.user.displayName).toBe("Zoë");
  });

  it("fails a first attempt in its bad moments, and never a later one", () => {
    const inbox = new Inbox("acme/all", secret, () => undefined);
    const deliveries = Array.from({ length: 300 }, (_, i) => `dlv_${i}`);
    const statuses = deliveries.map((delivery, i) => {
      const raw = Buffer.from(JSON.stringify({ ...BODIES[0], id: `evt_${i}` }));
      return [1, 2].map((attempt) => inbox.receive(raw, signed(raw, `evt_${i}`, { delivery, attempt })));
    });
    expect(statuses.filter(([first]) => first === 500).length).toBeGreaterThan(70);
    expect(statuses.filter(([first]) => first === 500).length).toBeLessThan(130);
    expect(statuses.filter(([, second]) => second !== 204)).toEqual([]);
    expect(inbox.received).toHaveLength(300);
  });

  it("notices when two attempts of a delivery differ", () => {
    const inbox = new Inbox("acme/all", secret, () => undefined);
    for (const [attempt, body] of [BODIES[0], { ...BODIES[0]!, time: "2026-11-23T10:00:00.001Z" }].entries()) {
      const raw = Buffer.from(JSON.stringify(body));
      inbox.receive(raw, signed(raw, "evt_1", { delivery: "dlv_1", attempt: attempt + 1 }));
    }
    expect(inbox.faults).toEqual(["two attempts of dlv_1 differ"]);
  });

  function signed(raw: Buffer, id: string, { delivery, attempt = 1 }: { delivery: string; attempt?: number }) {
    const now = new Date();
    return {
      "content-type": "application/json",
      "webhook-id": id,
      "webhook-timestamp": String(Math.floor(now.getTime() / 1000)),
      "webhook-signature": new Webhook(secret).sign(id, now, raw),
      "x-identity-event-id": id,
      "x-identity-delivery-id": delivery,
      "x-identity-attempt": String(attempt),
    };
  }

  /** A delivery that meets no bad moment. */
  function goodDelivery(nth: number): string {
    const good = Array.from({ length: 100 }, (_, i) => `dlv_${i}`).filter((id) => badMomentOf(id, 1) === undefined);
    return good[nth] as string;
  }
});

describe("the people", () => {
  it("are the same for the same seed, and others for another", () => {
    expect(inventPeople(40, 1)).toEqual(inventPeople(40, 1));
    expect(inventPeople(40, 1)).not.toEqual(inventPeople(40, 2));
  });
});

describe("npm run demo", () => {
  const operatorKey = "nop_0123456789abcdefghij";
  const processes: ChildProcess[] = [];
  let drop = async (): Promise<void> => undefined;
  let address: string;

  beforeAll(async () => {
    const database = await createDatabase();
    drop = database.drop;
    const env = {
      NUNCIO_DATABASE_URL: database.url.reveal(),
      NUNCIO_SECRET_KEYS: TEST_SECRET_KEYS,
      NUNCIO_BOOTSTRAP_OPERATOR_KEY: operatorKey,
      NUNCIO_LISTEN: "127.0.0.1:0",
      NUNCIO_OPERATIONS_LISTEN: "127.0.0.1:0",
      NUNCIO_WORKER_OPERATIONS_LISTEN: "127.0.0.1:0",
      NUNCIO_RETRY_SCHEDULE: "200ms,500ms,1s,2s",
      NUNCIO_TARGET_ALLOW_HTTP: "true",
      NUNCIO_TARGET_ALLOWED_CIDRS: "127.0.0.0/8",
    };
    const [server] = [run("src/server.ts", env), run("src/worker.ts", env)];
    address = await startedAddress(server);
  });

  afterAll(async () => {
    for (const child of processes) await stop(child);
    await drop();
  });

  it("finds no difference between what was emitted and what was received", { timeout: 90_000 }, async () => {
    const demo = run("examples/demo.ts", {
      NUNCIO_DEMO_ADDRESS: address,
      NUNCIO_DEMO_OPERATOR_KEY: operatorKey,
      NUNCIO_DEMO_PEOPLE: "6",
    });
    const lines: string[] = [];
    for (const output of [demo.stdout, demo.stderr]) forEachLine(output, (line) => lines.push(line));
    const [code] = await once(demo, "close");
    expect({ code, output: lines.join("\n") }).toMatchObject({
      code: 0,
      output: expect.stringContaining("No differences"),
    });
  });

  function run(file: string, env: Record<string, string>): ChildProcess {
    const child = spawn(fileURLToPath(new URL("../../node_modules/.bin/node", import.meta.url)), [file], {
      cwd: fileURLToPath(new URL("../..", import.meta.url)),
      env: { PATH: process.env.PATH, ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    processes.push(child);
    return child;
  }

  async function startedAddress(server: ChildProcess): Promise<string> {
    const started = Promise.withResolvers<string>();
    const lines: string[] = [];
    for (const output of [server.stdout, server.stderr]) {
      forEachLine(output, (line) => {
        lines.push(line);
        if (line.includes('"server.started"')) started.resolve(JSON.parse(line).address);
      });
    }
    server.once("close", () => started.reject(new Error(`the server has ended:\n${lines.join("\n")}`)));
    return started.promise;
  }

  async function stop(child: ChildProcess): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const closed = once(child, "close");
    child.kill("SIGTERM");
    await closed;
  }
});

// One person who is created, changed, deactivated and deleted; the bodies are written out as the documentation has them.

const TIME = "2026-11-23T10:00:00.000Z";
const PERSON = { id: "u_1", displayName: "", status: "ACTIVE", createTime: TIME, updateTime: TIME } as const;
const ACTOR = { type: "user", id: "u_1" };
const SEQUENCES = [1, 2, 3, 4].map((n) => String(n).padStart(20, "0"));

const CHANGED = { ...PERSON, displayName: "Zoë", name: { givenName: "Z" }, emails: [] } as const;
const LEFT = { ...CHANGED, status: "DEACTIVATED", deactivateTime: TIME } as const;

const EVENTS: UserEvent[] = [
  { type: "user.created", user: PERSON, changed: [], previous: {} },
  { type: "user.updated", user: CHANGED, changed: ["displayName", "name.givenName"], previous: { displayName: "" } },
  { type: "user.deactivated", user: LEFT, changed: ["status", "deactivateTime"], previous: { status: "ACTIVE" } },
  { type: "user.deleted", user: { id: "u_1" }, changed: [], previous: {} },
].map((event, i) => ({ id: `evt_${i + 1}`, tenantId: "acme", occurTime: TIME, actor: ACTOR, ...event }) as UserEvent);

const NAMED = { id: "u_1", displayName: "Zoë", name: { givenName: "Z" }, createTime: TIME, updateTime: TIME };

const BODIES = [
  { type: "user.created", data: { user: PERSON, actor: ACTOR } },
  {
    type: "user.updated",
    data: {
      user: { ...NAMED, status: "ACTIVE" as const },
      changed: ["displayName", "name.givenName"],
      previous: { displayName: "", name: { givenName: null } },
      actor: ACTOR,
    },
  },
  {
    type: "user.deactivated",
    data: {
      user: { ...NAMED, status: "DEACTIVATED" as const, deactivateTime: TIME },
      changed: ["status", "deactivateTime"],
      previous: { status: "ACTIVE", deactivateTime: null },
      actor: ACTOR,
    },
  },
  { type: "user.deleted", data: { user: { id: "u_1" }, actor: ACTOR } },
].map((body, i) => ({
  specversion: "1.0",
  usersequence: SEQUENCES[i] as string,
  id: `evt_${i + 1}`,
  source: "/tenants/acme",
  subject: "users/u_1",
  time: TIME,
  datacontenttype: "application/json",
  dataschema: `urn:nuncio:schema:${body.type}:1`,
  tenantid: "acme",
  ...body,
})) satisfies Body[];

type Writable<T> = { -readonly [K in keyof T]: T[K] extends readonly (infer E)[] ? E[] : T[K] };
type TestInbox = Writable<Omit<Subscribed, "beliefs">> & {
  beliefs: Map<string, Subscribed["beliefs"] extends ReadonlyMap<string, infer V> ? V : never>;
};
type TestOutcome = Writable<Omit<Outcome, "people">> & {
  people: Map<string, readonly NonNullable<ReturnType<Outcome["people"]["get"]>>[number][]>;
  all: TestInbox;
  leavers: TestInbox;
};

/** Everything went well: a subscription to all events and one to the last two. */
function outcome(): TestOutcome {
  const all = inboxOf("acme/all", [], [0, 1, 2, 3]);
  const leavers = inboxOf("acme/leavers", ["user.deactivated", "user.deleted"], [2, 3]);
  const emissions = EVENTS.map((event, i) => ({
    event,
    state: "accepted" as const,
    deliveries: i < 2 ? 1 : 2,
    failedCalls: 0,
  }));
  return { emissions, subscriptions: [all, leavers], people: new Map([["acme", []]]), all, leavers };
}

function inboxOf(name: string, eventTypes: Subscribed["eventTypes"][number][], indexes: number[]): TestInbox {
  return {
    name,
    tenantId: "acme",
    eventTypes,
    contentType: "application/json",
    received: indexes.map((i) => ({
      webhookId: `evt_${i + 1}`,
      contentType: "application/json",
      body: BODIES[i] as Body,
    })),
    beliefs: new Map([["u_1", { type: "user.deleted", usersequence: SEQUENCES[3] as string, user: { id: "u_1" } }]]),
    faults: [],
    wasDisabled: false,
    listed: indexes.map((i) => ({ eventId: `evt_${i + 1}`, state: "DELIVERED" })),
  };
}

function altered(received: Received | undefined, alter: (body: Body) => Body, webhookId?: string): Received {
  const { body, ...rest } = received as Received;
  return { ...rest, ...(webhookId === undefined ? {} : { webhookId }), body: alter(body) };
}

function alteredUser(received: Received | undefined, change: object): Received {
  return altered(received, ({ data, ...rest }) => ({ ...rest, data: { ...data, user: { ...data.user, ...change } } }));
}

/** A stand-in for the other end of the wire, which keeps every event that it was asked to publish. */
function nuncioThatAnswers(judge: (event: Event) => void): { events: Client<typeof EventService>; published: Event[] } {
  const published: Event[] = [];
  const transport = createRouterTransport(({ service }) => {
    service(EventService, {
      publish: ({ event }) => {
        published.push(event as Event);
        judge(event as Event);
        return create(PublishResponseSchema, { eventId: event?.id ?? "", deliveries: 1 });
      },
    });
  });
  return { events: createClient(EventService, transport), published };
}

function exhausted(seconds: bigint): ConnectError {
  const retryInfo = { desc: RetryInfoSchema, value: { retryDelay: { seconds, nanos: 0 } } };
  return new ConnectError("", Code.ResourceExhausted, undefined, [retryInfo]);
}

function internal(): ConnectError {
  const errorInfo = { desc: ErrorInfoSchema, value: { reason: "INTERNAL", domain: "nuncio" } };
  return new ConnectError("", Code.Internal, undefined, [errorInfo]);
}

function toWords(event: Event | undefined): string {
  const type = Object.entries(EventType).find(([, value]) => value === event?.type)?.[0];
  return [type, event?.user?.id, event?.changed.join(",")].filter(Boolean).join(" ");
}
