import postgres from "postgres";
import { describe, expect, it } from "vitest";
import { HOT_SETTINGS } from "../../src/store/database.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import { listLanes } from "../../src/store/outbox/lanes.ts";
import { recordAttempts } from "../../src/store/outbox/record.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, recordOf, toRow } from "../support/fixtures.ts";

const db = useDatabase();

/** Runs the work on a connection that tells every plan, those inside functions included. */
async function plansOf(work: (sql: postgres.Sql) => Promise<unknown>): Promise<string[]> {
  const plans: string[] = [];
  const onnotice = ({ message }: postgres.Notice) => plans.push(message ?? "");
  const sql = postgres(db.url.reveal(), { max: 1, onnotice, connection: HOT_SETTINGS });
  await sql`LOAD 'auto_explain'`;
  await sql`SET auto_explain.log_min_duration = 0`;
  await sql`SET auto_explain.log_nested_statements = on`;
  await sql`SET client_min_messages = log`;
  await work(sql);
  await sql.end();
  return plans.filter((plan) => plan.includes("Query Text"));
}

/** 40 lanes with a backlog each, and statistics that know of it. */
async function fill(): Promise<number[]> {
  const tenant = newTenant();
  const lanes: number[] = [];
  for (let i = 0; i < 40; i += 1) lanes.push((await addSubscription(db, tenant)).lane);
  for (let i = 0; i < 10; i += 1) {
    const rows = Array.from({ length: 50 }, () => toRow(draftEvent(tenant)));
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
    expect(recordPlans.length).toBeGreaterThanOrEqual(8);
    for (const plan of recordPlans) {
      expect(plan).toContain("Index Scan using outbox_subscription_key_event_key_pk");
      expect(plan).not.toMatch(/Seq Scan on outbox/);
    }
  });

  it("looks for lanes with one index descent each", async () => {
    const lanes = await fill();
    let seen: unknown[] = [];
    const plans = await plansOf(async (sql) => {
      seen = await listLanes(sql, 0, 1_000);
    });
    expect(seen.length).toBeGreaterThanOrEqual(lanes.length);
    expect(plans.join("\n")).toContain("Recursive Union");
    expect(plans.join("\n")).not.toMatch(/Seq Scan on outbox|Bitmap/);
  });
});
