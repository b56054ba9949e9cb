import { once } from "node:events";
import http from "node:http";
import http2 from "node:http2";
import { gzipSync } from "node:zlib";
import { create, fromJson, toBinary } from "@bufbuild/protobuf";
import { type ConnectError, createClient } from "@connectrpc/connect";
import { errorFromJsonBytes } from "@connectrpc/connect/protocol-connect";
import { findTrailerError } from "@connectrpc/connect/protocol-grpc";
import { connectNodeAdapter, createGrpcTransport } from "@connectrpc/connect-node";
import { describe, expect, it } from "vitest";
import { Health, HealthCheckResponse_ServingStatus as ServingStatus } from "../../gen/grpc/health/v1/health_pb.ts";
import { ServerReflection } from "../../gen/grpc/reflection/v1/reflection_pb.ts";
import { GetEventRequestSchema, PublishRequestSchema } from "../../gen/nuncio/v1/event_service_pb.ts";
import type { RpcDependencies } from "../../src/rpc/dependencies.ts";
import { openPort } from "../../src/rpc/port.ts";
import { registerRoutes } from "../../src/rpc/routes.ts";
import { answerUnknownPath } from "../../src/rpc/unknown-path.ts";
import { GroupCommit, type GroupCommitOptions } from "../../src/store/outbox/group-commit.ts";
import { cleanUp } from "../support/clean-up.ts";
import { openTestDatabase, useDatabase } from "../support/database.ts";
import { describeFailure, type Failure } from "../support/errors.ts";
import { newTenant } from "../support/fixtures.ts";
import { createDependencies, frame, MAX_REQUEST_BYTES, OPERATOR_KEY } from "../support/service.ts";

const db = useDatabase();

const PUBLISH = "/nuncio.v1.EventService/Publish";
const BATCH_PUBLISH = "/nuncio.v1.EventService/BatchPublish";
const GET_EVENT = "/nuncio.v1.EventService/GetEvent";
const CREATE = "/nuncio.v1.WebhookSubscriptionService/CreateWebhookSubscription";
const BEARER = { authorization: `Bearer ${OPERATOR_KEY}` };

type Answer = { readonly status: number; readonly header: Headers; readonly trailer: Headers; readonly body: Buffer };
type Request = { readonly path: string; readonly header: Record<string, string>; readonly body: Buffer };

/** The service on a port of its own, put together as the server puts it together. */
async function serve(changes: Partial<RpcDependencies> = {}): Promise<string> {
  const routes = registerRoutes(createDependencies(db, db.server, changes), {
    isServing: () => true,
    reflection: true,
  });
  const handler = connectNodeAdapter({ ...frame(), routes, fallback: answerUnknownPath });
  const port = await openPort(handler, { host: "127.0.0.1", port: 0 });
  cleanUp(() => port.close(0));
  return `http://127.0.0.1:${port.address.port}`;
}

let served: Promise<string> | undefined;
const service = () => {
  served ??= serve();
  return served;
};

async function overHttp1(baseUrl: string, { path, header, body }: Request): Promise<Answer> {
  const request = http.request(baseUrl + path, { method: "POST", headers: header, agent: false });
  // Whoever is refused before its body was read may find the connection closed while it still writes.
  request.on("error", () => undefined);
  request.end(body);
  const [response] = (await once(request, "response")) as [http.IncomingMessage];
  const chunks = await response.toArray();
  return {
    status: response.statusCode ?? 0,
    header: toHeaders(response.headers),
    trailer: toHeaders(response.trailers),
    body: Buffer.concat(chunks),
  };
}

async function overHttp2(baseUrl: string, { path, header, body }: Request): Promise<Answer> {
  const session = http2.connect(baseUrl);
  const stream = session.request({ ":method": "POST", ":path": path, ...header });
  let trailer = new Headers();
  stream.once("trailers", (trailers) => {
    trailer = toHeaders(trailers);
  });
  stream.end(body);
  const [head] = (await once(stream, "response")) as [http2.IncomingHttpHeaders & { ":status": number }];
  const chunks = await stream.toArray();
  session.destroy();
  return { status: head[":status"], header: toHeaders(head), trailer, body: Buffer.concat(chunks) };
}

