import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer as createTlsServer } from "node:https";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type AddressPolicy, judgeAnswer, parseAllowedCidrs } from "../../src/core/address-policy.ts";
import { keepConnections } from "../../src/delivery/connections.ts";
import { createResolver, type Resolve, shareAnswers } from "../../src/delivery/resolver.ts";
import { type OutgoingRequest, send, toDestination } from "../../src/delivery/send.ts";
import { cleanUp } from "../support/clean-up.ts";
import { openAnswering, openHostile } from "../support/hostile-receiver.ts";
import { openReceiver } from "../support/receiver.ts";
import { LOOPBACK_POLICY } from "../support/service.ts";

const nowMs = () => performance.now();
const connections = keepConnections(nowMs, 5_000);
afterAll(() => connections.close());

type Options = { resolve?: Resolve; policy?: AddressPolicy } & Partial<Omit<OutgoingRequest, "destination">>;

function post(url: string, { resolve = createResolver(1_000), policy = LOOPBACK_POLICY, ...request }: Options = {}) {
  return send(
    { resolve, connections, judge: (addresses) => judgeAnswer(addresses, policy), nowMs },
    {
      destination: toDestination(new URL(url)),
      headers: ["x-test", "1"],
      body: Buffer.from("{}"),
      timeoutMs: 5_000,
      maxResponseBytes: 2_048,
      ...request,
    },
  );
}

describe("a status", () => {
  it("[B19] of 2xx alone acknowledges", async () => {
    for (const [status, kind] of [
      [200, "delivered"],
      [204, "delivered"],
      [299, "delivered"],
      [400, "http_status"],
      [503, "http_status"],
    ] as const) {
      const receiver = await openReceiver((_, response) => response.writeHead(status).end());
      expect((await post(receiver.url)).outcome).toMatchObject({ kind, httpStatus: status });
    }
  });

  it("[B19] of 3xx is recorded and never followed, also when it points inside", async () => {
    const inside = await openReceiver();
    const receiver = await openReceiver((_, response) => response.writeHead(307, { location: inside.url }).end());
    expect((await post(receiver.url)).outcome).toMatchObject({ kind: "redirect", httpStatus: 307 });
    expect(inside.received).toHaveLength(0);
    expect(receiver.received).toHaveLength(1);
  });

  it("decides although the body after it breaks off, and keeps the excerpt of a failure", async () => {
    const cut = await openAnswering("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this");
    expect((await post(cut.url)).outcome).toEqual({ kind: "delivered", httpStatus: 200 });
    const failed = await openAnswering("HTTP/1.1 500 Oops\r\ncontent-length: 100\r\n\r\nonly this");
    expect((await post(failed.url)).outcome).toMatchObject({
      kind: "http_status",
      httpStatus: 500,
      excerpt: "only this",
    });
  });

  it("keeps the first KiB of a failed answer and no more", async () => {
    const receiver = await openReceiver((_, response) => response.writeHead(500).end("é".repeat(1_000)));
    const { outcome } = await post(receiver.url);
    expect(outcome.kind === "http_status" && outcome.excerpt).toBe("é".repeat(512));
  });
});

