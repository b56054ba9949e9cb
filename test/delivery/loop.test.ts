import { type CloudEvent, HTTP } from "cloudevents";
import type { Sql } from "postgres";
import { Webhook } from "standardwebhooks";
import Stripe from "stripe";
import { Webhook as SvixWebhook } from "svix";
import { v7 as uuidV7 } from "uuid";
import { describe, expect, it } from "vitest";
import { formatDeliveryId, type Uuid } from "../../src/core/ids.ts";
import { ownerOf } from "../../src/core/ownership.ts";
import { cacheTargets, type TargetCache } from "../../src/delivery/targets.ts";
import { getDelivery, listDeliveries } from "../../src/store/deliveries.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { createWakeUp } from "../../src/store/outbox/wake-up.ts";
import { deleteSubscription, pauseSubscription, resumeSubscription } from "../../src/store/subscription-changes.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, toRow } from "../support/fixtures.ts";
import { attemptsIn, startLoop } from "../support/loop.ts";
import { openReceiver } from "../support/receiver.ts";

const db = useDatabase();
const ALL = {
  subscription: undefined,
  states: [],
  eventTypes: [],
  eventId: undefined,
  userId: undefined,
  createdFromMs: undefined,
  createdBeforeMs: undefined,
};

async function publish(tenantId: string, count = 1, traceparent?: string) {
  const drafts = Array.from({ length: count }, (_, i) =>
    draftEvent(tenantId, { user: { id: `u_${i}`, displayName: "Zoë \u2028 👩‍💻 김", status: "ACTIVE" } }),
  );
  await appendEvents(
    db.server.hot,
    drafts.map((draft) => ({ ...toRow(draft), traceparent })),
    { maxPendingMs: 7 * 86_400_000 },
  );
  return drafts;
}

const stored = async (eventId: string) =>
  (await db.admin`SELECT body, event_key FROM nuncio.events WHERE event_id = ${eventId}`)[0];
const statesOf = async (tenantId: string) =>
  (await listDeliveries(db.server.orm, tenantId, ALL, { after: undefined, limit: 1000 })).map(({ state }) => state);

