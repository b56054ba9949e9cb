import { v7 as uuidV7 } from "uuid";
import { describe, expect, it } from "vitest";
import type { Uuid } from "../../src/core/ids.ts";
import { ownerOf } from "../../src/core/ownership.ts";
import { listOperationalEvents } from "../../src/store/operational-events.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { pauseSubscription, resumeSubscription } from "../../src/store/subscription-changes.ts";
import { getSubscription } from "../../src/store/subscriptions.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, toRow } from "../support/fixtures.ts";
import { attemptsIn, type RunningLoop, startLoop } from "../support/loop.ts";
import { openReceiver } from "../support/receiver.ts";

const db = useDatabase();
const DAY_MS = 86_400_000;

/** Events of different users. */
async function publish(tenantId: string, count: number): Promise<void> {
  const rows = Array.from({ length: count }, (_, i) => toRow(draftEvent(tenantId, { user: { id: `u_${i}` } })));
  await appendEvents(db.server.hot, rows, { maxPendingMs: 7 * DAY_MS });
}

const operationalEventsOf = async (tenantId: string) =>
  (
    await listOperationalEvents(
      db.server.orm,
      tenantId,
      { subscription: undefined, types: [] },
      { after: undefined, limit: 100 },
    )
  ).map(({ type, reason, count }) => [type, reason, count]);

const stateOf = async (lane: number) =>
  (await db.admin`SELECT * FROM nuncio.lane_states WHERE subscription_key = ${lane}`)[0];

describe("a receiver that answers 410", () => {
  it("[B24] disables its subscription, with a reason and an operational event", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver((_, response) => response.writeHead(410).end());
    const { uuid, lane } = await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant, 1);
    const loop = startLoop(db);
    await loop.until((events) => events.some(({ kind }) => kind === "lane_disabled"));
    await loop.stop();
    expect(await getSubscription(db.server.orm, tenant, uuid)).toMatchObject({
      state: "DISABLED",
      stateReason: "gone",
    });
    expect(await operationalEventsOf(tenant)).toEqual([["subscription.disabled", "gone", 1]]);
    // What is pending is held, not lost.
    expect(await db.admin`SELECT FROM nuncio.outbox WHERE subscription_key = ${lane}`).toHaveLength(1);
    expect((await stateOf(lane))?.stopped_since).not.toBeNull();
    await db.admin`DELETE FROM nuncio.outbox`;
  });

  it("[B24] does not if another delivery has succeeded within the last minute", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver((request, response) => {
      response.writeHead(request.body.includes("users/u_1") ? 410 : 200).end();
    });
    const { uuid, lane } = await addSubscription(db, tenant, { url: receiver.url, ordering: "PER_USER" });
    await publish(tenant, 1);
    const loop = startLoop(db, { schedule: [50] });
    await loop.until((events) => attemptsIn(events).length === 1);
    await publish(tenant, 2);
    await loop.until((events) => attemptsIn(events).some(({ record }) => record.decision.kind === "dead_letter"));
    expect(await getSubscription(db.server.orm, tenant, uuid)).toMatchObject({ state: "ENABLED" });
    await loop.stop();
    // Another worker, which has seen no success, finds it written down; a minute later it counts no more.
    const answer = startLoop(db, { schedule: [60_000] });
    await appendEvents(db.server.hot, [toRow(draftEvent(tenant, { user: { id: "u_1" } }))], {
      maxPendingMs: DAY_MS * 7,
    });
    await answer.until((events) => attemptsIn(events).length === 1);
    expect(await getSubscription(db.server.orm, tenant, uuid)).toMatchObject({ state: "ENABLED" });
    await answer.stop();
    await db.admin`UPDATE nuncio.lane_states SET last_success_at = now() - interval '61 s' WHERE subscription_key = ${lane}`;
    await db.admin`UPDATE nuncio.outbox SET next_at = now() WHERE subscription_key = ${lane}`;
    const last = startLoop(db, { schedule: [60_000, 60_000] });
    await last.until((events) => events.some(({ kind }) => kind === "lane_disabled"));
    await last.stop();
    await db.admin`DELETE FROM nuncio.outbox`;
  });
});