describe("a failure", () => {
  it("[B20] of DNS is dns_failed", async () => {
    const resolve: Resolve = () => Promise.reject(Object.assign(new Error("no"), { code: "ENOTFOUND" }));
    expect((await post("http://gone.example.com/", { resolve })).outcome).toEqual({
      kind: "dns_failed",
      detail: "dns: ENOTFOUND",
    });
  });

  it("[B20] to connect is connect_failed", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    await new Promise((resolve) => server.close(resolve));
    expect((await post(`http://127.0.0.1:${port}/`)).outcome).toMatchObject({
      kind: "connect_failed",
      detail: "connect: ECONNREFUSED",
    });
  });

  it("[B20] of TLS is tls_failed: a certificate that nobody vouches for, and a server without TLS", async () => {
    const folder = mkdtempSync(join(tmpdir(), "nuncio-tls-"));
    const [key, cert] = [join(folder, "key.pem"), join(folder, "cert.pem")];
    execFileSync(
      "openssl",
      [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
        key,
        "-out",
        cert,
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
      ],
      { stdio: "ignore" },
    );
    const server = createTlsServer({ key: readFileSync(key), cert: readFileSync(cert) }, (_, response) =>
      response.end(),
    );
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    rmSync(folder, { recursive: true });
    cleanUp(() => server.close());
    const { port } = server.address() as AddressInfo;
    expect((await post(`https://127.0.0.1:${port}/`)).outcome).toMatchObject({
      kind: "tls_failed",
      detail: "connect: DEPTH_ZERO_SELF_SIGNED_CERT",
    });
    const plain = await openReceiver();
    expect((await post(`https://127.0.0.1:${plain.port}/`)).outcome.kind).toBe("tls_failed");
  });

  it("[B20] by a reset is connection_reset, and nothing is sent a second time", async () => {
    const raw = await openHostile("resetting");
    expect((await post(raw.url)).outcome.kind).toBe("connection_reset");
    const closed = await openHostile("hangingUp");
    expect((await post(closed.url)).outcome.kind).toBe("connection_reset");
    expect([raw.accepted(), closed.accepted()]).toEqual([1, 1]);
  });

  it("[B20] by what is not HTTP is protocol_error", async () => {
    for (const text of ["SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\nbad header\r\n\r\n"]) {
      expect((await post((await openAnswering(text)).url)).outcome.kind).toBe("protocol_error");
    }
  });

  it("[B20] by time is timeout, with the phase that it came in", async () => {
    const never: Resolve = () => new Promise(() => undefined);
    expect((await post("http://slow.example.com/", { resolve: never, timeoutMs: 50 })).outcome).toEqual({
      kind: "timeout",
      detail: "dns: no end within 50 ms",
    });
    const silent = await openHostile("silent");
    expect((await post(silent.url, { timeoutMs: 100 })).outcome).toEqual({
      kind: "timeout",
      detail: "first_byte: no end within 100 ms",
    });
    const tls = await post(silent.url.replace("http:", "https:"), { timeoutMs: 100 });
    expect(tls.outcome).toEqual({ kind: "timeout", detail: "connect: no end within 100 ms" });
  });
});

describe("a hostile answer", () => {
  it("[B21] that never ends is cut off at the byte cap, and its socket with it", async () => {
    const raw = await openHostile("endless");
    const sent = await post(raw.url);
    expect(sent.outcome).toMatchObject({ kind: "http_status", httpStatus: 500 });
    for (const socket of raw.sockets) {
      if (!socket.closed) await new Promise((resolve) => socket.once("close", resolve));
    }
  });

  it("[B21] that drips is ended by the one deadline, by its status if that has come", async () => {
    const body = await openHostile("drippingBody");
    expect((await post(body.url, { timeoutMs: 150 })).outcome).toMatchObject({ kind: "http_status", httpStatus: 500 });
    const headers = await openHostile("drippingHeaders");
    expect((await post(headers.url, { timeoutMs: 150 })).outcome.kind).toBe("timeout");
  });

  it("[B21] with a bomb of headers is a protocol error", async () => {
    const raw = await openHostile("headerBomb");
    expect((await post(raw.url)).outcome).toMatchObject({
      kind: "protocol_error",
      detail: "first_byte: UND_ERR_HEADERS_OVERFLOW",
    });
  });

  it("[B21] leaves no socket and no timer behind", async () => {
    const silent = await openHostile("silent");
    await Promise.all(Array.from({ length: 20 }, () => post(silent.url, { timeoutMs: 50 })));
    const closed = [...silent.sockets].map(
      (socket) => socket.destroyed || new Promise((resolve) => socket.once("close", resolve).resume()),
    );
    await Promise.all(closed);
    expect(silent.accepted()).toBeGreaterThan(0);
  });
});

