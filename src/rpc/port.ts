import { once } from "node:events";
import http from "node:http";
import http2 from "node:http2";
import net from "node:net";
import type { connectNodeAdapter } from "@connectrpc/connect-node";

/** What answers requests: the same function for HTTP/1.1 and HTTP/2, as `connectNodeAdapter` makes it. */
export type RequestHandler = ReturnType<typeof connectNodeAdapter>;

export interface PortOptions {
  host: string;
  /** 0 takes any free port. */
  port: number;
  /** How long a new connection may take to show whether it speaks HTTP/2; then it is destroyed. Default 10 s. */
  prefaceTimeoutMs?: number;
  /** How long an HTTP/1.1 client may take to send the head of a request; then it is answered 408. Default 15 s. */
  headersTimeoutMs?: number;
  /** Connections held at once; further ones are dropped as they arrive. Default: no limit. */
  maxConnections?: number;
}

export interface Port {
  /** What is really bound: the port that was found for port 0. */
  address: { host: string; port: number };
  /**
   * Accepts no more, lets requests in flight end, and destroys what is left after `graceMs`.
   * Resolves when every connection is gone. A second call may only shorten the grace of the first.
   */
  close(graceMs: number): Promise<void>;
}

/** RFC 9113, section 3.4: the first bytes of every HTTP/2 client. No HTTP/1.1 request can begin with all of them. */
const HTTP2_PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1");

/** Longer than the idle time of common load balancers (60 s), which must be the ones to end a quiet connection. */
const KEEP_ALIVE_TIMEOUT_MS = 75_000;
const REQUEST_TIMEOUT_MS = 60_000;
/** Node's own default is no limit at all. */
const MAX_CONCURRENT_STREAMS = 1_000;
/** When the kernel starts to ask a quiet peer whether it is still there; nothing else ends a dead HTTP/2 connection. */
const TCP_KEEP_ALIVE_DELAY_MS = 60_000;

/**
 * Listens on one port for HTTP/1.1 and cleartext HTTP/2 alike, and resolves once connections are accepted.
 *
 * Node has a server for each but none for both: its `allowHTTP1` needs TLS. So a plain TCP server reads the first bytes
 * of a connection, puts them back, and hands the socket to the one server or the other.
 */
export async function openPort(handler: RequestHandler, options: PortOptions): Promise<Port> {
  const { host, port, prefaceTimeoutMs = 10_000, headersTimeoutMs = 15_000, maxConnections } = options;
  const connections = new Map<net.Socket, "undecided" | "http1" | "http2">();
  const http1Responses = new Set<http.ServerResponse>();
  let closing = false;

  const answer: RequestHandler = (request, response) => {
    if (namesHost(request)) return handler(request, response);
    response.writeHead(400);
    response.end();
  };

  const http1Server = http.createServer(
    {
      keepAliveTimeout: KEEP_ALIVE_TIMEOUT_MS,
      headersTimeout: headersTimeoutMs,
      requestTimeout: REQUEST_TIMEOUT_MS,
      connectionsCheckingInterval: Math.min(headersTimeoutMs, 5_000),
    },
    (request, response) => {
      trackHttp1Response(response);
      answer(request, response);
    },
  );

  const http2Server = http2.createServer({ settings: { maxConcurrentStreams: MAX_CONCURRENT_STREAMS } }, answer);

  const server = net.createServer(
    { allowHalfOpen: true, noDelay: true, keepAlive: true, keepAliveInitialDelay: TCP_KEEP_ALIVE_DELAY_MS },
    (socket) => {
      connections.set(socket, "undecided");
      socket.once("close", () => connections.delete(socket));
      // A reset by the peer is no fault of ours; "close" follows and is all we need. Without a listener it is thrown.
      socket.on("error", () => {});
      detectHttp2(socket, prefaceTimeoutMs, (isHttp2) => (isHttp2 ? serveHttp2(socket) : serveHttp1(socket)));
    },
  );
  if (maxConnections !== undefined) server.maxConnections = maxConnections;
  // Node watches headersTimeout and requestTimeout from this event on, and the HTTP/1.1 server itself never listens.
  server.once("listening", () => http1Server.emit("listening"));
  const closed = new Promise<void>((resolve) => {
    server.once("close", () => {
      http1Server.close(); // ends that watch
      resolve();
    });
  });

  function serveHttp1(socket: net.Socket): void {
    connections.set(socket, "http1");
    http1Server.emit("connection", socket);
    socket.resume();
  }

  function serveHttp2(socket: net.Socket): void {
    connections.set(socket, "http2");
    // Node's HTTP/1.1 server ends its half of a half-closed socket itself; its HTTP/2 server leaves that to the socket.
    socket.allowHalfOpen = false;
    http2Server.emit("connection", socket);
  }

  function trackHttp1Response(response: http.ServerResponse): void {
    http1Responses.add(response);
    if (closing) response.setHeader("connection", "close");
    response.once("close", () => {
      http1Responses.delete(response);
      if (closing && !answeringSockets().has(response.req.socket)) response.req.socket.destroySoon();
    });
  }

  function answeringSockets(): Set<net.Socket> {
    return new Set([...http1Responses].map((response) => response.req.socket));
  }

  function beginClosing(): void {
    closing = true;
    server.close();
    // GOAWAY on every session: open streams end, later ones are refused unprocessed and safe to send elsewhere.
    http2Server.close();
    for (const response of http1Responses) if (!response.headersSent) response.setHeader("connection", "close");
    // Not closeIdleConnections(): it takes a response for ended while its last bytes are still to be written.
    const answering = answeringSockets();
    for (const [socket, protocol] of connections) {
      if (protocol !== "http2" && !answering.has(socket)) socket.destroy();
    }
  }

  await listen(server, host, port);
  // A failed accept (no file descriptor left) concerns one connection; as an unheard "error" it would end the process.
  server.on("error", (error) => process.emitWarning(error));
  const { address, port: boundPort } = server.address() as net.AddressInfo;

  return {
    address: { host: address, port: boundPort },
    async close(graceMs) {
      if (!closing) beginClosing();
      const grace = setTimeout(() => {
        for (const socket of connections.keys()) socket.destroy();
      }, graceMs);
      await closed;
      clearTimeout(grace);
    },
  };
}

