import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Sql } from "postgres";
import { describe, expect, it } from "vitest";
import { DeliveryEndReason, DeliveryState } from "../../gen/nuncio/v1/delivery_pb.ts";
import { EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { RedriveState } from "../../gen/nuncio/v1/redrive_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import { SubscriptionState } from "../../gen/nuncio/v1/webhook_subscription_pb.ts";
import { keepRedriving } from "../../src/delivery/redriver.ts";
import { nextRedrive, stepRedrive } from "../../src/store/redrives.ts";
import { cleanUp } from "../support/clean-up.ts";
import { useDatabase } from "../support/database.ts";
import { failureOf } from "../support/errors.ts";
import { newTenant } from "../support/fixtures.ts";
import { attemptsIn, startLoop } from "../support/loop.ts";
import { openReceiver } from "../support/receiver.ts";
import { createDependencies, inProcess } from "../support/service.ts";

const db = useDatabase();
const service = inProcess(() => createDependencies(db, db.server));
/** Nothing is sent there: no loop runs, or it fails to connect. */
const NOBODY = "http://127.0.0.1:1024/";
const STEP = { batch: 500, maxAhead: 500, maxPendingMs: 7 * 86_400_000, payloadRetentionMs: 30 * 86_400_000 };

/** As a worker does. */
async function takeStep(sql: Sql = db.worker.hot) {
  const next = await nextRedrive(sql);
  return next && stepRedrive(sql, next, STEP);
}

async function subscribe(tenantId: string, webhookSubscription: object): Promise<string> {
  const made = await service.subscriptions.createWebhookSubscription({ tenantId, webhookSubscription });
  return made.webhookSubscription?.id ?? "";
}

let published = 0;

/** One event each for these users, in this order. */
async function publish(
  tenantId: string,
  users: readonly string[],
  type: EventType = EventType.USER_CREATED,
): Promise<string[]> {
  const ids = users.map(() => `e_${++published}`);
  const status = type === EventType.USER_DEACTIVATED ? UserStatus.DEACTIVATED : UserStatus.ACTIVE;
  const events = users.map((id, i) => ({ id: ids[i] as string, tenantId, type, user: { id, userName: id, status } }));
  for (let i = 0; i < events.length; i += 1_000) {
    const { results } = await service.events.batchPublish({ events: events.slice(i, i + 1_000) });
    expect(results.map(({ result }) => result.case)).toEqual(results.map(() => "success"));
  }
  return ids;
}

async function listAll(tenantId: string) {
  const { deliveries } = await service.deliveries.listDeliveries({ tenantId, pageSize: 1_000 });
  return deliveries;
}

async function deliveryOf(tenantId: string, eventId: string) {
  const { deliveries } = await service.deliveries.listDeliveries({ tenantId, eventId });
  return deliveries[0] ?? expect.fail(`no delivery of ${eventId}`);
}

const redrive = async (tenantId: string, id: string) =>
  (await service.deliveries.redriveDelivery({ tenantId, id })).delivery;
const cancel = async (tenantId: string, id: string) =>
  (await service.deliveries.cancelDelivery({ tenantId, id })).delivery;

/** Publishes with a worker that delivers, until all attempts are recorded. */
async function deliverAll(attempts: number, work: () => Promise<unknown>): Promise<void> {
  const loop = startLoop(db, { schedule: [] });
  await work();
  await loop.until((events) => attemptsIn(events).length >= attempts);
  await loop.stop();
}

describe("RedriveDelivery", () => {
  it("[B28] delivers once more under the same id and sequence, with the next attempt number, and says so", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    await subscribe(tenant, { url: receiver.url });
    let eventId = "";
    await deliverAll(1, async () => {
      [eventId = ""] = await publish(tenant, ["u_1"]);
    });
    const before = await deliveryOf(tenant, eventId);
    expect(await redrive(tenant, before.id)).toMatchObject({
      id: before.id,
      state: DeliveryState.PENDING,
      attemptCount: 1,
    });
    await deliverAll(1, async () => undefined);
    const [first, second] = receiver.received;
    expect(second?.body).toBe(first?.body);
    expect(first?.headers["x-identity-redrive"]).toBeUndefined();
    expect(second?.headers).toMatchObject({
      "webhook-id": eventId,
      "x-identity-delivery-id": before.id,
      "x-identity-attempt": "2",
      "x-identity-redrive": "1",
    });
    const { delivery } = await service.deliveries.getDelivery({ tenantId: tenant, id: before.id });
    expect(delivery).toMatchObject({
      state: DeliveryState.DELIVERED,
      userSequence: before.userSequence,
      attemptCount: 2,
    });
    expect(delivery?.attempts.map(({ number }) => number)).toEqual([1, 2]);
  });

  it("[B28] brings a dead letter back with a retry schedule from its beginning, and a 410 to it disables nothing", async () => {
    const tenant = newTenant();
    const answers = [500, 410, 200];
    const receiver = await openReceiver((_, response) => response.writeHead(answers.shift() ?? 200).end());
    const subscriptionId = await subscribe(tenant, { url: receiver.url });
    let eventId = "";
    await deliverAll(1, async () => {
      [eventId = ""] = await publish(tenant, ["u_1"]);
    });
    const dead = await deliveryOf(tenant, eventId);
    expect(dead).toMatchObject({ state: DeliveryState.DEAD_LETTERED, endReason: DeliveryEndReason.RETRIES_EXHAUSTED });
    await redrive(tenant, dead.id);
    const loop = startLoop(db, { schedule: [20] });
    await loop.until((events) => attemptsIn(events).length === 2);
    await loop.stop();
    expect(await deliveryOf(tenant, eventId)).toMatchObject({ state: DeliveryState.DELIVERED, attemptCount: 3 });
    const read = await service.subscriptions.getWebhookSubscription({ tenantId: tenant, id: subscriptionId });
    expect(read.webhookSubscription?.state).toBe(SubscriptionState.ENABLED);
  });

  it("[B28] makes a pending head due now, and refuses a follower and what is being sent", async () => {
    const tenant = newTenant();
    await subscribe(tenant, { url: NOBODY });
    const [first = "", second = ""] = await publish(tenant, ["u_1", "u_1"]);
    await db.admin`UPDATE nuncio.outbox SET next_at = now() + interval '1 hour' WHERE next_at < 'infinity'`;
    const [head, follower] = [await deliveryOf(tenant, first), await deliveryOf(tenant, second)];
    expect(await failureOf(redrive(tenant, follower.id))).toMatchObject({
      code: "FailedPrecondition",
      reason: "DELIVERY_WAITS",
    });
    await redrive(tenant, head.id);
    const [row] = await db.admin`
      SELECT next_at <= now() AS due, redrive FROM nuncio.outbox o JOIN nuncio.tenants t USING (tenant_key)
      WHERE tenant_id = ${tenant} AND next_at < 'infinity'`;
    expect(row).toEqual({ due: true, redrive: false });
    await db.admin`
      UPDATE nuncio.outbox SET lease_token = 7, lease_expires_at = now() + interval '1 minute', next_at = now() + interval '1 minute'
      WHERE next_at < 'infinity'`;
    const underWay = { code: "FailedPrecondition", reason: "DELIVERY_UNDER_WAY" };
    expect(await failureOf(redrive(tenant, head.id))).toMatchObject(underWay);
    expect(await failureOf(cancel(tenant, head.id))).toMatchObject(underWay);
  });

  it("leaves what is due already in its place, which a claim on its way would take for how far it has come", async () => {
    const tenant = newTenant();
    await subscribe(tenant, { url: NOBODY });
    const [event = ""] = await publish(tenant, ["u_1"]);
    const rowOf = async () =>
      (
        await db.admin<{ next_at: Date }[]>`
          SELECT next_at FROM nuncio.outbox o JOIN nuncio.tenants t USING (tenant_key) WHERE tenant_id = ${tenant}`
      )[0];
    await db.admin`UPDATE nuncio.outbox SET next_at = now() - interval '1 hour' WHERE isfinite(next_at)`;
    const before = await rowOf();
    await redrive(tenant, (await deliveryOf(tenant, event)).id);
    expect(await rowOf()).toEqual(before);
    // Or the next test's worker would send it.
    await db.admin`DELETE FROM nuncio.outbox`;
  });

  it("refuses what was cancelled, and what a deleted subscription had", async () => {
    const tenant = newTenant();
    const id = await subscribe(tenant, { url: NOBODY });
    const [cancelled = "", dead = ""] = await publish(tenant, ["u_1", "u_2"]);
    await cancel(tenant, (await deliveryOf(tenant, cancelled)).id);
    const refused = { code: "FailedPrecondition", reason: "DELIVERY_NOT_REDRIVABLE" };
    expect(await failureOf(redrive(tenant, (await deliveryOf(tenant, cancelled)).id))).toMatchObject(refused);
    await deliverAll(1, async () => undefined);
    await service.subscriptions.deleteWebhookSubscription({ tenantId: tenant, id });
    expect(await failureOf(redrive(tenant, (await deliveryOf(tenant, dead)).id))).toMatchObject(refused);
  });
});

