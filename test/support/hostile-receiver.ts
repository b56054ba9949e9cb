import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { cleanUp } from "./clean-up.ts";

export type HostileReceiver = {
  readonly url: string;
  /** How many connections it has taken so far. */
  readonly accepted: () => number;
  readonly sockets: ReadonlySet<Socket>;
};

/** What a receiver may do to a request that has come in. Nothing of it is HTTP as it ought to be, or in good time. */
export const HOSTILITIES = {
  /** Takes the request, and never says a word. */
  silent: () => undefined,
  /** Breaks the connection off. */
  resetting: (socket) => socket.resetAndDestroy(),
  /** Ends the connection without an answer. */
  hangingUp: (socket) => socket.end(),
  /** A status in time, and then a byte now and then for ever. */
  drippingBody: (socket) => drip(socket, "HTTP/1.1 500 No\r\ncontent-length: 100000\r\n\r\n"),
  /** Not even its headers ever end. */
  drippingHeaders: (socket) => drip(socket, "HTTP/1.1 200 OK\r\nx-drip: "),
  /** A body without end, as fast as it is read. */
  endless: (socket) => {
    socket.write("HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n");
    const chunk = `1000\r\n${"x".repeat(4096)}\r\n`;
    const write = () => {
      while (!socket.destroyed && socket.write(chunk));
      if (!socket.destroyed) socket.once("drain", write);
    };
    write();
  },
  /** More headers than anybody needs. */
  headerBomb: (socket) => socket.end(`HTTP/1.1 200 OK\r\n${"x-bomb: y\r\n".repeat(10_000)}\r\n`),
  /** Another protocol. */
  notHttp: (socket) => socket.end("SSH-2.0-OpenSSH\r\n\r\n"),
  /** A length, and less than that. */
  breakingOff: (socket) => socket.end("HTTP/1.1 500 No\r\ncontent-length: 100\r\n\r\nonly this"),
  /** Wants to be asked again in an hour. */
  askingForSilence: (socket) => socket.end("HTTP/1.1 429 Slow\r\nretry-after: 3600\r\ncontent-length: 0\r\n\r\n"),
} as const satisfies Record<string, (socket: Socket) => unknown>;

export type Hostility = keyof typeof HOSTILITIES;

function drip(socket: Socket, head: string): void {
  socket.write(head);
  const timer = setInterval(() => socket.write("x"), 10);
  socket.once("close", () => clearInterval(timer));
}

/** A receiver of that kind on a port of its own, until the test is over. */
export function openHostile(hostility: Hostility): Promise<HostileReceiver> {
  return openRaw(onRequest(HOSTILITIES[hostility]));
}

/** One that answers with this text, whatever it is. */
export function openAnswering(text: string): Promise<HostileReceiver> {
  return openRaw(onRequest((socket) => socket.end(text)));
}

/** Waits for the first bytes of a request. */
export function onRequest(act: (socket: Socket) => unknown): (socket: Socket) => void {
  return (socket) => socket.once("data", () => act(socket));
}

/** A TCP server that does with each connection what it is told, and counts them. */
export async function openRaw(onConnection: (socket: Socket) => void): Promise<HostileReceiver> {
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
    onConnection(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  cleanUp(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`, accepted: () => sockets.size, sockets };
}
