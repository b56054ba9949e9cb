import { once } from "node:events";
import http from "node:http";
import http2 from "node:http2";
import net from "node:net";
import { createClient, type Transport } from "@connectrpc/connect";
import {
  connectNodeAdapter,
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Health, HealthCheckResponse_ServingStatus as ServingStatus } from "../../gen/grpc/health/v1/health_pb.ts";
import { healthService } from "../../src/rpc/health.ts";
import { openPort, type Port, type PortOptions, type RequestHandler } from "../../src/rpc/port.ts";

const CHECK = "/grpc.health.v1.Health/Check";
/** A frame of type 4 and length 0 (RFC 9113, section 6.5). */
const EMPTY_SETTINGS = Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0]);
const AN_HOUR_MS = 3_600_000;

const opened: { close(): unknown }[] = [];
afterAll(async () => {
  for (const { close } of opened.reverse()) await close();
});

async function open(handler: RequestHandler, options: Partial<PortOptions> = {}): Promise<Port> {
  const port = await openPort(handler, { host: "127.0.0.1", port: 0, ...options });
  opened.push({ close: () => port.close(0) });
  return port;
}

function healthHandler(isServing: () => boolean | Promise<boolean> = () => true): RequestHandler {
  return connectNodeAdapter({ routes: ({ service }) => void service(Health, healthService(isServing, [])) });
}

const baseUrl = ({ address }: Port) => `http://${address.host}:${address.port}`;

function dial({ address }: Port): net.Socket {
  const socket = net.connect(address.port, address.host);
  opened.push({ close: () => socket.destroy() });
  // Where the server destroys a connection, the client may see a reset before the close it waits for.
  socket.on("error", () => {});
  return socket;
}

async function readAll(socket: net.Socket): Promise<string> {
  let text = "";
  socket.setEncoding("latin1").on("data", (chunk) => {
    text += chunk;
  });
  await once(socket, "close");
  return text;
}

function http2Session(port: Port): Http2SessionManager {
  const session = new Http2SessionManager(baseUrl(port));
  opened.push({ close: () => session.abort() });
  return session;
}

async function* overHttp1(url: string): AsyncGenerator<Buffer> {
  const [response] = (await once(http.get(url), "response")) as [http.IncomingMessage];
  yield* response;
}

async function* overHttp2(url: string): AsyncGenerator<Buffer> {
  const session = http2.connect(url);
  opened.push({ close: () => session.destroy() });
  yield* session.request({ ":path": "/" });
}

/** A Check that is answered only when told. */
function heldHealthHandler() {
  const asked = Promise.withResolvers<void>();
  const release = Promise.withResolvers<boolean>();
  const handler = healthHandler(() => {
    asked.resolve();
    return release.promise;
  });
  return { handler, asked: asked.promise, release: () => release.resolve(true) };
}