describe("a delivery", () => {
  it("[B01] reaches each matching receiver byte for byte, with the headers of the contract", async () => {
    const tenant = newTenant();
    const receivers = [await openReceiver(), await openReceiver()];
    const subscriptions = [];
    for (const { url } of receivers)
      subscriptions.push(await addSubscription(db, tenant, { url, headers: { "X-Team": "seven" } }));
    const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const [event] = await publish(tenant, 1, trace);
    const loop = startLoop(db);
    await Promise.all(receivers.map((receiver) => receiver.until(() => receiver.received.length === 1)));
    const row = await stored(event?.id ?? "");
    for (const [i, { received }] of receivers.entries()) {
      expect(received[0]?.body).toBe(row?.body);
      expect(received[0]?.headers).toMatchObject({
        "content-type": "application/json",
        "webhook-id": event?.id,
        "x-identity-event-id": event?.id,
        "x-identity-delivery-id": formatDeliveryId(row?.event_key, subscriptions[i]?.uuid as never),
        "x-identity-attempt": "1",
        "x-team": "seven",
        traceparent: trace,
      });
    }
    await loop.stop();
    expect(await statesOf(tenant)).toEqual(["DELIVERED", "DELIVERED"]);
  });

  it("[B29] verifies with the public standardwebhooks, svix and stripe packages, and not once anything is changed", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const { secret } = await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant);
    const loop = startLoop(db);
    await receiver.until(() => receiver.received.length === 1);
    await loop.stop();
    const [{ body, headers } = { body: "", headers: {} }] = receiver.received;
    const flat = Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, String(value)]));
    const svix = Object.fromEntries(
      ["id", "timestamp", "signature"].map((part) => [`svix-${part}`, flat[`webhook-${part}`] ?? ""]),
    );
    const stripe = new Stripe("sk_test_x").webhooks;
    const identity = flat["x-identity-signature"] ?? "";

    expect(new Webhook(secret).verify(body, flat)).toMatchObject({ id: flat["webhook-id"] });
    expect(() => new SvixWebhook(secret).verify(body, svix)).not.toThrow();
    expect(stripe.constructEvent(body, identity, secret)).toMatchObject({ id: flat["webhook-id"] });

    const changed = body.replace("Zoë", "Zoe");
    const other = `whsec_${Buffer.alloc(32, 1).toString("base64")}`;
    const old = { ...flat, "webhook-timestamp": String(Number(flat["webhook-timestamp"]) - 600) };
    expect(() => new Webhook(secret).verify(changed, flat)).toThrow();
    expect(() => new Webhook(other).verify(body, flat)).toThrow();
    expect(() => new Webhook(secret).verify(body, old)).toThrow();
    expect(() => new SvixWebhook(secret).verify(changed, svix)).toThrow();
    expect(() => stripe.constructEvent(changed, identity, secret)).toThrow();
    expect(() => stripe.constructEvent(body, identity, other)).toThrow();
    expect(() => stripe.constructEvent(body, identity, secret, 300, undefined, Date.now() + 600_000)).toThrow();
  });

  it("is a CloudEvent for the public cloudevents package where the subscription asks for that", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    await addSubscription(db, tenant, { url: receiver.url, contentType: "CLOUDEVENTS_JSON" });
    const [event] = await publish(tenant);
    const loop = startLoop(db);
    await receiver.until(() => receiver.received.length === 1);
    await loop.stop();
    const [{ body, headers } = { body: "", headers: {} }] = receiver.received;
    expect(headers["content-type"]).toBe("application/cloudevents+json; charset=utf-8");
    const parsed = HTTP.toEvent({ headers, body }) as CloudEvent;
    expect(parsed).toMatchObject({
      id: event?.id,
      type: "user.created",
      source: `/tenants/${tenant}`,
      subject: "users/u_0",
      tenantid: tenant,
    });
    expect(parsed.validate()).toBe(true);
  });

  it("[B07] accepted while no worker ran arrives once one does", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant, 20);
    expect(receiver.received).toHaveLength(0);
    const loop = startLoop(db);
    await receiver.until(() => receiver.received.length === 20);
    await loop.stop();
    expect(new Set(receiver.received.map(({ headers }) => headers["webhook-id"])).size).toBe(20);
  });

  it("[B13] reaches each of several subscriptions exactly once, whichever of them fails", async () => {
    const tenant = newTenant();
    const good = [await openReceiver(), await openReceiver()];
    const bad = await openReceiver((_, response) => response.writeHead(500).end());
    for (const { url } of [...good, bad]) await addSubscription(db, tenant, { url });
    await publish(tenant, 10);
    const loop = startLoop(db);
    await loop.until(
      (events) => attemptsIn(events).filter(({ record }) => record.decision.kind === "dead_letter").length === 10,
    );
    await loop.stop();
    for (const { received } of good) {
      expect(received).toHaveLength(10);
      expect(new Set(received.map(({ headers }) => headers["webhook-id"])).size).toBe(10);
    }
    expect(bad.received).toHaveLength(40);
    expect((await statesOf(tenant)).filter((state) => state === "DEAD_LETTERED")).toHaveLength(10);
  });

  it("[B23] is tried again with the same id and body, a new time and number, until the schedule ends", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver((_, response) => response.writeHead(503).end("busy"));
    const { uuid } = await addSubscription(db, tenant, { url: receiver.url });
    const [event] = await publish(tenant);
    const loop = startLoop(db);
    await loop.until((events) => attemptsIn(events).some(({ record }) => record.decision.kind === "dead_letter"));
    await loop.stop();
    expect(receiver.received.map(({ headers }) => headers["x-identity-attempt"])).toEqual(["1", "2", "3", "4"]);
    expect(
      new Set(
        receiver.received.map(
          ({ body, headers }) => `${headers["webhook-id"]}${headers["x-identity-delivery-id"]}${body}`,
        ),
      ).size,
    ).toBe(1);
    const row = await stored(event?.id ?? "");
    const { delivery, attempts } = await getDelivery(db.server.orm, tenant, {
      eventKey: row?.event_key,
      subscription: uuid,
    });
    expect(delivery).toMatchObject({ state: "DEAD_LETTERED", endReason: "RETRIES_EXHAUSTED", attemptCount: 4 });
    expect(attempts.map(({ number, outcome, responseExcerpt }) => [number, outcome, responseExcerpt])).toEqual(
      [1, 2, 3, 4].map((n) => [n, "http_status", "busy"]),
    );
    const gaps = attempts.slice(1).map((attempt, i) => attempt.startedAtMs - (attempts[i]?.startedAtMs ?? 0));
    for (const [i, delay] of [20, 40, 80].entries()) expect(gaps[i]).toBeGreaterThanOrEqual(delay);
  });
});

