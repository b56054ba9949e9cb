import { describe, expect, it } from "vitest";
import { EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import { Secret } from "../../src/core/secret.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, toRow } from "../support/fixtures.ts";
import { spawnProcess, startServer, startWorker } from "../support/processes.ts";
import { openReceiver } from "../support/receiver.ts";
import { openTcpProxy } from "../support/tcp-proxy.ts";
import { eventsClient } from "../support/traffic.ts";

const db = useDatabase();
/** Short, so that a killed worker's rows come back while a test waits: lease ≥ timeout + 5 s. */
const QUICK = { NUNCIO_LEASE_MS: "6000", NUNCIO_REQUEST_TIMEOUT_MS: "500", NUNCIO_POLL_INTERVAL_MS: "100" };

const created = (tenantId: string, id: string) => ({
  id,
  tenantId,
  type: EventType.USER_CREATED,
  user: { id: "u_1", status: UserStatus.ACTIVE },
});

async function publish(tenantId: string, count: number) {
  const events = Array.from({ length: count }, () => draftEvent(tenantId));
  await appendEvents(db.server.hot, events.map(toRow), { maxPendingMs: 7 * 86_400_000 });
}

const expireLeases = (lane: number) => db.admin`
  UPDATE nuncio.outbox SET next_at = now(), lease_expires_at = now() WHERE subscription_key = ${lane} AND lease_token IS NOT NULL`;

describe("from publish to the receiver, in processes of their own", () => {
  it("delivers what is published over the wire, and both end with 0 on SIGTERM", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    await addSubscription(db, tenant, { url: receiver.url });
    const [server, worker] = await Promise.all([startServer(db.url), startWorker(db.url)]);
    const client = eventsClient(server.baseUrl);
    await Promise.all(Array.from({ length: 20 }, (_, i) => client.publish({ event: created(tenant, `e${i}`) })));
    await receiver.until(() => receiver.received.length === 20);
    server.child.kill("SIGTERM");
    worker.child.kill("SIGTERM");
    expect(await server.ended).toEqual({ code: 0, signal: null });
    expect(await worker.ended).toEqual({ code: 0, signal: null });
    expect(worker.lines.filter(({ msg }) => msg === "delivery.attempted")).toHaveLength(20);
    const [row] =
      await db.admin`SELECT count(*)::int AS left FROM nuncio.outbox q JOIN nuncio.tenants t USING (tenant_key) WHERE t.tenant_id = ${tenant}`;
    expect(row?.left).toBe(0);
  });

  it("[B08] makes one event of a publish whose server was killed between the commit and the answer", async () => {
    const tenant = newTenant();
    await addSubscription(db, tenant);
    const proxy = await openTcpProxy(new URL(db.url.reveal()));
    const first = await startServer(new Secret(proxy.through(db.url.reveal())));
    await eventsClient(first.baseUrl).publish({ event: created(tenant, "warm") });
    // Postgres gets the statement, commits and answers; the answer never arrives.
    const sent = proxy.silenceAfter("only_once");
    const lost = eventsClient(first.baseUrl).publish({ event: created(tenant, "only_once") });
    const failed = lost.then(
      () => "answered",
      () => "failed",
    );
    await sent;
    const committed = async () => (await db.admin`SELECT FROM nuncio.events WHERE event_id = 'only_once'`).length;
    await expect.poll(committed, { timeout: 10_000 }).toBe(1);
    first.child.kill("SIGKILL");
    expect(await failed).toBe("failed");
    const second = await startServer(db.url);
    const again = await eventsClient(second.baseUrl).publish({ event: created(tenant, "only_once") });
    expect(again).toMatchObject({ eventId: "only_once", duplicate: true, deliveries: 0 });
    expect(await committed()).toBe(1);
  });

  it("[B42] delivers again, with the same id, what a killed worker had in flight, and spends no retry of it", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver((_, response) => {
      // The first worker never gets an answer; the second does.
      if (receiver.received.length > 3) response.end();
    });
    const { lane } = await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant, 3);
    const first = await startWorker(db.url, { ...QUICK, NUNCIO_REQUEST_TIMEOUT_MS: "20000", NUNCIO_LEASE_MS: "25000" });
    await receiver.until(() => receiver.received.length === 3);
    first.child.kill("SIGKILL");
    await first.ended;
    await expireLeases(lane);
    const second = await startWorker(db.url, QUICK);
    await receiver.until(() => receiver.received.length === 6);
    second.child.kill("SIGTERM");
    await second.ended;
    const ids = receiver.received.map(({ headers }) => headers["webhook-id"]);
    expect(new Set(ids.slice(3))).toEqual(new Set(ids.slice(0, 3)));
    expect(receiver.received.map(({ headers }) => headers["x-identity-attempt"])).toEqual([
      "1",
      "1",
      "1",
      "2",
      "2",
      "2",
    ]);
    const attempts =
      await db.admin`SELECT number, stale FROM nuncio.delivery_attempts WHERE subscription_key = ${lane}`;
    expect(attempts).toEqual([2, 2, 2].map((number) => ({ number, stale: false })));
  });

  it("[B42] needs no help: the rows come back when the lease ends by itself", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver((request, response) => {
      if (request.headers["x-identity-attempt"] !== "1") response.end();
    });
    await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant, 1);
    const first = await startWorker(db.url, QUICK);
    const second = await startWorker(db.url, QUICK);
    await receiver.until(() => receiver.received.length === 1);
    for (const { child } of [first]) child.kill("SIGKILL");
    await receiver.until(() => receiver.received.some(({ headers }) => headers["x-identity-attempt"] !== "1"));
    second.child.kill("SIGKILL");
  });

  it("[B43] changes nothing when it wakes up after its lease, and its result is kept as stale", async () => {
    const tenant = newTenant();
    let answerFirst: () => void = () => undefined;
    const receiver = await openReceiver((_, response) => {
      if (receiver.received.length === 1) answerFirst = () => response.end();
      else response.end();
    });
    const { lane } = await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant, 1);
    const slow = { NUNCIO_REQUEST_TIMEOUT_MS: "20000", NUNCIO_POLL_INTERVAL_MS: "100" };
    const zombie = await startWorker(db.url, slow);
    await receiver.until(() => receiver.received.length === 1);
    zombie.child.kill("SIGSTOP");
    await expireLeases(lane);
    const successor = await startWorker(db.url, slow);
    // Of this lane: the tests before have left deliveries that a worker may get to as well.
    const attempted = (isStale: boolean) => (line: Record<string, unknown>) =>
      line.msg === "delivery.attempted" && line.subscriptionKey === lane && line.stale === isStale;
    await successor.line(attempted(false));
    answerFirst();
    zombie.child.kill("SIGCONT");
    await zombie.line(attempted(true));
    const attempts =
      await db.admin`SELECT number, stale FROM nuncio.delivery_attempts WHERE subscription_key = ${lane} ORDER BY number`;
    expect(attempts).toEqual([
      { number: 1, stale: true },
      { number: 2, stale: false },
    ]);
    expect(await db.admin`SELECT FROM nuncio.outbox WHERE subscription_key = ${lane}`).toHaveLength(0);
    zombie.child.kill("SIGKILL");
    successor.child.kill("SIGKILL");
  });

  it("[B45] on SIGTERM lets a request end and records it; a second SIGTERM loses nothing either", async () => {
    const tenant = newTenant();
    const answers: (() => void)[] = [];
    const receiver = await openReceiver((_, response) => answers.push(() => response.end()));
    const { lane } = await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant, 1);
    const polite = await startWorker(db.url);
    await receiver.until(() => answers.length === 1);
    polite.child.kill("SIGTERM");
    await polite.line(({ msg }) => msg === "worker.draining");
    await publish(tenant, 1);
    answers[0]?.();
    expect(await polite.ended).toEqual({ code: 0, signal: null });
    expect(receiver.received).toHaveLength(1);
    expect(await db.admin`SELECT attempt FROM nuncio.outbox WHERE subscription_key = ${lane}`).toEqual([
      { attempt: 0 },
    ]);

    const hurried = await startWorker(db.url);
    await receiver.until(() => answers.length === 2);
    hurried.child.kill("SIGTERM");
    await hurried.line(({ msg }) => msg === "worker.draining");
    hurried.child.kill("SIGTERM");
    expect((await hurried.ended).code).toBe(1);
    expect(await db.admin`SELECT attempt, failures FROM nuncio.outbox WHERE subscription_key = ${lane}`).toEqual([
      { attempt: 1, failures: 0 },
    ]);
    await db.admin`DELETE FROM nuncio.outbox WHERE subscription_key = ${lane}`;
  });

  it("[B45] ends within its deadline although a receiver never answers, and the row is delivered later", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver(() => undefined);
    const { lane } = await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant, 1);
    const worker = await startWorker(db.url, { NUNCIO_SHUTDOWN_TIMEOUT_MS: "200" });
    await receiver.until(() => receiver.received.length === 1);
    worker.child.kill("SIGTERM");
    expect(await worker.ended).toEqual({ code: 0, signal: null });
    expect(await db.admin`SELECT attempt FROM nuncio.outbox WHERE subscription_key = ${lane}`).toEqual([
      { attempt: 1 },
    ]);
    await db.admin`DELETE FROM nuncio.outbox WHERE subscription_key = ${lane}`;
  });
});