/** Calls `decided` as soon as the bytes received tell the protocol, with those bytes back in the socket, paused. */
function detectHttp2(socket: net.Socket, timeoutMs: number, decided: (isHttp2: boolean) => void): void {
  const timeout = setTimeout(() => socket.destroy(), timeoutMs);
  let received = Buffer.alloc(0);
  const compare = (chunk: Buffer): void => {
    received = Buffer.concat([received, chunk]);
    const start = received.subarray(0, HTTP2_PREFACE.length);
    const matches = start.equals(HTTP2_PREFACE.subarray(0, start.length));
    if (matches && start.length < HTTP2_PREFACE.length) return;
    stop();
    socket.pause();
    socket.unshift(received);
    decided(matches);
  };
  const giveUp = (): void => void socket.destroy();
  const stop = (): void => {
    clearTimeout(timeout);
    socket.off("data", compare).off("end", giveUp).off("close", stop);
  };
  socket.on("data", compare).on("end", giveUp).on("close", stop);
}

/**
 * Whether the request says to which host it is addressed, in a form that fits a URL.
 *
 * The adapter builds a URL from it and throws where it can't, outside any promise: one HTTP/1.0 request without `Host`
 * would end the process.
 */
function namesHost(request: Parameters<RequestHandler>[0]): boolean {
  const authority = "authority" in request ? request.authority : request.headers.host;
  return authority !== undefined && URL.canParse(request.url ?? "", `http://${authority}`);
}

async function listen(server: net.Server, host: string, port: number): Promise<void> {
  server.listen({ host, port });
  try {
    await once(server, "listening");
  } catch (error) {
    throw new Error(explainListenError(error as NodeJS.ErrnoException, host, port), { cause: error });
  }
}

function explainListenError(error: NodeJS.ErrnoException, host: string, port: number): string {
  const address = net.isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`;
  switch (error.code) {
    case "EADDRINUSE":
      return `cannot listen on ${address}: the address is in use; stop what holds it, or change NUNCIO_LISTEN`;
    case "EACCES":
      return `cannot listen on ${address}: not permitted; change NUNCIO_LISTEN to a port from 1024 up`;
    default:
      return `cannot listen on ${address}: ${error.message}; change NUNCIO_LISTEN to an address of this machine`;
  }
}