describe("the loop", () => {
  it("[B25] never has more requests open than its slots, nor than one subscription may have", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver((_, response) => setTimeout(() => response.end(), 5));
    for (let i = 0; i < 4; i += 1) await addSubscription(db, tenant, { url: receiver.url });
    const single = await openReceiver((_, response) => setTimeout(() => response.end(), 5));
    await addSubscription(db, tenant, { url: single.url });
    await publish(tenant, 100);
    const loop = startLoop(db, { concurrency: 10, maxInFlight: 3 });
    await receiver.until(() => receiver.received.length === 400);
    await single.until(() => single.received.length === 100);
    await loop.stop();
    expect(receiver.open().most + single.open().most).toBeLessThanOrEqual(13);
    expect(receiver.open().most).toBeLessThanOrEqual(10);
    expect(single.open().most).toBeLessThanOrEqual(3);
  });

  it("[B54] starts no request on a lease that is too short for it, and hands the row back uncounted", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const { lane } = await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant);
    const loop = startLoop(db, { leaseMs: 6_000, requestTimeoutMs: 2_000 });
    await loop.until((events) => events.some(({ kind }) => kind === "released"));
    await loop.stop();
    expect(receiver.received).toHaveLength(0);
    expect(
      await db.admin`SELECT attempt, lost_claims, lease_token FROM nuncio.outbox WHERE subscription_key = ${lane}`,
    ).toEqual([{ attempt: 0, lost_claims: 0, lease_token: null }]);
    await deleteRows(lane);
  });

  it("[B43] keeps the result of a lease that has passed on as stale, and changes nothing", async () => {
    const tenant = newTenant();
    let finish: () => void = () => undefined;
    const receiver = await openReceiver((request, response) => {
      if (receiver.received.length === 1) finish = () => response.end();
      else response.end();
      expect(request.headers["x-identity-attempt"]).toBe(String(receiver.received.length));
    });
    const { lane } = await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant);
    // It looks at nothing any more once it sends, and the lane falls to whoever comes.
    const [standing, coming] = workersOf(lane);
    const zombie = startLoop(db, { worker: standing, pollIntervalMs: 600_000 }, { listens: false });
    await receiver.until(() => receiver.received.length === 1);
    // What happens to a process that stands still for longer than its lease.
    await db.admin`UPDATE nuncio.outbox SET next_at = now(), lease_expires_at = now() WHERE subscription_key = ${lane}`;
    const successor = startLoop(db, { worker: coming });
    await successor.until((events) => attemptsIn(events).length === 1);
    finish();
    await zombie.until((events) => attemptsIn(events).length === 1);
    await Promise.all([zombie.stop(), successor.stop()]);
    expect(attemptsIn(successor.events)).toMatchObject([{ stale: false, record: { number: 2 } }]);
    expect(attemptsIn(zombie.events)).toMatchObject([{ stale: true, record: { number: 1 } }]);
    const attempts =
      await db.admin`SELECT number, stale FROM nuncio.delivery_attempts WHERE subscription_key = ${lane} ORDER BY number`;
    expect(attempts).toEqual([
      { number: 1, stale: true },
      { number: 2, stale: false },
    ]);
  });

  it("[B45] drains: claims no more, lets what is in flight end and records it", async () => {
    const tenant = newTenant();
    const answers: (() => void)[] = [];
    const receiver = await openReceiver((_, response) => answers.push(() => response.end()));
    const { lane } = await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant, 30);
    const loop = startLoop(db, { maxInFlight: 10 });
    await receiver.until(() => receiver.received.length === 10);
    const stopped = loop.stop();
    for (const answer of answers) answer();
    await stopped;
    expect(receiver.received).toHaveLength(10);
    const rows = await db.admin`SELECT attempt, lease_token FROM nuncio.outbox WHERE subscription_key = ${lane}`;
    expect(rows).toHaveLength(20);
    expect(rows.every(({ attempt, lease_token }) => attempt === 0 && lease_token === null)).toBe(true);
    await deleteRows(lane);
  });

  it("does not wait for a look at the outbox because its transaction took long and others were faster", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    await addSubscription(db, tenant, { url: receiver.url, ordering: "NONE" });
    const wakeUp = createWakeUp(db.server.hot, (error) => {
      throw error;
    });
    const append = async (sql: Sql, userId: string) => {
      const rows = [toRow(draftEvent(tenant, { user: { id: userId } }))];
      const [result] = await appendEvents(sql, rows, { maxPendingMs: 7 * 86_400_000 });
      if (result?.kind !== "appended") throw new Error("not appended");
      return () => wakeUp.announce(result.lanes, result.dueAtMs);
    };
    const loop = startLoop(db, { pollIntervalMs: 600_000 });
    const deliverOne = async () => {
      const count = receiver.received.length + 1;
      const announce = await append(db.server.hot, "u_fast");
      // Until the listener is there nobody hears it.
      const announcing = setInterval(announce, 50);
      announce();
      await receiver.until(() => receiver.received.length === count);
      clearInterval(announcing);
    };
    await deliverOne();
    const slow = await db.server.hot.reserve();
    await slow`BEGIN`;
    const isOld = async () =>
      (await slow<{ is_old: boolean }[]>`SELECT clock_timestamp() - now() > '2.5 s' AS is_old`)[0]?.is_old;
    while (!(await isOld())) await deliverOne();
    const announce = await append(slow, "u_slow");
    await slow`COMMIT`;
    slow.release();
    announce();
    await receiver.until(() => receiver.received.at(-1)?.body.includes("u_slow") === true);
    await loop.stop();
  });

  it("[B14] sends nothing while paused, delivers all of it after, and cancels what a deleted subscription had", async () => {
    const tenant = newTenant();
    const [paused, deleted] = [await openReceiver(), await openReceiver()];
    const first = await addSubscription(db, tenant, { url: paused.url });
    const second = await addSubscription(db, tenant, { url: deleted.url });
    await pauseSubscription(db.server.orm, tenant, first.uuid);
    await pauseSubscription(db.server.orm, tenant, second.uuid);
    await publish(tenant, 5);
    const loop = startLoop(db);
    await loop.until((events) => events.some(({ kind }) => kind === "looked"));
    await deleteSubscription(db.server.orm, tenant, second.uuid);
    await loop.until((events) => events.some((event) => event.kind === "ended" && event.count === 5));
    expect(paused.received).toHaveLength(0);
    const { lane } = await resumeSubscription(db.server.orm, tenant, first.uuid);
    loop.wake({ lanes: [lane] });
    await paused.until(() => paused.received.length === 5);
    await loop.stop();
    expect(deleted.received).toHaveLength(0);
    expect((await statesOf(tenant)).sort()).toEqual([...Array(5).fill("CANCELLED"), ...Array(5).fill("DELIVERED")]);
  });

  it("[B52] ends a delivery that has expired without sending it", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const { lane } = await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant);
    await db.admin`UPDATE nuncio.outbox SET expires_at = now() WHERE subscription_key = ${lane}`;
    const loop = startLoop(db);
    await loop.until((events) => events.some((event) => event.kind === "ended" && event.reason === "EXPIRED"));
    await loop.stop();
    expect(receiver.received).toHaveLength(0);
    expect(
      await db.admin`SELECT end_reason, attempt FROM nuncio.dead_letters WHERE subscription_key = ${lane}`,
    ).toEqual([{ end_reason: 2, attempt: 0 }]);
  });

  it("[B46] finds what is due within the poll interval when no wake-up arrives", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    await addSubscription(db, tenant, { url: receiver.url });
    const loop = startLoop(db, { pollIntervalMs: 50 });
    await loop.until((events) => events.some(({ kind }) => kind === "looked"));
    // Straight into the store: nobody announces it.
    await publish(tenant, 3);
    await receiver.until(() => receiver.received.length === 3);
    await loop.stop();
  });

  it("comes to a row again that it has handed back, without waiting for a look at the outbox", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant);
    const targets = cacheTargets(db.worker.hot, db.box);
    let isAway = true;
    const refresh: TargetCache["refresh"] = async (claimed) => {
      if (!isAway) return targets.refresh(claimed);
      isAway = false;
      throw new Error("the targets cannot be read");
    };
    const loop = startLoop(db, { pollIntervalMs: 600_000, targets: { ...targets, refresh } });
    await receiver.until(() => receiver.received.length === 1);
    await loop.stop();
    expect(loop.events.flatMap((event) => (event.kind === "released" ? [event.count] : []))).toEqual([1]);
    expect(attemptsIn(loop.events).map(({ record }) => record.number)).toEqual([1]);
  });

  it("takes a changed target for the next claim", async () => {
    const tenant = newTenant();
    const [before, after] = [await openReceiver(), await openReceiver()];
    const { lane } = await addSubscription(db, tenant, { url: before.url });
    const loop = startLoop(db, { pollIntervalMs: 50 });
    await publish(tenant);
    await before.until(() => before.received.length === 1);
    await db.admin`UPDATE nuncio.webhook_subscriptions SET url = ${after.url}, revision = revision + 1 WHERE subscription_key = ${lane}`;
    await publish(tenant);
    await after.until(() => after.received.length === 1);
    await loop.stop();
    expect(before.received).toHaveLength(1);
  });
});

/** Two workers of which the second owns the lane when both live. */
function workersOf(lane: number): [Uuid, Uuid] {
  const workers = Array.from({ length: 64 }, () => uuidV7() as Uuid);
  const owner = ownerOf(lane, workers) as Uuid;
  return [workers.find((worker) => worker !== owner) as Uuid, owner];
}

const deleteRows = (lane: number) => db.admin`DELETE FROM nuncio.outbox WHERE subscription_key = ${lane}`;