describe("a process with bad settings", () => {
  it("ends with 78 and lists every fault at once, without a secret in it", async () => {
    const settings = {
      NUNCIO_LEASE_MS: "1000",
      NUNCIO_RETRY_SCHEDULE: "soon",
      NUNCIO_SECRET_KEYS: "k1:c2VjcmV0LWNhbmFyeQ==",
      NUNCIO_WORKER_CONCURRENCY: "0",
    };
    const worker = spawnProcess("worker", db.url, settings);
    expect((await worker.ended).code).toBe(78);
    const faults = JSON.stringify(worker.lines.find(({ msg }) => msg === "settings.refused"));
    for (const name of ["RETRY_SCHEDULE", "SECRET_KEYS", "WORKER_CONCURRENCY"])
      expect(faults).toContain(`NUNCIO_${name}`);
    expect(faults).not.toMatch(/c2VjcmV0|secret-canary/);
  });

  it("[B54] refuses a lease that no request fits into", async () => {
    const worker = spawnProcess("worker", db.url, { NUNCIO_LEASE_MS: "19999" });
    expect((await worker.ended).code).toBe(78);
    expect(JSON.stringify(worker.lines)).toContain("NUNCIO_LEASE_MS must be at least");
  });

  it("[B32] refuses to start when a stored secret needs a key that is wrong or missing", async () => {
    await addSubscription(db, newTenant());
    const other = Buffer.alloc(32, 99).toString("base64");
    for (const [keys, complaint] of [
      [`k1:${other}`, "does not decrypt"],
      [`k2:${other}`, 'has no key \\"k1\\"'],
    ] as const) {
      for (const name of ["server", "worker"] as const) {
        const failing = spawnProcess(name, db.url, { NUNCIO_SECRET_KEYS: keys });
        expect((await failing.ended).code).toBe(78);
        expect(JSON.stringify(failing.lines)).toContain(complaint.replaceAll("\\", "").replaceAll('"', '\\"'));
      }
    }
  });
});
