import { randomBytes } from "node:crypto";
import { describe, expect, it } from "vitest";
import type { EventType } from "../../src/core/event.ts";
import type { Uuid } from "../../src/core/ids.ts";
import type { Decision } from "../../src/core/retry-policy.ts";
import type { SubscriptionOrdering } from "../../src/core/subscription.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { type ClaimedDelivery, claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import {
  endDeliveries,
  endExpiredDeliveries,
  endHoldingDeliveries,
  endLostDeliveries,
} from "../../src/store/outbox/end.ts";
import { promoteStranded } from "../../src/store/outbox/promote.ts";
import { recordAttempts } from "../../src/store/outbox/record.ts";
import { pauseSubscription, resumeSubscription } from "../../src/store/subscription-changes.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, recordOf, toRow } from "../support/fixtures.ts";

const db = useDatabase();
const failed = { kind: "http_status", httpStatus: 500, detail: "HTTP 500", excerpt: "" } as const;
const RETRY: Decision = { kind: "retry", delayMs: 60_000 };

type Spec = { user?: string; type?: EventType };

/** Appends the events in one transaction and returns their ids. */
async function publish(tenantId: string, ...specs: Spec[]): Promise<string[]> {
  const events = specs.map(({ user = "u_1", type = "user.created" }) =>
    draftEvent(tenantId, { type, user: { id: user, status: "ACTIVE" } }),
  );
  await appendEvents(db.server.hot, events.map(toRow), { maxPendingMs: 86_400_000 });
  return events.map(({ id }) => id);
}

const claim = (lane: number, quota = 100) =>
  claimDueDeliveries(db.worker.hot, [{ lane, quota, sinceMs: Number.NEGATIVE_INFINITY }], {
    leaseMs: 25_000,
    leaseToken: randomBytes(8).readBigInt64BE(),
  });

const idsOf = (claimed: readonly ClaimedDelivery[]) => claimed.map(({ event }) => event?.id);

const record = (claimed: readonly ClaimedDelivery[], decision?: Decision) =>
  recordAttempts(
    db.worker.hot,
    claimed.map((one) => recordOf(one, decision ? { outcome: failed, decision } : {})),
  );

const makeDue = (lane: number) => db.admin`
  UPDATE nuncio.outbox SET next_at = now(), lease_expires_at = CASE WHEN lease_token IS NOT NULL THEN now() END
  WHERE subscription_key = ${lane} AND isfinite(next_at)`;

const endsOf = async (lane: number) =>
  (
    await db.admin<{ event_id: string; end_reason: number }[]>`
      SELECT e.event_id, d.end_reason FROM nuncio.dead_letters d JOIN nuncio.events e USING (event_key)
      WHERE d.subscription_key = ${lane} ORDER BY e.user_sequence`
  ).map((row) => [row.event_id, row.end_reason]);

async function setUp(ordering: SubscriptionOrdering = "PER_USER", eventTypes: EventType[] = []) {
  const tenant = newTenant();
  return { tenant, lane: (await addSubscription(db, tenant, { ordering, eventTypes })).lane };
}