describe("one port", () => {
  const agent = new http.Agent({ keepAlive: true });
  let port: Port;
  beforeAll(async () => {
    port = await open(healthHandler());
    opened.push({ close: () => agent.destroy() });
  });

  it.each<[string, (baseUrl: string) => Transport]>([
    [
      "Connect over HTTP/1.1",
      (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "1.1", nodeOptions: { agent } }),
    ],
    [
      "gRPC-Web over HTTP/1.1",
      (baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "1.1", nodeOptions: { agent } }),
    ],
    [
      "Connect over HTTP/2",
      (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "2", sessionManager: http2Session(port) }),
    ],
    [
      "gRPC-Web over HTTP/2",
      (baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "2", sessionManager: http2Session(port) }),
    ],
    ["gRPC over HTTP/2", (baseUrl) => createGrpcTransport({ baseUrl, sessionManager: http2Session(port) })],
  ])("answers %s, one message and a stream", async (_protocol, transport) => {
    const client = createClient(Health, transport(baseUrl(port)));
    expect(await client.check({})).toMatchObject({ status: ServingStatus.SERVING });
    const watching = client.watch({})[Symbol.asyncIterator]();
    expect((await watching.next()).value).toMatchObject({ status: ServingStatus.SERVING });
    await watching.return?.();
  });

  it("recognises an HTTP/2 preface that comes byte by byte", async () => {
    const socket = dial(port).setNoDelay();
    for (const byte of Buffer.concat([Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), EMPTY_SETTINGS])) {
      await new Promise((written) => socket.write(Buffer.of(byte), written));
    }
    const [frame] = (await once(socket, "data")) as [Buffer];
    expect(frame[3]).toBe(EMPTY_SETTINGS[3]);
    socket.destroy();
  });

  it.each(["POST", "PROPFIND"])("takes %s byte by byte for HTTP/1.1 as soon as it differs", async (method) => {
    const socket = dial(port).setNoDelay();
    const answer = readAll(socket);
    for (const character of `${method} / HTTP/1.1\r\nhost: nuncio\r\nconnection: close\r\n\r\n`) {
      await new Promise((written) => socket.write(character, written));
    }
    expect(await answer).toMatch(/^HTTP\/1\.1 40[04] /);
  });

  it("ends an HTTP/2 connection when its client has ended its half", async () => {
    const socket = dial(port);
    socket.write(Buffer.concat([Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), EMPTY_SETTINGS]));
    await once(socket, "data");
    socket.end();
    await readAll(socket);
  });

  it("bounds the streams of an HTTP/2 connection", async () => {
    const session = http2.connect(baseUrl(port));
    opened.push({ close: () => session.destroy() });
    const [settings] = (await once(session, "remoteSettings")) as [http2.Settings];
    expect(settings.maxConcurrentStreams).toBe(1_000);
    session.close();
    await once(session, "close");
  });

  it.each([
    ["no host (HTTP/1.0)", `POST ${CHECK} HTTP/1.0\r\n\r\n`],
    ["a host that no URL can hold", `POST ${CHECK} HTTP/1.1\r\nhost: [\r\nconnection: close\r\n\r\n`],
  ])("answers 400 to a request with %s, and lives on", async (_what, head) => {
    const socket = dial(port);
    socket.write(head);
    expect(await readAll(socket)).toMatch(/^HTTP\/1\.1 400 /);
  });

  it("answers 400 to an HTTP/2 request with an authority that no URL can hold, and lives on", async () => {
    const session = http2.connect(baseUrl(port));
    opened.push({ close: () => session.destroy() });
    const stream = session.request({ ":method": "POST", ":path": CHECK, ":authority": "[" });
    const [headers] = (await once(stream, "response")) as [http2.IncomingHttpHeaders];
    expect(headers[":status"]).toBe(400);
    session.close();
    await once(session, "close");
  });

  it.each([
    ["an undecided", "PRI * HT"],
    ["an HTTP/1.1", `POST ${CHECK} HTTP/1.1\r\nhost: nuncio\r\n`],
    ["an HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
  ])("outlives the reset of %s connection", async (_state, bytes) => {
    const socket = dial(port);
    await new Promise((written) => socket.write(bytes, written));
    socket.resetAndDestroy();
    await once(socket, "close");
    const response = await fetch(baseUrl(port) + CHECK, {
      method: "POST",
      headers: { "content-type": "application/json", connection: "close" },
      body: "{}",
    });
    expect(await response.json()).toEqual({ status: "SERVING" });
  });
});

describe("a client that takes its time", () => {
  it("loses a connection on which it says nothing", async () => {
    const socket = dial(await open(healthHandler(), { prefaceTimeoutMs: 50 }));
    expect(await readAll(socket)).toBe("");
  });

  it("loses a connection on which it stops within the preface", async () => {
    const socket = dial(await open(healthHandler(), { prefaceTimeoutMs: 50 }));
    socket.write("PRI * HTTP/2.0\r\n");
    expect(await readAll(socket)).toBe("");
  });

  it("is answered 408 when it stops within the head of a request", async () => {
    const socket = dial(await open(healthHandler(), { headersTimeoutMs: 50 }));
    socket.write(`POST ${CHECK} HTTP/1.1\r\nhost: nuncio\r\n`);
    expect(await readAll(socket)).toMatch(/^HTTP\/1\.1 408 /);
  });
});

describe("maxConnections", () => {
  it("drops a connection over the limit", async () => {
    const port = await open(healthHandler(), { maxConnections: 1 });
    const first = dial(port);
    first.write("GET / HTTP/1.1\r\nhost: nuncio\r\n\r\n");
    await once(first, "data");
    expect(await readAll(dial(port))).toBe("");
    first.destroy();
  });
});