function toHeaders(from: http.IncomingHttpHeaders | NodeJS.Dict<string>): Headers {
  const headers = new Headers();
  for (const [name, value] of Object.entries(from)) if (!name.startsWith(":")) headers.set(name, String(value));
  return headers;
}

function enveloped(message: Uint8Array): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

const ofJson = ({ body }: Answer) => errorFromJsonBytes(body, undefined, new Error("no error") as ConnectError);
const ofTrailer = ({ header, trailer }: Answer) => findTrailerError(trailer) ?? findTrailerError(header);

/** The last envelope of a gRPC-Web answer is its trailer; an answer without a body has it in its header. */
function ofWebTrailer({ header, body }: Answer): ConnectError | undefined {
  let last = body;
  for (let rest = body; rest.length > 5; rest = rest.subarray(5 + rest.readUInt32BE(1))) last = rest;
  const trailer = new Headers();
  for (const line of last.subarray(5).toString().split("\r\n")) {
    const [, name, value] = /^([^:]+): *(.*)$/.exec(line) ?? [];
    if (name !== undefined && value !== undefined) trailer.set(name, value);
  }
  return findTrailerError(last.length > 5 ? trailer : header);
}

type Protocol = {
  readonly send: (baseUrl: string, request: Request) => Promise<Answer>;
  readonly header: Record<string, string>;
  readonly frame: (message: Uint8Array) => Buffer;
  readonly error: (answer: Answer) => ConnectError | undefined;
};

const connectJson = { header: { "content-type": "application/json" }, frame: Buffer.from, error: ofJson };
const connectBinary = { header: { "content-type": "application/proto" }, frame: Buffer.from, error: ofJson };
const grpc = {
  header: { "content-type": "application/grpc+proto", te: "trailers" },
  frame: enveloped,
  error: ofTrailer,
};
const grpcWeb = {
  header: { "content-type": "application/grpc-web+proto" },
  frame: enveloped,
  error: ofWebTrailer,
};

const PROTOCOLS: Record<string, Protocol> = {
  "Connect with JSON over HTTP/1.1": { send: overHttp1, ...connectJson },
  "Connect with binary messages over HTTP/1.1": { send: overHttp1, ...connectBinary },
  "Connect with JSON over HTTP/2": { send: overHttp2, ...connectJson },
  "Connect with binary messages over HTTP/2": { send: overHttp2, ...connectBinary },
  "gRPC over HTTP/2": { send: overHttp2, ...grpc },
  "gRPC with JSON over HTTP/2": {
    send: overHttp2,
    ...grpc,
    header: { ...grpc.header, "content-type": "application/grpc+json" },
  },
  "gRPC-Web over HTTP/1.1": { send: overHttp1, ...grpcWeb },
  "gRPC-Web over HTTP/2": { send: overHttp2, ...grpcWeb },
};

const sendsJson = ({ header }: Protocol) => header["content-type"]?.includes("json") ?? false;

const NO_BYTES = Buffer.alloc(0);

function failureIn(protocol: Protocol, answer: Answer): Failure {
  const error = protocol.error(answer);
  if (error === undefined) throw new Error(`no error in ${answer.status} ${answer.body.toString()}`);
  return describeFailure(error);
}

/** Sends JSON with Connect over HTTP/1.1, as curl does. */
async function post(
  path: string,
  body: unknown,
  { baseUrl, header = BEARER }: { baseUrl?: string; header?: Record<string, string> } = {},
) {
  const response = await fetch((baseUrl ?? (await service())) + path, {
    method: "POST",
    headers: { "content-type": "application/json", ...header },
    body: body instanceof Uint8Array ? new Uint8Array(body) : JSON.stringify(body),
  });
  const bytes = Buffer.from(await response.arrayBuffer());
  return { status: response.status, text: bytes.toString(), bytes };
}

