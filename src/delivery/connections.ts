import { buildConnector, Client, type Dispatcher } from "undici";

/** A connection lives this long at most, however busy: an answer of DNS that has changed is followed within a minute. */
const LIFETIME_MS = 60_000;
/** An idle socket is closed before most receivers close theirs (5 s in Node), which would break a request on its way. */
const IDLE_SOCKET_MS = 4_000;
const MAX_RESPONSE_HEADER_BYTES = 16_384;

/** One connection, lent for one request. */
export type Connection = {
  dispatch(request: Dispatcher.DispatchOptions, handler: Dispatcher.DispatchHandler): void;
  /** Gives it back. Not reusable: its socket is destroyed, whatever is on its way. A second call does nothing. */
  release(reusable: boolean): void;
};

export type Origin = {
  /** Scheme, host and port, as in a URL. */
  readonly origin: string;
  /** The host as it is resolved: without brackets, and without the dot of the root. */
  readonly host: string;
};

export type Connections = {
  /** A connection to this origin at this address and no other. The address has been checked. */
  borrow(origin: Origin, address: string): Connection;
  close(): Promise<void>;
};

type KeptClient = { readonly client: Client; readonly openedAtMs: number };

/**
 * Connections kept per (origin, checked address). The name is resolved and judged before, and the address that was judged
 * is the one that is dialled: nothing resolves it again. HTTP/1.1 only; `*_PROXY` is not read.
 *
 * A stack per address, the last one back being the first one out: few stay warm and the rest go idle. (undici's own Pool
 * looks through all its clients for each request, which took a quarter of the sender's time at 256 of them.)
 */
export function keepConnections(nowMs: () => number, connectTimeoutMs: number): Connections {
  const idle = new Map<string, KeptClient[]>();
  const lent = new Set<Client>();
  const isOld = ({ openedAtMs }: KeptClient) => nowMs() - openedAtMs >= LIFETIME_MS;

  const sweep = setInterval(() => {
    for (const [key, kept] of idle) {
      const young = kept.filter((entry) => !isOld(entry));
      for (const entry of kept) if (isOld(entry)) void entry.client.close();
      if (young.length > 0) idle.set(key, young);
      else idle.delete(key);
    }
  }, LIFETIME_MS / 4);
  sweep.unref();

  function take(key: string): KeptClient | undefined {
    const kept = idle.get(key);
    for (let entry = kept?.pop(); entry; entry = kept?.pop()) {
      if (!isOld(entry)) return entry;
      void entry.client.close();
    }
    return undefined;
  }

  function giveBack(key: string, entry: KeptClient): void {
    const kept = idle.get(key);
    if (kept) kept.push(entry);
    else idle.set(key, [entry]);
  }

  return {
    borrow(origin, address) {
      const key = `${origin.origin} ${address}`;
      const entry = take(key) ?? { client: openClient(origin, address, connectTimeoutMs), openedAtMs: nowMs() };
      const { client } = entry;
      lent.add(client);
      return {
        dispatch: (request, handler) => client.dispatch(request, handler),
        release(reusable) {
          if (!lent.delete(client)) return;
          if (reusable && !isOld(entry)) giveBack(key, entry);
          else void client.destroy();
        },
      };
    },
    async close() {
      clearInterval(sweep);
      const clients = [...[...idle.values()].flat().map(({ client }) => client), ...lent];
      idle.clear();
      lent.clear();
      await Promise.all(clients.map((client) => client.destroy()));
    },
  };
}

function openClient({ origin, host }: Origin, address: string, connectTimeoutMs: number): Client {
  const dial = buildConnector({ timeout: connectTimeoutMs, allowH2: false, maxCachedSessions: 1 });
  return new Client(origin, {
    // Dials the address; the name goes into SNI and the certificate check only.
    connect: (options, callback) => dial({ ...options, hostname: address, servername: toServerName(host) }, callback),
    allowH2: false,
    pipelining: 1,
    keepAliveTimeout: IDLE_SOCKET_MS,
    keepAliveMaxTimeout: LIFETIME_MS,
    maxHeaderSize: MAX_RESPONSE_HEADER_BYTES,
    // One deadline of ours covers the whole attempt.
    headersTimeout: 0,
    bodyTimeout: 0,
  });
}

/** A literal address has no name to send in SNI; its certificate is checked for the address. */
function toServerName(host: string): string {
  return /^[\d.]+$|:/.test(host) ? "" : host;
}