describe("a receiver that knows nothing but failure", () => {
  it("disables its subscription after five days", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver((_, response) => response.writeHead(500).end());
    const { uuid, lane } = await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant, 1);
    const first = startLoop(db, { schedule: [60_000, 60_000] });
    await first.until((events) => attemptsIn(events).length === 1);
    await first.stop();
    expect(await stateOf(lane)).toMatchObject({ consecutive_failures: 1, last_failure: "HTTP 500" });
    const failAgain = async (failing: string) => {
      await db.admin`
        UPDATE nuncio.lane_states SET failing_since = now() - ${failing}::interval WHERE subscription_key = ${lane}`;
      await db.admin`UPDATE nuncio.outbox SET next_at = now() WHERE subscription_key = ${lane}`;
      const loop = startLoop(db, { schedule: Array(9).fill(60_000) });
      await loop.until((events) => attemptsIn(events).length === 1);
      await loop.stop();
      return getSubscription(db.server.orm, tenant, uuid);
    };
    expect(await failAgain("4 days 23 hours")).toMatchObject({ state: "ENABLED", consecutiveFailures: 2 });
    expect(await failAgain("5 days 1 minute")).toMatchObject({ state: "DISABLED", stateReason: "failing" });
    expect(await operationalEventsOf(tenant)).toEqual([["subscription.disabled", "failing", 1]]);
    await resumeSubscription(db.server.orm, tenant, uuid);
    expect(await failAgain("1 minute")).toMatchObject({ state: "ENABLED" });
    await db.admin`DELETE FROM nuncio.outbox`;
  });
});

describe("a breaker", () => {
  it("[B40] opens and closes for all workers, and tells so once each", async () => {
    const tenant = newTenant();
    let isWell = false;
    const receiver = await openReceiver((_, response) => response.writeHead(isWell ? 200 : 500).end());
    const { lane } = await addSubscription(db, tenant, { url: receiver.url });
    await publish(tenant, 30);
    const first = startLoop(db, { schedule: [600_000, 600_000] });
    await first.until((events) => events.some(({ kind }) => kind === "lane_failing"));
    await first.stop();
    expect(receiver.received.length).toBeLessThanOrEqual(10 + 16);
    expect(await stateOf(lane)).toMatchObject({ breaker_trips: 1, breaker_until: expect.any(Date) });
    expect((await stateOf(lane))?.stopped_since).not.toBeNull();

    // A worker that starts now knows it, and sends nothing before the time of the probe.
    const sent = receiver.received.length;
    const second = startLoop(db, { schedule: [600_000, 600_000] });
    await second.until((events) => events.filter(({ kind }) => kind === "looked").length === 3);
    expect(receiver.received).toHaveLength(sent);
    await second.stop();
    isWell = true;
    await db.admin`UPDATE nuncio.lane_states SET breaker_until = now() WHERE subscription_key = ${lane}`;
    const third = startLoop(db);
    await third.until((events) => events.some(({ kind }) => kind === "lane_recovered"));
    await third.stop();
    expect(await stateOf(lane)).toMatchObject({ breaker_until: null, consecutive_failures: 0, stopped_since: null });
    expect((await operationalEventsOf(tenant)).toSorted()).toEqual([
      ["subscription.failing", "", 1],
      ["subscription.recovered", "", 1],
    ]);
    await db.admin`DELETE FROM nuncio.outbox`;
  });
});

describe("Retry-After", () => {
  it("[B22] holds the whole subscription, for every worker, and spends no attempt", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver((_, response) => response.writeHead(429, { "retry-after": "1800" }).end());
    const { lane } = await addSubscription(db, tenant, { url: receiver.url, maxInFlight: 1 });
    await publish(tenant, 5);
    const first = startLoop(db);
    await first.until((events) => attemptsIn(events).length === 1);
    await first.until((events) => events.filter(({ kind }) => kind === "looked").length >= 3);
    await first.stop();
    const second = startLoop(db);
    await second.until((events) => events.filter(({ kind }) => kind === "looked").length === 3);
    await second.stop();
    expect(receiver.received).toHaveLength(1);
    const rows = await db.admin`SELECT attempt FROM nuncio.outbox WHERE subscription_key = ${lane} ORDER BY attempt`;
    expect(rows.map(({ attempt }) => attempt)).toEqual([0, 0, 0, 0, 1]);
    const held = await stateOf(lane);
    expect(held?.held_until.getTime()).toBeGreaterThan(Date.now() + 1_700_000);
    // Its clock runs on: a hold of an hour is no excuse for one event to hold back a user for longer.
    expect(held?.stopped_since).toBeNull();
    await db.admin`DELETE FROM nuncio.outbox`;
  });
});