describe("the order of a user", () => {
  it("is that of each subscription for itself: what waits in another one holds nothing back", async () => {
    const tenant = newTenant();
    const first = await addSubscription(db, tenant, { ordering: "PER_USER", eventTypes: ["user.created"] });
    const second = await addSubscription(db, tenant, { ordering: "PER_USER", eventTypes: ["user.updated"] });
    const third = await addSubscription(db, tenant, { ordering: "PER_USER", eventTypes: ["user.deleted"] });
    await publish(tenant, { type: "user.created" }, { type: "user.deleted" });
    const [updated] = await publish(tenant, { type: "user.updated" });
    expect(idsOf(await claim(second.lane))).toEqual([updated]);
    const [again] = await publish(tenant, { type: "user.created" });
    expect(idsOf(await claim(first.lane))).not.toContain(again);
    expect(await claim(third.lane)).toHaveLength(1);
  });

  it("lets only the first delivery of each user be claimed, and the next one when that has ended", async () => {
    const { tenant, lane } = await setUp();
    const [a1, a2, b1] = await publish(tenant, { user: "a" }, { user: "a" }, { user: "b" });
    const [a3] = await publish(tenant, { user: "a" });
    const first = await claim(lane);
    expect(idsOf(first)).toEqual([a1, b1]);
    expect(await claim(lane)).toEqual([]);

    expect((await record(first)).promoted).toEqual([lane]);
    const second = await claim(lane);
    expect(idsOf(second)).toEqual([a2]);
    await record(second, { kind: "dead_letter", reason: "RETRIES_EXHAUSTED" });
    expect(idsOf(await claim(lane))).toEqual([a3]);
  });

  it("does not let the next one pass a delivery that waits for its next attempt", async () => {
    const { tenant, lane } = await setUp();
    const [first] = await publish(tenant, {}, {});
    expect((await record(await claim(lane), RETRY)).promoted).toEqual([]);
    expect(await claim(lane)).toEqual([]);
    await makeDue(lane);
    expect(idsOf(await claim(lane))).toEqual([first]);
  });

  it("makes what is published after everything has ended due at once", async () => {
    const { tenant, lane } = await setUp();
    await publish(tenant, {});
    await record(await claim(lane));
    const [next] = await publish(tenant, {});
    expect(idsOf(await claim(lane))).toEqual([next]);
  });

  it("is kept per subscription: one that is ahead waits for none that is behind", async () => {
    const { tenant, lane } = await setUp();
    const { lane: behind } = await addSubscription(db, tenant, { ordering: "PER_USER" });
    const [first, second] = await publish(tenant, {}, {});
    await record(await claim(lane));
    expect(idsOf(await claim(lane))).toEqual([second]);
    expect(idsOf(await claim(behind))).toEqual([first]);
  });

  it("counts only what matches the subscription", async () => {
    const { tenant, lane } = await setUp("PER_USER", ["user.deactivated"]);
    const [, leaving] = await publish(tenant, { type: "user.created" }, { type: "user.deactivated" });
    expect(idsOf(await claim(lane))).toEqual([leaving]);
  });

  it("costs a subscription without an order neither waiting nor an index entry", async () => {
    const { tenant, lane } = await setUp("NONE");
    const ids = await publish(tenant, {}, {}, {});
    expect(
      await db.admin`SELECT FROM nuncio.outbox WHERE subscription_key = ${lane} AND user_key IS NULL`,
    ).toHaveLength(3);
    expect(idsOf(await claim(lane))).toEqual(ids);
  });

  it.each<[string, (claimed: ClaimedDelivery[]) => Promise<{ promoted: readonly number[] }>]>([
    ["it was claimed after its time", (claimed) => endDeliveries(db.worker.hot, claimed, "EXPIRED")],
    [
      "its time was up",
      async (claimed) => {
        await record(claimed, RETRY);
        await db.admin`UPDATE nuncio.outbox SET expires_at = now() WHERE event_key = ${claimed[0]?.eventKey ?? null}`;
        return endExpiredDeliveries(db.worker.hot, 100);
      },
    ],
    [
      "it killed its workers",
      async (claimed) => {
        await db.admin`
          UPDATE nuncio.outbox SET lost_claims = 9, lease_expires_at = now() WHERE event_key = ${claimed[0]?.eventKey ?? null}`;
        return endLostDeliveries(db.worker.hot, 100);
      },
    ],
  ])("goes on when a delivery ends because %s", async (_, end) => {
    const { tenant, lane } = await setUp();
    const [, next] = await publish(tenant, {}, {});
    expect(await end(await claim(lane))).toMatchObject({ count: 1, promoted: [lane] });
    expect(idsOf(await claim(lane))).toEqual([next]);
  });

  it("ends what waits in the middle of it without a gap", async () => {
    const { tenant, lane } = await setUp();
    const [first, , third] = await publish(tenant, {}, {}, {});
    await db.admin`
      UPDATE nuncio.outbox SET expires_at = now()
      WHERE subscription_key = ${lane} AND user_sequence = (SELECT min(user_sequence) + 1 FROM nuncio.outbox WHERE subscription_key = ${lane})`;
    expect(await endExpiredDeliveries(db.worker.hot, 100)).toMatchObject({ count: 1, promoted: [] });
    const head = await claim(lane);
    expect(idsOf(head)).toEqual([first]);
    await record(head);
    expect(idsOf(await claim(lane))).toEqual([third]);
  });

  it("is repaired by the sweeper when a delivery vanishes, which finds nothing else", async () => {
    const { tenant, lane } = await setUp();
    const [, next] = await publish(tenant, {}, {}, { user: "b" }, { user: "b" });
    expect(await promoteStranded(db.worker.hot, 100)).toMatchObject({ promoted: [] });
    const [gone] = await claim(lane, 1);
    await db.admin`DELETE FROM nuncio.outbox WHERE event_key = ${gone?.eventKey ?? null}`;
    expect(await promoteStranded(db.worker.hot, 100)).toMatchObject({ promoted: [lane] });
    expect(await promoteStranded(db.worker.hot, 100)).toMatchObject({ promoted: [] });
    expect(idsOf(await claim(lane))).toContain(next);
  });

  it("changes nothing for a record whose lease has moved on", async () => {
    const { tenant, lane } = await setUp();
    await publish(tenant, {}, {});
    const old = await claim(lane);
    await makeDue(lane);
    const current = await claim(lane);
    expect(await record(old)).toMatchObject({ stale: [true], promoted: [], superseded: [] });
    expect(await claim(lane)).toEqual([]);
    expect((await record(current)).promoted).toEqual([lane]);
  });
});