async function refusal(...args: Parameters<typeof post>) {
  const { status, bytes } = await post(...args);
  return { status, ...describeFailure(errorFromJsonBytes(bytes, undefined, new Error("no error") as ConnectError)) };
}

const sound = (tenantId = newTenant()) => ({
  event: { tenantId, type: "EVENT_TYPE_USER_CREATED", user: { id: "u_1", status: "USER_STATUS_ACTIVE" } },
});

describe.each(Object.entries(PROTOCOLS))("%s", (_name, protocol) => {
  const send = async (body: Buffer, header: Record<string, string> = BEARER, baseUrl?: string, path = PUBLISH) =>
    protocol.send(baseUrl ?? (await service()), { path, header: { ...protocol.header, ...header }, body });

  const soundBody = () => {
    const json = sound();
    if (sendsJson(protocol)) return protocol.frame(Buffer.from(JSON.stringify(json)));
    return protocol.frame(toBinary(PublishRequestSchema, fromJson(PublishRequestSchema, json)));
  };

  it("answers bytes that are no message as MALFORMED_REQUEST", async () => {
    const answer = await send(protocol.frame(Buffer.from("\xff\xff{rubbish", "latin1")));
    expect(failureIn(protocol, answer)).toMatchObject({
      code: "InvalidArgument",
      reason: "MALFORMED_REQUEST",
      fields: [],
      retry: false,
    });
  });

  it("answers a request that is too large as REQUEST_TOO_LARGE, without a hint to try again", async () => {
    const answer = await send(protocol.frame(Buffer.alloc(MAX_REQUEST_BYTES + 1, " ")));
    expect(failureIn(protocol, answer)).toMatchObject({
      code: "ResourceExhausted",
      reason: "REQUEST_TOO_LARGE",
      retry: false,
    });
  });

  it.each<[string, Record<string, string>]>([
    ["no credential", {}],
    ["a wrong key", { authorization: "Bearer wrong" }],
    ["a longer key", { authorization: `Bearer ${OPERATOR_KEY}x` }],
    ["an empty key", { authorization: "Bearer " }],
    ["another scheme", { authorization: `Basic ${OPERATOR_KEY}` }],
    ["the bare key", { authorization: OPERATOR_KEY }],
  ])("answers %s as INVALID_CREDENTIAL, also when the message is rubbish", async (_what, header) => {
    for (const body of [soundBody(), protocol.frame(Buffer.from("{rubbish"))]) {
      expect(failureIn(protocol, await send(body, header))).toMatchObject({
        code: "Unauthenticated",
        reason: "INVALID_CREDENTIAL",
        retry: false,
      });
    }
  });

  it("answers an RPC that there is not as RPC_NOT_FOUND", async () => {
    for (const path of ["/nuncio.v1.EventService/NoSuch", "/nuncio.v9.Nothing/At/All", "/"]) {
      const answer = await send(protocol.frame(NO_BYTES), BEARER, undefined, path);
      const isGrpc = protocol.header["content-type"]?.startsWith("application/grpc");
      expect(answer.status).toBe(isGrpc ? 200 : 404);
      if (isGrpc) expect(answer.header.get("grpc-status")).toBe("12");
      const error = isGrpc ? findTrailerError(answer.header) : ofJson(answer);
      expect(describeFailure(error)).toMatchObject({ code: "Unimplemented", reason: "RPC_NOT_FOUND", retry: false });
    }
  });

  it("answers an unexpected error as INTERNAL with a request id, and tells nothing of it", async () => {
    const cause = Object.assign(new Error("canary_message INSERT INTO nuncio.events"), {
      code: "42703",
      query: "canary_query SELECT",
      parameters: ["canary_parameter"],
    });
    const baseUrl = await serve({ groupCommit: groupCommitWith({ append: () => Promise.reject(cause) }) });
    const answer = await send(soundBody(), BEARER, baseUrl);
    const error = protocol.error(answer) as ConnectError;
    expect(describeFailure(error)).toMatchObject({
      code: "Internal",
      reason: "INTERNAL",
      retry: false,
      message: expect.stringMatching(/request id [0-9a-f-]{36}$/),
    });
    const details = error.details.map((detail) =>
      "value" in detail ? Buffer.from(detail.value as Uint8Array).toString() : "",
    );
    const said = [answer.body.toString(), ...answer.header.values(), ...answer.trailer.values(), ...details].join("\n");
    expect(said).toMatch(/internal error|internal%20error/);
    expect(said).not.toMatch(/canary|INSERT|SELECT|nuncio\.events|42703/);
  });

  it("answers a store that is away as STORE_UNAVAILABLE, and says when to try again", async () => {
    const closed = openTestDatabase(db.url, "nuncio_server");
    await closed.close();
    const baseUrl = await serve(createDependencies(db, closed));
    expect(failureIn(protocol, await send(soundBody(), BEARER, baseUrl))).toMatchObject({
      code: "Unavailable",
      reason: "STORE_UNAVAILABLE",
      retry: true,
    });
    const look = { tenantId: "t", id: "e" };
    const request = sendsJson(protocol)
      ? Buffer.from(JSON.stringify(look))
      : toBinary(GetEventRequestSchema, create(GetEventRequestSchema, look));
    expect(failureIn(protocol, await send(protocol.frame(request), BEARER, baseUrl, GET_EVENT))).toMatchObject({
      code: "Unavailable",
      reason: "STORE_UNAVAILABLE",
      retry: true,
    });
  });

  it("answers a full queue as SERVER_BUSY, and says when to try again", async () => {
    const baseUrl = await serve({ groupCommit: groupCommitWith({ maxQueuedRows: 0 }) });
    expect(failureIn(protocol, await send(soundBody(), BEARER, baseUrl))).toMatchObject({
      code: "ResourceExhausted",
      reason: "SERVER_BUSY",
      retry: true,
    });
  });

  it("answers no error to what is sound", async () => {
    const answer = await send(soundBody());
    expect(answer.status).toBe(200);
    if (!protocol.header["content-type"]?.startsWith("application/grpc")) return;
    expect(protocol.error(answer)).toBeUndefined();
  });
});