describe("a subscription's own limits", () => {
  it("[B25] [B27] bound its requests at once and per second, and a change is in force for the next claim", async () => {
    const tenant = newTenant();
    const arrivals: number[] = [];
    const receiver = await openReceiver((_, response) => {
      arrivals.push(performance.now());
      setTimeout(() => response.end(), 30);
    });
    const { lane } = await addSubscription(db, tenant, { url: receiver.url, maxInFlight: 2, requestsPerSecond: 20 });
    await publish(tenant, 20);
    const loop = startLoop(db, { pollIntervalMs: 50 });
    await receiver.until(() => receiver.received.length === 10);
    expect(receiver.open().most).toBeLessThanOrEqual(2);
    // Ten at 20 a second with two at the beginning: 400 ms at least.
    expect((arrivals[9] ?? 0) - (arrivals[0] ?? 0)).toBeGreaterThan(380);
    await db.admin`
      UPDATE nuncio.webhook_subscriptions SET max_in_flight = NULL, requests_per_second = NULL, revision = revision + 1
      WHERE subscription_key = ${lane}`;
    await receiver.until(() => receiver.received.length === 20);
    await loop.until((events) => attemptsIn(events).length === 20);
    await loop.stop();
    expect(attemptsIn(loop.events).every(({ record }) => record.number === 1)).toBe(true);
  });
});

describe("Resume", () => {
  it("spreads what waited over a minute, once there is much of it", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const { uuid, lane } = await addSubscription(db, tenant, { url: receiver.url });
    await pauseSubscription(db.server.orm, tenant, uuid);
    await publish(tenant, 600);
    const loop = startLoop(db);
    await loop.until((events) => events.some(({ kind }) => kind === "looked"));
    await resumeSubscription(db.server.orm, tenant, uuid);
    loop.wake({ lanes: [lane] });
    const began = performance.now();
    await receiver.until(() => receiver.received.length === 20);
    // 600 in a minute are ten a second.
    const seconds = (performance.now() - began) / 1_000;
    expect(receiver.received.length / Math.max(seconds, 0.1)).toBeLessThan(15);
    await loop.stop();
    await db.admin`DELETE FROM nuncio.outbox`;
  });
});

describe("two workers", () => {
  it("[B55] share the lanes: the owner alone sends, and the other once it has gone", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const lanes: number[] = [];
    for (let i = 0; i < 8; i += 1) lanes.push((await addSubscription(db, tenant, { url: receiver.url })).lane);
    const [a, b] = sharers(lanes);
    const ownedBy = (worker: Uuid) => new Set(lanes.filter((lane) => ownerOf(lane, [a, b]) === worker));
    const lanesOf = ({ events }: RunningLoop) =>
      new Set(attemptsIn(events).map(({ record }) => record.subscriptionKey));

    const loops = [startLoop(db, { worker: a }), startLoop(db, { worker: b })] as const;
    for (const loop of loops) {
      await loop.until((events) => events.some((event) => event.kind === "workers" && event.count === 2));
    }
    await publish(tenant, 20);
    for (const [i, worker] of [a, b].entries()) {
      const count = 20 * ownedBy(worker).size;
      await loops[i]?.until((events) => attemptsIn(events).length === count);
    }
    expect(loops.map(lanesOf)).toEqual([ownedBy(a), ownedBy(b)]);

    await loops[1].stop();
    await publish(tenant, 1);
    await loops[0].until(() => lanesOf(loops[0]).size === 8);
    await loops[0].stop();
  });
});

describe("a worker", () => {
  it("tells the owner of a lane what it makes due there", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const lanes: number[] = [];
    for (let i = 0; i < 4; i += 1) {
      lanes.push((await addSubscription(db, tenant, { url: receiver.url, ordering: "PER_USER" })).lane);
    }
    const [a, b] = sharers(lanes);
    // Nobody comes upon anything by itself, once both have joined.
    const loops = [a, b].map((worker) => startLoop(db, { worker, pollIntervalMs: 600_000 }));
    for (const loop of loops) {
      await loop.until((events) => events.some((event) => event.kind === "workers" && event.count === 2));
    }
    const head = toRow(draftEvent(tenant, { user: { id: "u_1" } }));
    const next = toRow(draftEvent(tenant, { user: { id: "u_1" } }));
    // The first has killed ten workers, as it seems: whoever looks next ends it in each lane.
    const one = await db.admin.reserve();
    await one`BEGIN`;
    await appendEvents(one, [head, next], { maxPendingMs: 7 * DAY_MS });
    await one`UPDATE nuncio.outbox SET lost_claims = 10 WHERE isfinite(next_at)`;
    await one`COMMIT`;
    one.release();
    loops[1]?.wake({ lanes: undefined });
    await receiver.until(() => receiver.received.length === lanes.length);
    expect(receiver.received.every(({ body }) => body.includes(next.eventId))).toBe(true);
    await Promise.all(loops.map((loop) => loop.stop()));
  });
});

/** Two workers that own at least two of the lanes each. */
function sharers(lanes: readonly number[]): [Uuid, Uuid] {
  for (;;) {
    const pair: [Uuid, Uuid] = [uuidV7() as Uuid, uuidV7() as Uuid];
    const ofFirst = lanes.filter((lane) => ownerOf(lane, pair) === pair[0]).length;
    if (ofFirst >= 2 && ofFirst <= lanes.length - 2) return pair;
  }
}