describe("an address", () => {
  const answers =
    (...addresses: string[]): Resolve =>
    () =>
      Promise.resolve(addresses);

  it("[B36] in an answer that mixes allowed and refused ones is refused, and no connection is made", async () => {
    const receiver = await openReceiver();
    const url = `http://mixed.example.com:${receiver.port}/`;
    for (const mixed of [["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["127.0.0.1", "fd00::1"], []]) {
      expect((await post(url, { resolve: answers(...mixed) })).outcome.kind).toBe("address_refused");
    }
    expect(receiver.connections()).toBe(0);
  });

  it("[B36] that was checked is the one that is dialled: the name is not resolved again", async () => {
    const receiver = await openReceiver();
    let asked = 0;
    const rebinding: Resolve = () => Promise.resolve([asked++ === 0 ? "127.0.0.1" : "127.0.0.2"]);
    expect((await post(`http://rebind.example.com:${receiver.port}/`, { resolve: rebinding })).outcome.kind).toBe(
      "delivered",
    );
    expect(asked).toBe(1);
    expect(receiver.received[0]?.headers.host).toBe(`rebind.example.com:${receiver.port}`);
  });

  it("[B36] of a kept connection does not outlive a verdict that has changed", async () => {
    const receiver = await openReceiver();
    const url = `http://turns.example.com:${receiver.port}/`;
    expect((await post(url, { resolve: answers("127.0.0.1") })).outcome.kind).toBe("delivered");
    expect((await post(url, { resolve: answers("10.0.0.1") })).outcome.kind).toBe("address_refused");
    const strict = { allowHttp: true, allowedCidrs: parseAllowedCidrs("") };
    expect((await post(url, { resolve: answers("127.0.0.1"), policy: strict })).outcome.kind).toBe("address_refused");
    expect(receiver.received).toHaveLength(1);
  });

  it("[B36] as a literal is judged like any other", async () => {
    const receiver = await openReceiver();
    const strict = { allowHttp: true, allowedCidrs: [] };
    expect((await post(receiver.url, { policy: strict })).outcome.kind).toBe("address_refused");
    expect((await post(`http://[::ffff:127.0.0.1]:${receiver.port}/`, { policy: strict })).outcome.kind).toBe(
      "address_refused",
    );
    expect(receiver.connections()).toBe(0);
  });

  it("is asked for once a second at most, and a failure is not kept", async () => {
    let now = 0;
    let asked = 0;
    let fail = false;
    const resolve = shareAnswers(
      () => {
        asked += 1;
        return fail ? Promise.reject(new Error("no")) : Promise.resolve(["127.0.0.1"]);
      },
      () => now,
    );
    await Promise.all([resolve("a"), resolve("a"), resolve("b")]);
    expect(asked).toBe(2);
    now = 1_000;
    fail = true;
    await expect(resolve("a")).rejects.toThrow();
    await expect(resolve("a")).rejects.toThrow();
    expect(asked).toBe(4);
  });

  it("of localhost needs no name server", async () => {
    expect(await createResolver(100)("localhost")).toEqual(["127.0.0.1"]);
  });
});

it("[B26] reuses a connection for more than 95% of the requests to one host", async () => {
  const receiver = await openReceiver();
  for (let round = 0; round < 50; round += 1) await Promise.all(Array.from({ length: 10 }, () => post(receiver.url)));
  expect(receiver.received).toHaveLength(500);
  expect(receiver.connections()).toBeLessThan(500 * 0.05);
});

it("tells where the time went", async () => {
  const receiver = await openReceiver();
  const { phases, durationMs } = await post(receiver.url);
  expect(Object.keys(phases)).toEqual(["dns", "connect", "first_byte", "body"]);
  const sum = Object.values(phases).reduce((total, ms) => total + ms, 0);
  expect(Math.abs(sum - durationMs)).toBeLessThan(0.001);
});
