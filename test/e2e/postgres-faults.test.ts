import { randomBytes } from "node:crypto";
import { Code } from "@connectrpc/connect";
import { beforeAll, describe, expect, it } from "vitest";
import { openSecretBox, parseKeyring } from "../../src/core/encryption.ts";
import { Secret } from "../../src/core/secret.ts";
import { cleanUp } from "../support/clean-up.ts";
import { openTestDatabase, TEST_SECRET_KEYS, type TestDatabase } from "../support/database.ts";
import { addSubscription, newTenant } from "../support/fixtures.ts";
import { useOwnPostgres } from "../support/own-postgres.ts";
import { type RunningProcess, startServer, startWorker } from "../support/processes.ts";
import { openReceiver } from "../support/receiver.ts";
import { openTcpProxy, type TcpProxy } from "../support/tcp-proxy.ts";
import { startTraffic, type Traffic } from "../support/traffic.ts";

const postgres = useOwnPostgres();
const QUICK = { NUNCIO_LEASE_MS: "6000", NUNCIO_REQUEST_TIMEOUT_MS: "500", NUNCIO_POLL_INTERVAL_MS: "100" };

let server: RunningProcess & { baseUrl: string };
let worker: RunningProcess;
let proxy: TcpProxy;
let db: TestDatabase;

beforeAll(async () => {
  proxy = await openTcpProxy(new URL(postgres.url.reveal()));
  const url = new Secret(proxy.through(postgres.url.reveal()));
  [server, worker] = await Promise.all([startServer(url, QUICK), startWorker(url, QUICK)]);
  db = {
    url: postgres.url,
    server: openTestDatabase(postgres.url, "nuncio_server"),
    worker: openTestDatabase(postgres.url, "nuncio_worker"),
    admin: postgres.admin,
    box: openSecretBox(parseKeyring(TEST_SECRET_KEYS), randomBytes),
  };
  cleanUp(() => Promise.all([db.server.close(), db.worker.close()]));
});

/** Traffic through a server and a worker while `fault` happens, and all that was promised after it. */
async function survive(fault: (traffic: Traffic, tenant: string) => Promise<void>): Promise<Traffic> {
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
const PASSING: readonly Code[] = [Code.Unavailable, Code.DeadlineExceeded, Code.ResourceExhausted];

describe("nothing accepted is lost, everything drains and nobody is needed", { timeout: 100_000 }, () => {
  it("[B09] [B44] when Postgres is killed and comes back", async () => {
    const { failures } = await survive(async (traffic) => {
      await postgres.kill();
      await traffic.until(({ failures: seen }) => seen.length >= 10);
      await postgres.start();
    });
    expect(failures.filter((code) => !PASSING.includes(code))).toEqual([]);
  });

  it("[B44] when Postgres is restarted in good order", async () => {
    const { failures } = await survive(async (traffic) => {
      await postgres.stop();
      await traffic.until(({ failures: seen }) => seen.length >= 4);
      await postgres.start();
    });
    expect(failures.filter((code) => !PASSING.includes(code))).toEqual([]);
  });

  it("[B44] when its connections are ended at random", async () => {
    await survive(async (traffic) => {
      for (let round = 0; round < 30; round += 1) {
        const before = traffic.accepted.length;
        await postgres.admin`
          SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE application_name LIKE 'nuncio_%' AND datname = current_database() AND pid % 3 = ${round % 3}`;
        await traffic.until(({ accepted }) => accepted.length > before);
      }
    });
  });

  it("[B44] when it vanishes without a word, its connections left open", async () => {
    const { failures } = await survive(async (traffic) => {
      proxy.silence("both");
      await traffic.until(({ failures: seen }) => seen.length >= 12);
      // It is there again, and knows nothing of the old connections: they stay silent for ever.
      proxy.abandon();
    });
    expect(failures.filter((code) => !PASSING.includes(code))).toEqual([]);
  });

  it("[B08] [B44] when connections are cut between a commit and its answer", async () => {
    await survive(async (traffic, tenant) => {
      for (let round = 0; round < 5; round += 1) {
        const before = traffic.accepted.length;
        await proxy.silenceAfter(tenant);
        proxy.cut();
        proxy.silence("none");
        await traffic.until(({ accepted }) => accepted.length > before);
      }
    });
  });

  it("[B09] when it takes no writes: UNAVAILABLE, and never a false OK", async () => {
    const { failures } = await survive(async (traffic) => {
      // Ours goes on writing, to end it again.
      await postgres.admin`SET default_transaction_read_only = off`;
      await postgres.admin`ALTER SYSTEM SET default_transaction_read_only = on`;
      await postgres.admin`SELECT pg_reload_conf()`;
      await traffic.until(({ failures: seen }) => seen.length >= 20);
      const before = traffic.accepted.length;
      await traffic.until(({ failures: seen }) => seen.length >= 40);
      expect(traffic.accepted.length).toBe(before);
      await postgres.admin`ALTER SYSTEM RESET default_transaction_read_only`;
      await postgres.admin`SELECT pg_reload_conf()`;
    });
    expect(failures.filter((code) => !PASSING.includes(code))).toEqual([]);
    expect(failures).toContain(Code.Unavailable);
  });

  it("[B09] when it is slow: every answer tells the truth", async () => {
    await survive(async (traffic) => {
      const delayed = proxy.delay(400);
      const before = traffic.accepted.length;
      await traffic.until(({ accepted }) => accepted.length >= before + 20);
      delayed.end();
    });
  });
});
