import { drizzle, type PostgresJsDatabase } from "drizzle-orm/postgres-js";
import postgres from "postgres";
import { describe, expect, it } from "vitest";
import type { SubscriptionOrdering } from "../../src/core/subscription.ts";
import { HOT_SETTINGS } from "../../src/store/database.ts";
import { getDelivery, listDeliveries } from "../../src/store/deliveries.ts";
import { getEvent, listEvents } from "../../src/store/events.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import { getLanes, listLanes, listLanesSince } from "../../src/store/outbox/lanes.ts";
import { recordAttempts } from "../../src/store/outbox/record.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, recordOf, toRow } from "../support/fixtures.ts";
import { holdSnapshot } from "../support/snapshot.ts";

const db = useDatabase();

/** Runs the work on a connection that tells every plan, those inside functions included. */
async function plansOf(work: (sql: postgres.Sql) => Promise<unknown>, { withRows = false } = {}): Promise<string[]> {
  const plans: string[] = [];
  const onnotice = ({ message }: postgres.Notice) => plans.push(message ?? "");
  const sql = postgres(db.url.reveal(), { max: 1, onnotice, connection: HOT_SETTINGS });
  await sql`LOAD 'auto_explain'`;
  await sql`SET auto_explain.log_min_duration = 0`;
  await sql`SET auto_explain.log_nested_statements = on`;
  if (withRows) await sql`SET auto_explain.log_analyze = on`;
  await sql`SET client_min_messages = log`;
  await work(sql);
  await sql.end();
  return plans.filter((plan) => plan.includes("Query Text"));
}

/** 40 lanes with a backlog each, and statistics that know of it. */
async function fill(ordering: SubscriptionOrdering = "NONE"): Promise<number[]> {
  const tenant = newTenant();
  const lanes: number[] = [];
  for (let i = 0; i < 40; i += 1) lanes.push((await addSubscription(db, tenant, { ordering })).lane);
  for (let i = 0; i < 10; i += 1) {
    const rows = Array.from({ length: 50 }, (_, user) => toRow(draftEvent(tenant, { user: { id: `u_${user}` } })));
    await appendEvents(db.server.hot, rows, { maxPendingMs: 86_400_000 });
  }
  await db.admin`ANALYZE nuncio.outbox`;
  await db.admin`ANALYZE nuncio.events`;
  return lanes;
}

