import { randomBytes } from "node:crypto";
import { v7 as uuidV7 } from "uuid";
import { openSecretBox, parseKeyring } from "../src/core/encryption.ts";
import type { Uuid } from "../src/core/ids.ts";
import { Secret } from "../src/core/secret.ts";
import { formatSigningSecret } from "../src/core/signature.ts";
import type { SubscriptionOrdering } from "../src/core/subscription.ts";
import { anyFreePort } from "../src/free-port.ts";
import { openDatabase } from "../src/store/database.ts";
import { appendEvents, whatIsDue } from "../src/store/outbox/append.ts";
import { createWakeUp } from "../src/store/outbox/wake-up.ts";
import { createSubscription } from "../src/store/subscriptions.ts";
import { type Peer, type RealProcess, startPeer, startReal } from "./child.ts";
import { appendRow } from "./events.ts";
import type { BenchDatabase } from "./postgres.ts";

const SECRET_KEYS = `k1:${Buffer.alloc(32, 7).toString("base64")}`;
export const OPERATOR_KEY = "bench_operator_key_of_one_run";
const APPEND_GROUP = 500;
const MAX_PENDING_MS = 7 * 86_400_000;

export function tenantName(number: number): string {
  return `tenant_${number}`;
}

export type Subscribed = {
  /** How many, each of a tenant of its own, so that each event has one delivery. */
  readonly subscriptions: number;
  readonly ordering: SubscriptionOrdering;
  readonly url: string;
  readonly firstTenant?: number;
};

export type Filling = Subscribed & {
  readonly deliveries: number;
  /** Which of the subscriptions gets the n-th event; by default they take turns. */
  readonly spread?: (n: number) => number;
  /** How many users there are, who take turns. Undefined: 20,000. */
  readonly users?: number;
};

/** Subscriptions, and events for them in the outbox. */
export async function fillOutbox(database: BenchDatabase, filling: Filling): Promise<void> {
  const filler = openFiller(database);
  await filler.subscribe(filling);
  await filler.append(filling);
  await filler.close();
}

export type Filler = {
  subscribe(subscribed: Subscribed): Promise<void>;
  append(filling: Pick<Filling, "subscriptions" | "deliveries" | "firstTenant" | "spread" | "users">): Promise<void>;
  close(): Promise<void>;
};

/** Does what the server does behind its port, with the server's own modules. */
export function openFiller(database: BenchDatabase): Filler {
  const db = openDatabase({
    url: new Secret(database.url),
    role: "nuncio_server",
    connections: 1,
    hotConnections: 2,
    statementTimeoutMs: 30_000,
  });
  const box = openSecretBox(parseKeyring(SECRET_KEYS), randomBytes);
  const wakeUp = createWakeUp(db.hot, () => undefined);
  return {
    async subscribe({ subscriptions, ordering, url, firstTenant = 0 }) {
      for (let tenant = 0; tenant < subscriptions; tenant++) {
        await createSubscription(db.orm, box, tenantName(firstTenant + tenant), {
          spec: { url, eventTypes: [], description: "", ordering, contentType: "JSON", headers: {} },
          subscriptionUuid: uuidV7() as Uuid,
          signingSecret: new Secret(formatSigningSecret(randomBytes(32))),
          request: undefined,
          maxPerTenant: 100,
        });
      }
    },
    async append({ subscriptions, deliveries, firstTenant = 0, spread = (n) => n % subscriptions, users }) {
      for (let done = 0; done < deliveries; done += APPEND_GROUP) {
        const count = Math.min(APPEND_GROUP, deliveries - done);
        const rows = Array.from({ length: count }, (_, i) =>
          appendRow(tenantName(firstTenant + spread(done + i)), `evt_${uuidV7()}`, users),
        );
        const due = whatIsDue(await appendEvents(db.hot, rows, { maxPendingMs: MAX_PENDING_MS }));
        if (due) wakeUp.announce(due.lanes, due.sinceMs);
      }
    },
    close: () => db.close(),
  };
}

const COMMON = {
  NUNCIO_SECRET_KEYS: SECRET_KEYS,
  NUNCIO_TARGET_ALLOW_HTTP: "true",
  NUNCIO_TARGET_ALLOWED_CIDRS: "127.0.0.0/8",
  NUNCIO_LOG_LEVEL: "warn",
};

export async function startWorker(
  database: BenchDatabase,
  { maxInFlight, awaitReady }: { maxInFlight: number | undefined; awaitReady: boolean },
): Promise<RealProcess> {
  const port = await anyFreePort("127.0.0.1");
  const env = {
    ...COMMON,
    NUNCIO_DATABASE_URL: database.url,
    NUNCIO_WORKER_OPERATIONS_LISTEN: `127.0.0.1:${port}`,
    NUNCIO_WORKER_CONCURRENCY: "256",
    ...(maxInFlight === undefined ? {} : { NUNCIO_MAX_IN_FLIGHT: String(maxInFlight) }),
  };
  return startReal("worker", env, awaitReady ? port : undefined);
}

export type RunningServer = { readonly baseUrl: string; stop(): Promise<void> };

export async function startServer(database: BenchDatabase): Promise<RunningServer> {
  const { env, baseUrl, operationsPort } = await serverEnv(database.url);
  const server = await startReal("server", env, operationsPort);
  return { baseUrl, stop: () => server.stop() };
}

/** The same port, gate, interceptors and handler; what would be stored is thrown away. */
export async function startServerWithoutStorage(): Promise<RunningServer> {
  const { env, baseUrl } = await serverEnv("postgres://unused@127.0.0.1:1/unused");
  const server: Peer<never, string> = startPeer("server-without-storage.ts", env);
  await server.ready;
  return { baseUrl, stop: () => server.stop() };
}

async function serverEnv(databaseUrl: string) {
  const [port, operationsPort] = [await anyFreePort("127.0.0.1"), await anyFreePort("127.0.0.1")];
  const env = {
    ...COMMON,
    NUNCIO_DATABASE_URL: databaseUrl,
    NUNCIO_BOOTSTRAP_OPERATOR_KEY: OPERATOR_KEY,
    NUNCIO_LISTEN: `127.0.0.1:${port}`,
    NUNCIO_OPERATIONS_LISTEN: `127.0.0.1:${operationsPort}`,
  };
  return { env, baseUrl: `http://127.0.0.1:${port}`, operationsPort };
}
