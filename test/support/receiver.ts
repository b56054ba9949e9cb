import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { cleanUp } from "./clean-up.ts";

export type Received = {
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
  readonly path: string;
  /** Which connection it came on, from 1. */
  readonly connection: number;
};

export type Receiver = {
  readonly url: string;
  readonly port: number;
  readonly received: Received[];
  /** Requests open right now, and the most that ever were. */
  readonly open: () => { now: number; most: number };
  readonly connections: () => number;
  /** Resolves once the predicate holds, looked at whenever a request has come in. */
  until(predicate: () => boolean): Promise<void>;
  close(): Promise<void>;
};

/** A real HTTP receiver on a port of its own. `answer` is called when the request is whole; default: 200. */
export async function openReceiver(
  answer: (request: Received, response: ServerResponse) => void = (_, response) => response.end("ok"),
): Promise<Receiver> {
  const received: Received[] = [];
  const waiting = new Set<() => void>();
  const places = new Map<Socket, number>();
  let now = 0;
  let most = 0;
  const server = createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
    now += 1;
    most = Math.max(most, now);
    response.once("close", () => {
      now -= 1;
      for (const check of waiting) check();
    });
    const chunks: Buffer[] = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      const entry = {
        headers: request.headers,
        body: Buffer.concat(chunks).toString("utf8"),
        path: request.url ?? "",
        connection: places.get(request.socket) ?? 0,
      };
      received.push(entry);
      answer(entry, response);
      for (const check of waiting) check();
    });
  });
  server.on("connection", (socket) => places.set(socket, places.size + 1));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const receiver: Receiver = {
    url: `http://127.0.0.1:${port}/hook`,
    port,
    received,
    open: () => ({ now, most }),
    connections: () => places.size,
    until(predicate) {
      return new Promise((resolve) => {
        const check = () => {
          if (!predicate()) return;
          waiting.delete(check);
          resolve();
        };
        waiting.add(check);
        check();
      });
    },
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
  cleanUp(() => receiver.close());
  return receiver;
}