describe("the plan of a hot statement", () => {
  it("reads a lane's first due rows in the order of the index, whatever waits behind them", async () => {
    const lanes = await fill();
    const quotas = lanes.map((lane) => ({ lane, quota: 2, sinceMs: Number.NEGATIVE_INFINITY }));
    let claimed: Awaited<ReturnType<typeof claimDueDeliveries>> = [];
    const plans = await plansOf(async (sql) => {
      // Often enough for Postgres to settle on its generic plan.
      for (let i = 0; i < 8; i += 1) {
        claimed = await claimDueDeliveries(sql, quotas, { leaseMs: 25_000, leaseToken: BigInt(i) });
      }
    });
    expect(claimed).toHaveLength(80);
    const picks = plans.filter((plan) => plan.includes("SKIP LOCKED") && plan.includes("quotas"));
    expect(picks.length).toBeGreaterThanOrEqual(8);
    for (const plan of picks) {
      expect(plan).toContain("Index Scan using outbox_due");
      expect(plan).not.toMatch(/Sort|Bitmap|Seq Scan on outbox/);
    }
    const leases = plans.filter((plan) => plan.includes("Update on outbox"));
    expect(leases.length).toBeGreaterThanOrEqual(8);
    for (const plan of leases) {
      expect(plan).toContain("Tid Scan on outbox");
      expect(plan).not.toMatch(/Hash|Seq Scan on (outbox|events)/);
    }

    const records = claimed.map((delivery) => recordOf(delivery));
    const recordPlans = await plansOf(async (sql) => {
      for (let i = 0; i < 8; i += 1) await recordAttempts(sql, records.slice(i * 10, (i + 1) * 10));
    });
    const writes = recordPlans.filter((plan) => plan.includes("Delete on outbox"));
    expect(writes.length).toBeGreaterThanOrEqual(8);
    for (const plan of writes) {
      expect(plan).toContain("Index Scan using outbox_subscription_key_event_key_pk");
      expect(plan).not.toMatch(/Seq Scan on outbox/);
    }
  });

  it("finds what is before and behind a delivery in its user's order with one descent into the index", async () => {
    const lanes = await fill("PER_USER");
    const quotas = lanes.map((lane) => ({ lane, quota: 8, sinceMs: Number.NEGATIVE_INFINITY }));
    const claimed = await claimDueDeliveries(db.worker.hot, quotas, { leaseMs: 25_000, leaseToken: 1n });
    const half = claimed.length / 2;
    const plans = await plansOf(async (sql) => {
      await recordAttempts(
        sql,
        claimed.slice(0, half).map((delivery) => recordOf(delivery)),
      );
      const retry = { decision: { kind: "retry", delayMs: 1 } } as const;
      await recordAttempts(
        sql,
        claimed.slice(half).map((delivery) => recordOf(delivery, retry)),
      );
      await appendEvents(sql, [toRow(draftEvent(newTenant()))], { maxPendingMs: 86_400_000 });
    });
    const [promotions, ends, appends] = ["f.next_at = 'infinity'", "overtaken AS", "AS earlier"].map((text) =>
      plans.filter((plan) => plan.includes(text)),
    );
    expect(promotions).toHaveLength(2);
    expect(ends).toHaveLength(1);
    expect(appends).toHaveLength(1);
    for (const plan of [promotions, ends, appends].flat()) {
      expect(plan).toMatch(/Index (Only )?Scan using outbox_order/);
      expect(plan).not.toMatch(/Seq Scan on outbox|Bitmap/);
    }
  });

  it("takes the same index in a table that is full of dead rows and by its statistics almost empty", async () => {
    const lanes = await fill("PER_USER");
    // An open transaction keeps what is deleted from being cleared away.
    const pin = await holdSnapshot(db);
    const kept = lanes[0] ?? 0;
    await db.admin`DELETE FROM nuncio.outbox WHERE subscription_key <> ${kept} OR user_sequence % 50 <> 0`;
    await db.admin`VACUUM (ANALYZE) nuncio.outbox`;
    const [claimed] = await claimDueDeliveries(
      db.worker.hot,
      [{ lane: kept, quota: 1, sinceMs: Number.NEGATIVE_INFINITY }],
      { leaseMs: 25_000, leaseToken: 1n },
    );
    const tenant = (
      await db.admin`
      SELECT tenant_id FROM nuncio.tenants JOIN nuncio.webhook_subscriptions USING (tenant_key)
      WHERE subscription_key = ${kept}`
    )[0]?.tenant_id;

    const plans = await plansOf(async (sql) => {
      await appendEvents(sql, [toRow(draftEvent(tenant))], { maxPendingMs: 86_400_000 });
      await recordAttempts(sql, [recordOf(claimed as NonNullable<typeof claimed>)]);
      await claimDueDeliveries(sql, [{ lane: kept, quota: 1, sinceMs: 0 }], { leaseMs: 25_000, leaseToken: 2n });
      await listLanes(sql, { after: 0, limit: 1_000 });
      await listLanesSince(sql, { after: 0, limit: 1_000, overdueMs: 1_000 });
      await getLanes(sql, [kept]);
    });
    await pin.end();
    const [append, record, promotion] = ["AS earlier", "held AS MATERIALIZED", "f.next_at = 'infinity'"].map((text) =>
      plans.find((plan) => plan.includes(text)),
    );
    expect(append).toMatch(
      /Index Only Scan using outbox_order .*\n *Index Cond: \(\(ROW\(user_key, subscription_key, user_sequence\) > .*ROW\(.*<=/,
    );
    expect(record).toMatch(
      /Index Scan using outbox_subscription_key_event_key_pk .*\n *Index Cond: \(\(subscription_key = .*event_key = /,
    );
    expect(promotion).toMatch(/Index Scan using outbox_order /);
    for (const plan of [append, record, promotion]) expect(plan).not.toMatch(/outbox_due|Seq Scan on outbox|Bitmap/);
    for (const text of ["quotas", "WITH RECURSIVE lane", "q.next_at >= since", "unnest(lanes) AS k"]) {
      const plan = plans.find((one) => one.includes(text) && one.includes("outbox q"));
      expect(plan, text).toContain("using outbox_due");
      expect(plan, text).not.toMatch(/outbox_subscription_key_event_key_pk|Seq Scan on outbox|Bitmap|Sort/);
    }
  });

  it("reads of a long history no more than a page is worth, whatever is asked for", async () => {
    const tenant = newTenant();
    const { uuid, lane } = await addSubscription(db, tenant);
    await addSubscription(db, tenant);
    const rows = Array.from({ length: 500 }, (_, i) =>
      toRow(draftEvent(tenant, { id: `e_${i}`, user: { id: `u_${i % 50}` } })),
    );
    for (let i = 0; i < 10; i += 1) {
      await appendEvents(
        db.server.hot,
        rows.map((row) => ({ ...row, eventId: `${row.eventId}_${i}` })),
        { maxPendingMs: 86_400_000 },
      );
    }
    // All but the newest are finished.
    await db.admin`
      INSERT INTO nuncio.delivery_attempts (event_key, started_at, tenant_key, subscription_key, duration_ms, number, outcome, http_status, stale)
      SELECT q.event_key, now(), q.tenant_key, q.subscription_key, 5, 1, 1, 200, false FROM nuncio.outbox q
      JOIN nuncio.events e USING (tenant_key, event_key) WHERE q.subscription_key >= ${lane} AND e.event_id NOT LIKE '%_9'`;
    await db.admin`
      DELETE FROM nuncio.outbox q USING nuncio.events e
      WHERE e.event_key = q.event_key AND q.subscription_key >= ${lane} AND e.event_id NOT LIKE '%_9'`;
    await db.admin`ANALYZE`;

    const everything = { subscription: undefined, states: [], eventTypes: [], eventId: undefined, userId: undefined };
    const all = { ...everything, createdFromMs: undefined, createdBeforeMs: undefined };
    const [newest] = await listDeliveries(
      db.server.orm,
      tenant,
      { ...all, states: ["DELIVERED"] },
      { after: undefined, limit: 1 },
    );
    const after = newest as NonNullable<typeof newest>;
    const questions: Record<string, (orm: PostgresJsDatabase) => Promise<unknown>> = {
      "the first page": (orm) => listDeliveries(orm, tenant, all, { after: undefined, limit: 50 }),
      "a later page": (orm) => listDeliveries(orm, tenant, all, { after, limit: 50 }),
      "the page before": (orm) => listDeliveries(orm, tenant, all, { after, limit: 50, direction: "newer" }),
      "of a subscription": (orm) =>
        listDeliveries(orm, tenant, { ...all, subscription: uuid }, { after: undefined, limit: 50 }),
      "in a state": (orm) => listDeliveries(orm, tenant, { ...all, states: ["DELIVERED"] }, { after, limit: 50 }),
      "of an event": (orm) =>
        listDeliveries(orm, tenant, { ...all, eventId: "e_3_4" }, { after: undefined, limit: 50 }),
      "of a user": (orm) => listDeliveries(orm, tenant, { ...all, userId: "u_7" }, { after: undefined, limit: 50 }),
      "of a time": (orm) =>
        listDeliveries(
          orm,
          tenant,
          { ...all, createdFromMs: Date.now() - 60_000, createdBeforeMs: Date.now() },
          { after: undefined, limit: 50 },
        ),
      "one delivery": (orm) => getDelivery(orm, tenant, after),
      "one event": (orm) => getEvent(orm, tenant, "e_3_4"),
      "a page of events": (orm) => listEvents(orm, tenant, { ...all }, { after: undefined, limit: 50 }),
      "the events of a user": (orm) =>
        listEvents(orm, tenant, { ...all, userId: "u_7" }, { after: undefined, limit: 50 }),
    };
    for (const [question, ask] of Object.entries(questions)) {
      const plans = await plansOf((sql) => ask(drizzle(sql)), { withRows: true });
      expect(plans.length, question).toBeGreaterThan(0);
      for (const plan of plans) {
        const touched = [
          ...plan.matchAll(
            /(Scan|Scan Backward) using \S+ on (?:outbox|dead_letters|events|event_ids|delivery_attempts)\S* .*rows=([\d.]+) loops=(\d+)/g,
          ),
        ];
        const most = Math.max(0, ...touched.map(([, , rowsRead, loops]) => Number(rowsRead) * Number(loops)));
        expect(most, `${question}\n${plan}`).toBeLessThanOrEqual(300);
        expect(plan, question).not.toMatch(
          /Seq Scan on (outbox|dead_letters|events|event_ids|delivery_attempts)(?!.*never executed)(?!.*rows=0)/,
        );
      }
    }
  });

  it("looks for lanes with one index descent each", async () => {
    const lanes = await fill();
    let seen: unknown[] = [];
    const plans = await plansOf(async (sql) => {
      seen = await listLanes(sql, { after: 0, limit: 1_000 });
    });
    expect(seen.length).toBeGreaterThanOrEqual(lanes.length);
    expect(plans.join("\n")).toContain("Recursive Union");
    expect(plans.join("\n")).not.toMatch(/Seq Scan on outbox|Bitmap/);
  });
});
