import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import postgres from "postgres";
import { describe, expect, it } from "vitest";
import {
  ARRAY_TYPES,
  closingInSilence,
  type Listening,
  LOOKS_PER_SILENCE,
  lookAgain,
} from "../../src/store/driver-options.ts";
import { cleanUp } from "../support/clean-up.ts";
import { useDatabase } from "../support/database.ts";

const db = useDatabase();

describe("arrays", () => {
  it.each([
    [[]],
    [["plain", ""]],
    [['"', "\\", '\\\\"', "{}", "a,b", "NULL", "null", " x ", "Zoë 👩‍💻 \u2028\n\t"]],
    [["a", null]],
  ])("of text reach Postgres as they are: %j", async (texts) => {
    const [row] = await db.server.hot`SELECT to_json(${texts}::text[]) AS texts`;
    expect(row?.texts).toEqual(texts);
  });

  it.each([[[]], [[1, -2, 32_000]]])("of numbers come and go: %j", async (numbers) => {
    const [row] = await db.server.hot`SELECT ${numbers}::integer[] AS i, ${numbers}::smallint[] AS s`;
    expect(row).toEqual({ i: numbers, s: numbers });
  });
});

/** What `closingInSilence` makes of a connection to a server that we script. */
async function connectTo(script: (socket: Socket) => void, silenceMs: number): Promise<Socket> {
  const server = createServer(script).listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const open = closingInSilence(silenceMs).socket as (target: { host: string[]; port: number[] }) => Socket;
  const socket = open({ host: ["127.0.0.1"], port: [port] });
  cleanUp(() => {
    socket.destroy();
    server.close();
  });
  await once(socket, "connect");
  socket.on("error", () => undefined);
  return socket;
}

describe("a silent connection", () => {
  it("is ended, also while more is sent into it, and what waits fails as transient", async () => {
    const socket = await connectTo((server) => server.resume(), 200);
    const sending = setInterval(() => socket.write("?"), 20);
    cleanUp(() => clearInterval(sending));
    const [error] = await once(socket, "error");
    expect(error).toMatchObject({ code: "ETIMEDOUT" });
  });

  it("is not one that has only just been asked, however long it was idle before", () => {
    const silentLooksOf = (...seen: [read: number, written: number][]) => {
      let listening: Listening = { bytesRead: 0, bytesWritten: 0, isAsked: false, silentLooks: 0 };
      for (const [bytesRead, bytesWritten] of seen) listening = lookAgain(listening, { bytesRead, bytesWritten });
      return listening.silentLooks;
    };
    // Idle, then asked: the count begins anew, and once only, however much is asked after.
    expect(silentLooksOf([9, 9], [9, 9], [9, 9], [9, 9])).toBe(3);
    expect(silentLooksOf([9, 9], [9, 9], [9, 9], [9, 10])).toBe(0);
    expect(silentLooksOf([9, 9], [9, 10], [9, 11], [9, 12], [9, 13], [9, 14])).toBe(LOOKS_PER_SILENCE);
    // Any answer ends it.
    expect(silentLooksOf([9, 9], [9, 10], [9, 11], [10, 12])).toBe(0);
    expect(silentLooksOf([9, 9], [10, 10], [11, 11], [12, 12], [13, 13])).toBe(0);
  });

  it("tells TLS the name of the server, as the driver's own sockets do", async () => {
    const socket = await connectTo(() => undefined, 1_000);
    expect(socket).toMatchObject({ host: "127.0.0.1", port: expect.any(Number) });
  });
});

describe("a connection that ends before the driver is done with it", () => {
  it("fails its query and nothing else", async () => {
    const server = createServer((socket) => {
      socket.once("data", () => {
        // AuthenticationOk, ReadyForQuery, and the end.
        socket.write(Buffer.from([82, 0, 0, 0, 8, 0, 0, 0, 0, 90, 0, 0, 0, 5, 73]), () => socket.destroy());
      });
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const sql = postgres({ host: "127.0.0.1", port, user: "x", database: "x", max: 1, ...ARRAY_TYPES });
    // With the driver's own query for its types, this rejects a promise that nobody holds: vitest would report it.
    await expect(sql`SELECT 1`).rejects.toMatchObject({ code: /^CONNECTION_|ECONNRESET/ });
    await sql.end({ timeout: 1 });
    server.close();
  });
});