function groupCommitWith(changes: Partial<GroupCommitOptions>): GroupCommit {
  return new GroupCommit({
    nowMs: () => performance.now(),
    append: async () => [],
    onCommitted: () => undefined,
    writers: 1,
    groupRows: 1,
    maxQueuedRows: 10,
    maxQueuedBytes: 1_000_000,
    timeoutMs: 10_000,
    ...changes,
  });
}

describe("faulty JSON", () => {
  it("[B56] comes back with unknown fields, unknown enum names and what is wrong with the rest in one answer", async () => {
    const failure = await refusal(PUBLISH, {
      extra: true,
      event: {
        id: "a.b",
        tenantId: newTenant(),
        type: "EVENT_TYPE_USER_EXPLODED",
        surprise: 1,
        user: {
          id: "",
          status: "SLEEPING",
          name: { middleName: "x" },
          emails: [{ value: "" }, { adress: "x", value: "a@b" }],
          attributes: { password: "x" },
        },
      },
    });
    expect(failure).toMatchObject({ status: 400, code: "InvalidArgument", reason: "INVALID_EVENT", retry: false });
    expect([...failure.fields].sort()).toEqual(
      [
        "event.id",
        "event.surprise",
        "event.type",
        'event.user.attributes["password"]',
        "event.user.emails[0].value",
        "event.user.emails[1].adress",
        "event.user.id",
        "event.user.name.middleName",
        "event.user.status",
        "extra",
      ].sort(),
    );
  });

  it("[B56] comes back with every value of the wrong kind and what is wrong with the rest, by proto paths", async () => {
    const failure = await refusal(PUBLISH, {
      event: {
        id: "a.b",
        tenantId: 7,
        type: true,
        occurTime: "yesterday",
        changed: "status",
        user: {
          id: {},
          displayName: 1,
          emails: { value: "x" },
          phoneNumbers: [[], { value: "" }],
          groupIds: [1, "ok", ""],
          attributes: JSON.parse('{"a":1,"password":"x","__proto__":"x"}'),
        },
        extra: null,
      },
    });
    expect(failure).toMatchObject({ status: 400, code: "InvalidArgument", reason: "INVALID_EVENT" });
    expect([...failure.fields].sort()).toEqual(
      [
        "event.changed",
        "event.extra",
        "event.occur_time",
        "event.tenant_id",
        "event.type",
        "event.id",
        'event.user.attributes["__proto__"]',
        'event.user.attributes["a"]',
        'event.user.attributes["password"]',
        "event.user.display_name",
        "event.user.emails",
        "event.user.group_ids[0]",
        "event.user.group_ids[2]",
        "event.user.id",
        "event.user.phone_numbers[0]",
        "event.user.phone_numbers[1].value",
      ].sort(),
    );
  });

  it("[B56] comes back with all faults of a subscription", async () => {
    const failure = await refusal(CREATE, {
      tenantId: newTenant(),
      requestId: "no spaces",
      webhookSubscription: {
        url: "ftp://example.com/",
        eventTypes: ["EVENT_TYPE_USER_CREATED", "EVENT_TYPE_USER_TICKLED"],
        ordering: "SIDEWAYS",
        headers: { host: "x" },
        secret: "x",
      },
      nothing: {},
    });
    expect(failure).toMatchObject({ status: 400, code: "InvalidArgument", reason: "INVALID_REQUEST", retry: false });
    expect([...failure.fields].sort()).toEqual(
      [
        "nothing",
        "request_id",
        "webhook_subscription.event_types[1]",
        'webhook_subscription.headers["host"]',
        "webhook_subscription.ordering",
        "webhook_subscription.secret",
        "webhook_subscription.url",
      ].sort(),
    );
  });

  it("[B56] comes back for each event of a batch with all faults of that event", async () => {
    const { event } = sound();
    const events = [event, { ...event, id: ".", more: 1 }, { ...event, x: 1 }, { ...event, type: "NONE" }];
    const { status, text } = await post(BATCH_PUBLISH, { events });
    const results: { failure?: { code: number; details: { fieldViolations?: { field: string }[] }[] } }[] =
      JSON.parse(text).results;
    expect([status, ...results.map(({ failure }) => failure?.code)]).toEqual([200, undefined, 3, 3, 3]);
    const fields = results.map(({ failure }) =>
      failure?.details.flatMap(({ fieldViolations = [] }) => fieldViolations.map(({ field }) => field)).sort(),
    );
    expect(fields).toEqual([undefined, ["events[1].id", "events[1].more"], ["events[2].x"], ["events[3].type"]]);
  });

  it("[B56] comes back for one event of a large batch whose answer is compressed", async () => {
    const { event } = sound();
    const events = [...Array.from({ length: 100 }, () => event), { ...event, x: 1 }];
    const header = { ...BEARER, "accept-encoding": "gzip" };
    const { status, text } = await post(BATCH_PUBLISH, { events }, { header });
    expect(status).toBe(200);
    expect(JSON.parse(text).results).toHaveLength(101);
  });

  it("writes nothing", async () => {
    const body = sound();
    await refusal(PUBLISH, { ...body, extra: true });
    const rows = await db.admin`SELECT FROM nuncio.tenants WHERE tenant_id = ${body.event.tenantId}`;
    expect(rows).toHaveLength(0);
  });

  it.each([
    ["an array", []],
    ["a number", 7],
    ["a text", "event"],
  ])("is named as a whole when it is %s", async (_what, body) => {
    expect(await refusal(PUBLISH, body)).toMatchObject({
      code: "InvalidArgument",
      fields: expect.arrayContaining(["$"]),
    });
  });

  it("has its reason also when it is compressed", async () => {
    const header = { ...BEARER, "content-encoding": "gzip" };
    const { status } = await post(PUBLISH, gzipSync(JSON.stringify(sound())), { header });
    expect(status).toBe(200);
    const unknown = await refusal(PUBLISH, gzipSync(JSON.stringify({ ...sound(), extra: true })), { header });
    expect(unknown).toMatchObject({ status: 400, code: "InvalidArgument", reason: "MALFORMED_REQUEST", retry: false });
  });

  it("has its reason also when what says it is compressed is not", async () => {
    const header = { ...BEARER, "content-encoding": "gzip" };
    expect(await refusal(PUBLISH, Buffer.from("not gzip"), { header })).toMatchObject({
      status: 400,
      code: "InvalidArgument",
      reason: "MALFORMED_REQUEST",
    });
  });

  it("is too large by what it holds, not by what was sent", async () => {
    const header = { ...BEARER, "content-encoding": "gzip" };
    const bomb = gzipSync(Buffer.alloc(MAX_REQUEST_BYTES + 1, " "));
    expect(bomb.length).toBeLessThan(10_000);
    expect(await refusal(PUBLISH, bomb, { header })).toMatchObject({
      code: "ResourceExhausted",
      reason: "REQUEST_TOO_LARGE",
      retry: false,
    });
  });
});