describe("a delivery that fails again and again", () => {
  const HOUR = 3_600_000;
  const end = () => endHoldingDeliveries(db.worker.hot, HOUR, 100);
  /** As if what is stored had been stored so much earlier. */
  const age = (lane: number, ms: number, rows: "head" | "followers" | "all" = "all") => db.admin`
    UPDATE nuncio.outbox SET held_from = held_from - ${ms}::bigint * interval '1 ms'
    WHERE subscription_key = ${lane} AND (${rows} = 'all' OR isfinite(next_at) = (${rows} = 'head'))`;

  async function failing() {
    const { tenant, lane } = await setUp();
    const ids = await publish(tenant, {}, {}, { user: "b" });
    const [head] = await claim(lane);
    await record([head as ClaimedDelivery], RETRY);
    return { tenant, lane, ids };
  }

  it("[B38] holds its user back for `order_hold` and no longer, then is a dead letter and the next goes on", async () => {
    const { lane, ids } = await failing();
    await age(lane, HOUR - 5_000);
    expect(await end()).toMatchObject({ count: 0 });
    await age(lane, 5_000);
    expect(await end()).toMatchObject({ count: 1, promoted: [lane] });
    expect(await endsOf(lane)).toEqual([[ids[0], 3]]);
    expect(idsOf(await claim(lane))).toEqual([ids[1]]);
  });

  it("[B38] is counted only since another one waits, and only since it fails", async () => {
    const { lane } = await failing();
    await age(lane, 2 * HOUR, "head");
    expect(await end()).toMatchObject({ count: 0 });
    const untried = await setUp();
    await publish(untried.tenant, {}, {});
    await age(untried.lane, 2 * HOUR);
    expect(await end()).toMatchObject({ count: 0 });
    await age(lane, 2 * HOUR, "followers");
    expect(await end()).toMatchObject({ count: 1 });
  });

  it("ends for nobody's sake if nobody waits, or while it is being sent", async () => {
    const { lane } = await failing();
    await age(lane, 2 * HOUR);
    await makeDue(lane);
    const again = await claim(lane);
    expect(await end()).toMatchObject({ count: 0 });
    await record(again, RETRY);
    await db.admin`DELETE FROM nuncio.outbox WHERE subscription_key = ${lane} AND next_at = 'infinity'`;
    expect(await end()).toMatchObject({ count: 0 });
  });

  it("is not held against it while the subscription is paused", async () => {
    const { tenant, lane } = await failing();
    const [{ uuid } = { uuid: "" as Uuid }] = await db.admin<{ uuid: Uuid }[]>`
      SELECT subscription_uuid AS uuid FROM nuncio.webhook_subscriptions WHERE subscription_key = ${lane}`;
    await pauseSubscription(db.server.orm, tenant, uuid);
    // Two hours pass: everything stored moves into the past.
    await db.admin`
      UPDATE nuncio.lane_states SET stopped_since = stopped_since - interval '2 h' WHERE subscription_key = ${lane}`;
    await age(lane, 2 * HOUR);
    expect(await end()).toMatchObject({ count: 0 });
    const [late] = await publish(tenant, {});
    await resumeSubscription(db.server.orm, tenant, uuid);
    expect(await end()).toMatchObject({ count: 0 });
    const [row] = await db.admin<{ waits_ms: number }[]>`
      SELECT extract(epoch FROM nuncio.lane_clock(${lane}) - q.held_from)::float8 * 1000 AS waits_ms
      FROM nuncio.outbox q JOIN nuncio.events e USING (event_key) WHERE e.event_id = ${late ?? ""}`;
    expect(row?.waits_ms).toBeGreaterThanOrEqual(0);
    expect(row?.waits_ms).toBeLessThan(60_000);
    await age(lane, HOUR);
    expect(await end()).toMatchObject({ count: 1 });
  });
});

