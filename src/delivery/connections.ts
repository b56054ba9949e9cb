import { buildConnector, type Dispatcher, Pool } from "undici";

/** A socket lives this long at most, however busy: an answer of DNS that has changed is followed within a minute. */
const SOCKET_LIFETIME_MS = 60_000;
/** An idle socket is closed before most receivers close theirs (5 s in Node), which would break a request on its way. */
const IDLE_SOCKET_MS = 4_000;
const MAX_RESPONSE_HEADER_BYTES = 16_384;

export type Connections = {
  /** Kept-alive connections to this origin at this address and no other. The address has been checked. */
  to(origin: URL, host: string, address: string): Dispatcher;
  close(): Promise<void>;
};

type KeptPool = { readonly pool: Pool; usedAtMs: number };

/**
 * Sockets kept per (origin, checked address). The name is resolved and judged before, and the address that was judged is
 * the one that is dialled: nothing resolves it again. HTTP/1.1 only; `*_PROXY` is not read.
 */
export function keepConnections(nowMs: () => number, connectTimeoutMs: number): Connections {
  const pools = new Map<string, KeptPool>();
  const sweep = setInterval(() => {
    for (const [key, { pool, usedAtMs }] of pools) {
      if (nowMs() - usedAtMs < SOCKET_LIFETIME_MS) continue;
      pools.delete(key);
      void pool.close();
    }
  }, SOCKET_LIFETIME_MS / 4);
  sweep.unref();

  return {
    to(origin, host, address) {
      const key = `${origin.origin} ${address}`;
      let kept = pools.get(key);
      if (!kept) {
        kept = { pool: openPool(origin.origin, host, address, connectTimeoutMs), usedAtMs: 0 };
        pools.set(key, kept);
      }
      kept.usedAtMs = nowMs();
      return kept.pool;
    },
    async close() {
      clearInterval(sweep);
      await Promise.all([...pools.values()].map(({ pool }) => pool.destroy()));
      pools.clear();
    },
  };
}

function openPool(origin: string, host: string, address: string, connectTimeoutMs: number): Pool {
  const dial = buildConnector({ timeout: connectTimeoutMs, allowH2: false, maxCachedSessions: 10 });
  return new Pool(origin, {
    // Dials the address; the name goes into SNI and the certificate check only.
    connect: (options, callback) => dial({ ...options, hostname: address, servername: toServerName(host) }, callback),
    allowH2: false,
    pipelining: 1,
    clientTtl: SOCKET_LIFETIME_MS,
    keepAliveTimeout: IDLE_SOCKET_MS,
    keepAliveMaxTimeout: SOCKET_LIFETIME_MS,
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