describe("text that Postgres cannot store", () => {
  it.each([
    ["an event id to look up", GET_EVENT, { tenantId: "t", id: "a\0b" }],
    ["an event id to filter by", "/nuncio.v1.DeliveryService/ListDeliveries", { tenantId: "t", eventId: "a\0b" }],
    ["a user id to filter by", "/nuncio.v1.DeliveryService/ListDeliveries", { tenantId: "t", userId: "a\0b" }],
  ])("is no fault of ours in %s", async (_what, path, body) => {
    const { text } = await post(path, body);
    expect(text).not.toContain("internal");
  });
});

describe("without credential", () => {
  it("answers health and reflection", async () => {
    const transport = createGrpcTransport({ baseUrl: await service() });
    expect(await createClient(Health, transport).check({})).toMatchObject({ status: ServingStatus.SERVING });
    const answers = createClient(ServerReflection, transport).serverReflectionInfo(
      (async function* () {
        yield { messageRequest: { case: "listServices" as const, value: "" } };
      })(),
    );
    const { value } = await answers[Symbol.asyncIterator]().next();
    expect(value?.messageResponse.case).toBe("listServicesResponse");
  });
});

describe("batch", () => {
  it("fails as a whole on an unexpected error, and tells nothing of it", async () => {
    const append = () => Promise.reject(new Error("canary_message"));
    const baseUrl = await serve({ groupCommit: groupCommitWith({ append }) });
    const answer = await post(BATCH_PUBLISH, { events: [sound().event] }, { baseUrl });
    expect(answer.status).toBe(500);
    expect(answer.text).not.toContain("canary");
  });

  it("answers in JSON what became of each event, also when one has failed", async () => {
    const { event } = sound();
    const { status, text } = await post(BATCH_PUBLISH, { events: [event, { ...event, id: "." }] });
    expect([status, JSON.parse(text).results]).toMatchObject([
      200,
      [{ success: { eventId: expect.any(String) } }, { failure: { code: 3 } }],
    ]);
  });

  it("answers each event as STORE_UNAVAILABLE with when to try again, while the store is away", async () => {
    const trouble = Object.assign(new Error("gone"), { code: "57P01" });
    const baseUrl = await serve({ groupCommit: groupCommitWith({ append: () => Promise.reject(trouble) }) });
    const answer = await post(BATCH_PUBLISH, { events: [sound().event, { user: {} }] }, { baseUrl });
    const { results } = JSON.parse(answer.text);
    expect(results).toMatchObject([
      {
        failure: {
          code: 14,
          details: [
            { "@type": "type.googleapis.com/google.rpc.ErrorInfo", reason: "STORE_UNAVAILABLE", domain: "nuncio" },
            { "@type": "type.googleapis.com/google.rpc.RetryInfo", retryDelay: "1s" },
          ],
        },
      },
      { failure: { code: 3 } },
    ]);
  });
});