describe("CancelDelivery", () => {
  it("ends a pending delivery, makes its follower due, and changes nothing the second time", async () => {
    const tenant = newTenant();
    await subscribe(tenant, { url: NOBODY });
    const [first = "", second = "", third = ""] = await publish(tenant, ["u_1", "u_1", "u_1"]);
    const ids = await Promise.all([first, second, third].map(async (event) => (await deliveryOf(tenant, event)).id));
    const ended = { state: DeliveryState.CANCELLED, endReason: DeliveryEndReason.CANCELLED_BY_REQUEST };
    expect(await cancel(tenant, ids[1] ?? "")).toMatchObject(ended);
    // The head is still there: the third goes on waiting.
    expect((await deliveryOf(tenant, third)).nextAttemptTime).toBeUndefined();
    expect(await cancel(tenant, ids[0] ?? "")).toMatchObject(ended);
    expect(await cancel(tenant, ids[0] ?? "")).toMatchObject(ended);
    expect((await deliveryOf(tenant, third)).nextAttemptTime).toBeDefined();
  });

  it("refuses what has ended otherwise", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    await subscribe(tenant, { url: receiver.url });
    let eventId = "";
    await deliverAll(1, async () => {
      [eventId = ""] = await publish(tenant, ["u_1"]);
    });
    const { id } = await deliveryOf(tenant, eventId);
    expect(await failureOf(cancel(tenant, id))).toMatchObject({ code: "FailedPrecondition", reason: "DELIVERY_ENDED" });
  });
});

