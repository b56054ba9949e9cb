import { randomBytes } from "node:crypto";
import { Code } from "@connectrpc/connect";
import { beforeAll, expect } from "vitest";
import { openSecretBox, parseKeyring } from "../../src/core/encryption.ts";
import { Secret } from "../../src/core/secret.ts";
import { cleanUp } from "./clean-up.ts";
import { openTestDatabase, TEST_SECRET_KEYS, type TestDatabase } from "./database.ts";
import { addSubscription, newTenant } from "./fixtures.ts";
import type { OwnPostgres } from "./own-postgres.ts";
import { type RunningProcess, startServer, startWorker } from "./processes.ts";
import { openReceiver } from "./receiver.ts";
import { openTcpProxy, type TcpProxy } from "./tcp-proxy.ts";
import { startTraffic, type Traffic } from "./traffic.ts";

const QUICK = { NUNCIO_LEASE_MS: "6000", NUNCIO_REQUEST_TIMEOUT_MS: "500", NUNCIO_POLL_INTERVAL_MS: "100" };

/** A server and a worker, which reach a Postgres of their own through a proxy. */
export type Pair = {
  readonly postgres: OwnPostgres;
  readonly proxy: TcpProxy;
  readonly server: RunningProcess & { baseUrl: string };
  readonly worker: RunningProcess;
  /** Past the proxy. */
  readonly db: TestDatabase;
};

/** Starts them for the whole of the file. */
export function startPair(postgres: OwnPostgres): Pair {
  const pair: Partial<{ -readonly [K in keyof Pair]: Pair[K] }> = { postgres };
  beforeAll(async () => {
    const proxy = await openTcpProxy(new URL(postgres.url.reveal()));
    const url = new Secret(proxy.through(postgres.url.reveal()));
    const [server, worker] = await Promise.all([startServer(url, QUICK), startWorker(url, QUICK)]);
    const db = {
      url: postgres.url,
      server: openTestDatabase(postgres.url, "nuncio_server"),
      worker: openTestDatabase(postgres.url, "nuncio_worker"),
      admin: postgres.admin,
      box: openSecretBox(parseKeyring(TEST_SECRET_KEYS), randomBytes),
    };
    Object.assign(pair, { proxy, server, worker, db });
    cleanUp(() => Promise.all([db.server.close(), db.worker.close()]));
  });
  return pair as Pair;
}

/**
 * Traffic while `fault` happens, and all that was promised after it: each event that was accepted arrives and no other, the
 * outbox empties, and both processes are still those that were started.
 */
export async function survive(
  { postgres, server, worker, db }: Pair,
  fault: (traffic: Traffic, tenant: string) => Promise<void>,
): Promise<Traffic> {
  const tenant = newTenant();
  const receiver = await openReceiver();
  await addSubscription(db, tenant, { url: receiver.url });
  const traffic = startTraffic(server.baseUrl, tenant);
  await traffic.until(({ accepted }) => accepted.length >= 20);
  await fault(traffic, tenant);
  const before = traffic.accepted.length;
  await traffic.until(({ accepted }) => accepted.length >= before + 20);
  await traffic.stop();

  const received = () => new Set(receiver.received.map(({ headers }) => headers["webhook-id"]));
  await receiver.until(() => traffic.accepted.every((id) => received().has(id)));
  expect([...received()].toSorted()).toEqual([...traffic.accepted].toSorted());
  const [stored] = await postgres.admin`
    SELECT count(*)::integer AS events FROM nuncio.events e JOIN nuncio.tenants t USING (tenant_key)
    WHERE t.tenant_id = ${tenant}`;
  expect(stored?.events).toBe(traffic.accepted.length);
  const left = async () =>
    (
      await postgres.admin`SELECT FROM nuncio.outbox q JOIN nuncio.tenants t USING (tenant_key) WHERE t.tenant_id = ${tenant}`
    ).length;
  await expect.poll(left, { timeout: 20_000 }).toBe(0);
  // Both are the processes that were started: nobody was needed.
  expect([server.child.exitCode, worker.child.exitCode]).toEqual([null, null]);
  return traffic;
}

/** What a caller may see while Postgres is away: that, or that its own time was up. Never a false OK, never INTERNAL. */
export const PASSING: readonly Code[] = [Code.Unavailable, Code.DeadlineExceeded, Code.ResourceExhausted];