describe("who leaves", () => {
  it.each(["user.deactivated", "user.deleted"] as const)(
    "[B38] ends with %s what has failed of the same user, and is due at once",
    async (type) => {
      const { tenant, lane } = await setUp();
      const [failing] = await publish(tenant, { user: "a" }, { user: "b" });
      await record(await claim(lane), RETRY);
      const [leaving] = await publish(tenant, { user: "a", type });
      expect(await endsOf(lane)).toEqual([[failing, 4]]);
      expect(idsOf(await claim(lane))).toEqual([leaving]);
    },
  );

  it("[B38] waits for what has not been tried, and for that only until it fails", async () => {
    const { tenant, lane } = await setUp();
    const [failing, untried] = await publish(tenant, {}, {});
    await record(await claim(lane), RETRY);
    const [leaving] = await publish(tenant, { type: "user.deactivated" });
    expect(await endsOf(lane)).toEqual([[failing, 4]]);
    const next = await claim(lane);
    expect(idsOf(next)).toEqual([untried]);
    const recorded = await record(next, RETRY);
    const [due] = await db.admin`
      SELECT date_part('epoch', next_at) * 1000 AS at_ms FROM nuncio.outbox WHERE subscription_key = ${lane}`;
    expect(recorded).toEqual({ stale: [false], promoted: [lane], atMs: due?.at_ms, superseded: [lane] });
    expect(await endsOf(lane)).toEqual([
      [failing, 4],
      [untried, 4],
    ]);
    expect(idsOf(await claim(lane))).toEqual([leaving]);
  });

  it("does not end what is being sent right now, but its failure does", async () => {
    const { tenant, lane } = await setUp();
    const [sending] = await publish(tenant, {});
    await record(await claim(lane), RETRY);
    await makeDue(lane);
    const again = await claim(lane);
    const [leaving] = await publish(tenant, { type: "user.deleted" });
    expect(await endsOf(lane)).toEqual([]);
    expect(await claim(lane)).toEqual([]);
    await record(again, RETRY);
    expect(await endsOf(lane)).toEqual([[sending, 4]]);
    expect(idsOf(await claim(lane))).toEqual([leaving]);
  });

  it("ends an earlier leaving that failed, since the later one says it again", async () => {
    const { tenant, lane } = await setUp();
    const [deactivated] = await publish(tenant, { type: "user.deactivated" });
    await record(await claim(lane), RETRY);
    const [deleted] = await publish(tenant, { type: "user.deleted" });
    expect(await endsOf(lane)).toEqual([[deactivated, 4]]);
    expect(idsOf(await claim(lane))).toEqual([deleted]);
  });

  it("leaves alone what comes after it, other users, and subscriptions that do not get it", async () => {
    const { tenant, lane } = await setUp("PER_USER", ["user.created", "user.reactivated"]);
    const { lane: all } = await addSubscription(db, tenant, { ordering: "PER_USER" });
    await publish(tenant, { user: "a" }, { user: "b" });
    await record(await claim(lane), RETRY);
    const [ofA, ofB] = await claim(all);
    await record([ofB as ClaimedDelivery], RETRY);
    await record([ofA as ClaimedDelivery]);
    await publish(tenant, { user: "a", type: "user.deactivated" });
    await record(await claim(all));
    await publish(tenant, { user: "a", type: "user.reactivated" });
    await record(await claim(all), RETRY);
    expect(await endsOf(lane)).toEqual([]);
    expect(await endsOf(all)).toEqual([]);
    expect(await db.admin`SELECT FROM nuncio.outbox WHERE subscription_key = ${all} AND failures > 0`).toHaveLength(2);
  });

  it("ends nothing when its event is a duplicate, or when the two users only share a key", async () => {
    const { tenant, lane } = await setUp();
    const leaving = draftEvent(tenant, { type: "user.deactivated", user: { id: "a", status: "DEACTIVATED" } });
    const append = () => appendEvents(db.server.hot, [toRow(leaving)], { maxPendingMs: 86_400_000 });
    await append();
    await record(await claim(lane));
    await publish(tenant, { user: "a", type: "user.reactivated" });
    await record(await claim(lane), RETRY);
    expect(await append()).toEqual([{ kind: "duplicate" }]);

    await publish(tenant, { user: "b" });
    await record(await claim(lane), RETRY);
    await db.admin`
      UPDATE nuncio.outbox SET user_key = nuncio.user_key(${tenant}, 'c') WHERE subscription_key = ${lane}`;
    await publish(tenant, { user: "c", type: "user.deleted" });
    expect(await endsOf(lane)).toEqual([]);
  });

  it("takes its turn like any other where there is no order", async () => {
    const { tenant, lane } = await setUp("NONE");
    await publish(tenant, {});
    await record(await claim(lane), RETRY);
    await publish(tenant, { type: "user.deactivated" });
    expect(await endsOf(lane)).toEqual([]);
  });
});