describe("a bulk redrive", () => {
  const create = async (tenantId: string, job: object, requestId = "") =>
    (await service.deliveries.createRedrive({ tenantId, redrive: job, requestId })).redrive;
  const get = async (tenantId: string, id: string) => (await service.deliveries.getRedrive({ tenantId, id })).redrive;

  /** A worker's redriver beside a loop, until the job has ended. */
  async function runToEnd(tenantId: string, id: string) {
    const stopping = new AbortController();
    const ended = Promise.withResolvers<void>();
    const running = keepRedriving(
      {
        sql: db.worker.hot,
        ...STEP,
        pollIntervalMs: 20,
        onDue: () => undefined,
        onEvent: (event) => {
          if (event.kind === "redrive_ended") ended.resolve();
          if (event.kind === "failed") ended.reject(event.error);
        },
      },
      stopping.signal,
    );
    cleanUp(async () => stopping.abort());
    await ended.promise;
    stopping.abort();
    await running;
    return get(tenantId, id);
  }

  it("[B28] brings back dead letters and what was missed while disabled or before it was there, oldest first", async () => {
    const tenant = newTenant();
    const missed = await publish(tenant, ["u_0"]);
    let isDown = true;
    const receiver = await openReceiver((_, response) => response.writeHead(isDown ? 500 : 200).end());
    const subscriptionId = await subscribe(tenant, { url: receiver.url });
    let dead: string[] = [];
    await deliverAll(2, async () => {
      dead = await publish(tenant, ["u_1", "u_2"]);
    });
    await db.admin`UPDATE nuncio.webhook_subscriptions SET state = 3, revision = revision + 1 WHERE tenant_key = (SELECT tenant_key FROM nuncio.tenants WHERE tenant_id = ${tenant})`;
    missed.push(...(await publish(tenant, ["u_3"])));
    isDown = false;
    await service.subscriptions.resumeWebhookSubscription({ tenantId: tenant, id: subscriptionId });
    const job = await create(tenant, { subscriptionId });
    expect(job).toMatchObject({ id: expect.stringMatching(/^rdr_/), state: RedriveState.RUNNING, subscriptionId });
    const before = receiver.received.length;
    const done = await runToEnd(tenant, job?.id ?? "");
    expect(done).toMatchObject({
      state: RedriveState.SUCCEEDED,
      scannedCount: 4n,
      redrivenCount: 4n,
      overtakenCount: 0n,
    });
    await deliverAll(4, async () => undefined);
    const got = receiver.received.slice(before).map(({ headers }) => headers["webhook-id"]);
    expect(got.toSorted()).toEqual([...missed, ...dead].toSorted());
    expect((await listAll(tenant)).map(({ state }) => state)).toEqual(Array(4).fill(DeliveryState.DELIVERED));
  });

  it("[B28] leaves out what was overtaken unless told, and what is pending in any case", async () => {
    const tenant = newTenant();
    const answers = [500, 200];
    const receiver = await openReceiver((_, response) => response.writeHead(answers.shift() ?? 200).end());
    const subscriptionId = await subscribe(tenant, { url: receiver.url, ordering: 2 });
    let old = "";
    await deliverAll(1, async () => {
      [old = ""] = await publish(tenant, ["u_1"]);
    });
    await deliverAll(1, () => publish(tenant, ["u_1"]));
    expect((await deliveryOf(tenant, old)).state).toBe(DeliveryState.DEAD_LETTERED);
    await service.subscriptions.pauseWebhookSubscription({ tenantId: tenant, id: subscriptionId });
    await publish(tenant, ["u_2"]);
    const careful = await create(tenant, { subscriptionId });
    expect(await runToEnd(tenant, careful?.id ?? "")).toMatchObject({
      redrivenCount: 0n,
      overtakenCount: 1n,
      scannedCount: 3n,
    });
    const bold = await create(tenant, { subscriptionId, includeOvertaken: true });
    expect(await runToEnd(tenant, bold?.id ?? "")).toMatchObject({ redrivenCount: 1n, overtakenCount: 0n });
    expect((await deliveryOf(tenant, old)).state).toBe(DeliveryState.PENDING);
  });

  it("goes by states, types and time", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const subscriptionId = await subscribe(tenant, { url: receiver.url });
    await deliverAll(2, async () => {
      await publish(tenant, ["u_1"]);
      await publish(tenant, ["u_2"], EventType.USER_DEACTIVATED);
    });
    const count = async (job: object) => {
      const made = await create(tenant, { subscriptionId, ...job });
      const done = await runToEnd(tenant, made?.id ?? "");
      await db.admin`DELETE FROM nuncio.outbox`;
      return Number(done?.redrivenCount);
    };
    const states = [DeliveryState.DELIVERED];
    expect(await count({})).toBe(0);
    expect(await count({ states })).toBe(2);
    expect(await count({ states, eventTypes: [EventType.USER_DEACTIVATED] })).toBe(1);
    expect(await count({ states, createTimeBefore: timestampFromMs(1_000_000) })).toBe(0);
    expect(await count({ states: [DeliveryState.DEAD_LETTERED], includeMissed: true })).toBe(0);
    const failure = await failureOf(
      create(tenant, {
        states: [DeliveryState.PENDING],
        createTimeAfter: timestampFromMs(2),
        createTimeBefore: timestampFromMs(1),
      }),
    );
    expect(failure.fields.toSorted()).toEqual([
      "redrive.create_time_before",
      "redrive.states[0]",
      "redrive.subscription_id",
    ]);
  });

  it("[B28] is idempotent by its request id, and one of a subscription runs at a time", async () => {
    const tenant = newTenant();
    const subscriptionId = await subscribe(tenant, { url: NOBODY });
    const [first, again] = [
      await create(tenant, { subscriptionId }, "r_1"),
      await create(tenant, { subscriptionId }, "r_1"),
    ];
    expect(again).toEqual(first);
    expect(await failureOf(create(tenant, { subscriptionId, includeMissed: true }, "r_1"))).toMatchObject({
      code: "AlreadyExists",
      reason: "REQUEST_ID_REUSED",
    });
    expect(await failureOf(create(tenant, { subscriptionId }, "r_2"))).toMatchObject({
      code: "FailedPrecondition",
      reason: "REDRIVE_UNDER_WAY",
    });
    const { redrive: cancelled } = await service.deliveries.cancelRedrive({ tenantId: tenant, id: first?.id ?? "" });
    expect(cancelled).toMatchObject({ state: RedriveState.CANCELLED });
    expect(await takeStep()).toBeUndefined();
    expect((await create(tenant, { subscriptionId }, "r_2"))?.state).toBe(RedriveState.RUNNING);
    await service.subscriptions.deleteWebhookSubscription({ tenantId: tenant, id: subscriptionId });
    expect(await takeStep()).toMatchObject({ hasEnded: true });
  });

  it("[B28] works past one page, never has more than its share pending, and goes on where a killed worker stopped", async () => {
    const tenant = newTenant();
    const users = Array.from({ length: 1_300 }, (_, i) => `u_${i}`);
    const ids = await publish(tenant, users);
    const subscriptionId = await subscribe(tenant, { url: NOBODY, ordering: 2 });
    const job = await create(tenant, { subscriptionId });
    const pending = async () => {
      const [row] = await db.admin`SELECT count(*)::integer AS count FROM nuncio.outbox WHERE redrive`;
      return row?.count as number;
    };
    // One that dies in its step: nothing of it has happened.
    const died = db.worker.hot.begin(async (sql) => {
      expect((await takeStep(sql as never))?.redriven).toBe(500);
      throw new Error("killed");
    });
    await expect(died).rejects.toThrow("killed");
    expect(await pending()).toBe(0);

    const redriven = new Set<string>();
    for (let steps = 0; ; steps += 1) {
      expect(steps).toBeLessThan(20);
      const step = await takeStep();
      expect(await pending()).toBeLessThanOrEqual(STEP.maxAhead);
      if (step?.hasEnded) break;
      if (step?.redriven !== undefined) continue;
      // It waits until its rows have gone.
      const gone =
        await db.admin`DELETE FROM nuncio.outbox o USING nuncio.events e WHERE o.redrive AND e.event_key = o.event_key RETURNING e.event_id`;
      for (const { event_id } of gone) expect(redriven.size).toBe(redriven.add(event_id).size - 1);
    }
    const left =
      await db.admin`SELECT e.event_id FROM nuncio.outbox o JOIN nuncio.events e USING (event_key) WHERE o.redrive`;
    expect(new Set([...redriven, ...left.map(({ event_id }) => event_id)])).toEqual(new Set(ids));
    expect(await get(tenant, job?.id ?? "")).toMatchObject({ scannedCount: 1_300n, redrivenCount: 1_300n });
  });
});