describe("close", () => {
  it.each<[string, (port: Port) => Transport]>([
    ["HTTP/1.1", (port) => createConnectTransport({ baseUrl: baseUrl(port), httpVersion: "1.1" })],
    ["HTTP/2", (port) => createGrpcTransport({ baseUrl: baseUrl(port), sessionManager: http2Session(port) })],
  ])("lets a request in flight over %s end", async (_version, transport) => {
    const { handler, asked, release } = heldHealthHandler();
    const port = await open(handler);
    const response = createClient(Health, transport(port)).check({});
    await asked;
    const closed = port.close(AN_HOUR_MS);
    release();
    expect(await response).toMatchObject({ status: ServingStatus.SERVING });
    await closed;
  });

  it("tells the client of a request in flight that the connection ends", async () => {
    const { handler, asked, release } = heldHealthHandler();
    const port = await open(handler);
    const socket = dial(port);
    const answer = readAll(socket);
    socket.write(`POST ${CHECK} HTTP/1.1\r\nhost: n\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}`);
    await asked;
    const closed = port.close(AN_HOUR_MS);
    release();
    await closed;
    expect(await answer).toMatch(/^HTTP\/1\.1 200 OK\r\n(.+\r\n)*connection: close\r\n(.+\r\n)*\r\n.*SERVING/is);
  });

  it("ends a connection whose response had begun, once that response is whole", async () => {
    const begun = Promise.withResolvers<() => void>();
    const port = await open((_request, response) => {
      response.writeHead(200);
      response.write("first ");
      begun.resolve(() => response.end("last"));
    });
    const answer = http.get(baseUrl(port), { agent: new http.Agent({ keepAlive: true }) });
    const [response] = (await once(answer, "response")) as [http.IncomingMessage];
    const end = await begun.promise;
    const closed = port.close(AN_HOUR_MS);
    end();
    const chunks = await response.setEncoding("utf8").toArray();
    expect(chunks.join("")).toBe("first last");
    await closed;
  });

  it.each<[string, (url: string) => AsyncIterable<Buffer>]>([
    ["HTTP/1.1", overHttp1],
    ["HTTP/2", overHttp2],
  ])("writes a large response over %s whole although it had ended before", async (_version, get) => {
    const body = Buffer.alloc(32 * 1024 * 1024);
    const ended = Promise.withResolvers<void>();
    const port = await open((_request, response) => {
      response.end(body);
      ended.resolve();
    });
    const chunks = get(baseUrl(port))[Symbol.asyncIterator]();
    const first = chunks.next();
    await ended.promise;
    const closed = port.close(AN_HOUR_MS);
    let received = 0;
    for (let chunk = await first; !chunk.done; chunk = await chunks.next()) received += chunk.value.length;
    expect(received).toBe(body.length);
    await closed;
  });

  it("ends idle connections at once", async () => {
    const port = await open(healthHandler());
    const kept = dial(port);
    kept.write("GET / HTTP/1.1\r\nhost: nuncio\r\n\r\n");
    await once(kept, "data");
    const silent = dial(port);
    await once(silent, "connect");
    const session = http2Session(port);
    const client = createClient(Health, createGrpcTransport({ baseUrl: baseUrl(port), sessionManager: session }));
    await client.check({});
    await Promise.all([port.close(AN_HOUR_MS), readAll(kept), readAll(silent)]);
    expect(session.state()).toBe("closed");
  });

  it("destroys what is left when the grace ends", async () => {
    const { handler, asked } = heldHealthHandler();
    const port = await open(handler);
    const transport = createGrpcTransport({ baseUrl: baseUrl(port), sessionManager: http2Session(port) });
    const response = createClient(Health, transport).check({});
    await asked;
    await Promise.all([port.close(20), expect(response).rejects.toThrow()]);
  });

  it("accepts no more connections", async () => {
    const port = await open(healthHandler());
    await port.close(AN_HOUR_MS);
    await expect(once(net.connect(port.address.port, port.address.host), "connect")).rejects.toMatchObject({
      code: "ECONNREFUSED",
    });
  });

  it("can be called again, to shorten the grace", async () => {
    const { handler, asked } = heldHealthHandler();
    const port = await open(handler);
    const transport = createConnectTransport({ baseUrl: baseUrl(port), httpVersion: "1.1" });
    const response = createClient(Health, transport).check({});
    await asked;
    const first = port.close(AN_HOUR_MS);
    await Promise.all([first, port.close(0), expect(response).rejects.toThrow()]);
    await port.close(AN_HOUR_MS);
  });
});

describe("an address that can't be had", () => {
  it("is named, with what to do, when it is in use", async () => {
    const { address } = await open(healthHandler());
    await expect(openPort(healthHandler(), address)).rejects.toThrow(
      `cannot listen on 127.0.0.1:${address.port}: the address is in use; stop what holds it, or change NUNCIO_LISTEN`,
    );
  });

  it("is named, with what to do, when it is not of this machine", async () => {
    await expect(openPort(healthHandler(), { host: "203.0.113.1", port: 0 })).rejects.toThrow(
      /^cannot listen on 203\.0\.113\.1:0: .*EADDRNOTAVAIL.*; change NUNCIO_LISTEN to an address of this machine$/,
    );
  });
});
