import { randomBytes } from "node:crypto";
import type { Sql, TransactionSql } from "postgres";
import { describe, expect, it } from "vitest";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { type ClaimedDelivery, claimDueDeliveries, claimQuarantinedDelivery } from "../../src/store/outbox/claim.ts";
import { endDeliveries, endLostDeliveries } from "../../src/store/outbox/end.ts";
import {
  countLeases,
  getLanes,
  listLanes,
  listLanesSince,
  scanLanes,
  scanTheseLanes,
} from "../../src/store/outbox/lanes.ts";
import { recordAttempts } from "../../src/store/outbox/record.ts";
import { releaseDeliveries } from "../../src/store/outbox/release.ts";
import { deleteSubscription, pauseSubscription, resumeSubscription } from "../../src/store/subscription-changes.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, recordOf, toRow } from "../support/fixtures.ts";

const db = useDatabase();
const PENDING = { maxPendingMs: 7 * 86_400_000 };

const newToken = () => randomBytes(8).readBigInt64BE();

async function publish(tenantId: string, count: number, userId = "u_1") {
  const events = Array.from({ length: count }, () => draftEvent(tenantId, { user: { id: userId, status: "ACTIVE" } }));
  await appendEvents(db.server.hot, events.map(toRow), PENDING);
  return events;
}

function claim(lane: number, quota = 100, leaseMs = 25_000) {
  return claimDueDeliveries(db.worker.hot, [{ lane, quota, sinceMs: Number.NEGATIVE_INFINITY }], {
    leaseMs,
    leaseToken: newToken(),
  });
}

const failed = { kind: "http_status", httpStatus: 500, detail: "HTTP 500", excerpt: "oh\0no" } as const;

const expireLease = (lane: number) => db.admin`
  UPDATE nuncio.outbox SET lease_expires_at = now() - interval '1 ms'
  WHERE subscription_key = ${lane} AND lease_token IS NOT NULL`;

const rowsOf = (lane: number) => db.admin`SELECT * FROM nuncio.outbox WHERE subscription_key = ${lane}`;

describe("the hot connections", () => {
  it("wait for the disk when a publish commits, and only then", async () => {
    const settings = async (sql: Sql) => (await sql`SHOW synchronous_commit`)[0]?.synchronous_commit;
    expect(await settings(db.server.hot)).toBe("on");
    expect(await settings(db.worker.hot)).toBe("off");
  });
});

describe("append", () => {
  it("stores the body once with the sequence in its place, and a row per matching subscription", async () => {
    const tenant = newTenant();
    const all = await addSubscription(db, tenant);
    const some = await addSubscription(db, tenant, { eventTypes: ["user.created"] });
    await addSubscription(db, tenant, { eventTypes: ["user.deleted"] });
    const event = draftEvent(tenant);
    const results = await appendEvents(db.server.hot, [toRow(event)], PENDING);
    const [due] = await db.admin`
      SELECT date_part('epoch', next_at) * 1000 AS at_ms FROM nuncio.outbox WHERE subscription_key = ${all.lane}`;
    const lanes = expect.arrayContaining([all.lane, some.lane]);
    expect(results).toEqual([{ kind: "appended", deliveries: 2, lanes, dueAtMs: due?.at_ms }]);
    const [stored] = await db.admin`SELECT * FROM nuncio.events WHERE event_id = ${event.id}`;
    const sequence = JSON.parse(stored?.body).usersequence;
    expect(sequence).toBe(String(stored?.user_sequence).padStart(20, "0"));
    expect(stored?.body.startsWith('{"specversion":"1.0","usersequence":"000')).toBe(true);
  });

  it("[B03] tells the same content from other content under one id, and writes nothing for either", async () => {
    const tenant = newTenant();
    const event = draftEvent(tenant);
    await appendEvents(db.server.hot, [toRow(event)], PENDING);
    const other = draftEvent(tenant, { id: event.id, reason: "another" });
    const results = await appendEvents(db.server.hot, [toRow(event), toRow(draftEvent(tenant))], PENDING);
    expect(results.map(({ kind }) => kind)).toEqual(["duplicate", "appended"]);
    expect(await appendEvents(db.server.hot, [toRow(other)], PENDING)).toEqual([{ kind: "conflict" }]);
    const [{ count } = { count: 0 }] = await db.admin`
      SELECT count(*)::int FROM nuncio.events WHERE event_id = ${event.id}`;
    expect(count).toBe(1);
  });

  it("[B04] takes the same id from another tenant, in one group", async () => {
    const [a, b] = [newTenant(), newTenant()];
    await addSubscription(db, b);
    const event = draftEvent(a);
    await appendEvents(db.server.hot, [toRow(event)], PENDING);
    const rows = [toRow(event), toRow({ ...event, tenantId: b })];
    expect(await appendEvents(db.server.hot, rows, PENDING)).toMatchObject([
      { kind: "duplicate" },
      { kind: "appended", deliveries: 1 },
    ]);
  });

  it("[B53] lets the sequence of a user grow in the order of commits over several writers", async () => {
    const tenant = newTenant();
    await Promise.all(Array.from({ length: 20 }, () => publish(tenant, 5, "same")));
    const rows = await db.admin`
      SELECT user_sequence::int8 AS s, xmin::text::int8 AS x FROM nuncio.events WHERE user_id = 'same' ORDER BY user_sequence`;
    expect(rows).toHaveLength(100);
    const transactions = rows.map((row) => Number(row.x));
    const runs = transactions.filter((x, i) => x !== transactions[i - 1]);
    expect(new Set(runs).size).toBe(runs.length);
  });

  it("gives the server's role no way to write events or the outbox but the function", async () => {
    for (const table of ["events", "event_ids", "outbox", "delivery_attempts", "dead_letters"]) {
      await expect(db.server.hot.unsafe(`INSERT INTO nuncio.${table} DEFAULT VALUES`)).rejects.toMatchObject({
        code: "42501",
      });
    }
  });
});

/** Updates that this connection has made and not reported yet, and how many of them without an entry in an index. */
async function updatesOf(sql: TransactionSql): Promise<{ all: number; hot: number }> {
  const [row] = await sql<{ all: number; hot: number }[]>`
    SELECT n_tup_upd::integer AS all, n_tup_hot_upd::integer AS hot FROM pg_stat_xact_all_tables
    WHERE relid = 'nuncio.outbox'::regclass`;
  return row ?? { all: 0, hot: 0 };
}

describe("claim", () => {
  it("leases what is due, at most the quota, and counts the attempt", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 5);
    const claimed = await claim(lane, 3);
    expect(claimed).toHaveLength(3);
    expect(claimed[0]).toMatchObject({
      attempt: 1,
      failures: 0,
      revision: 1,
      event: { body: expect.stringContaining(tenant) },
    });
    expect(await claim(lane)).toHaveLength(2);
    expect(await claim(lane)).toHaveLength(0);
  });

  it("[B54] gives one delivery to one of several claimers", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 200);
    const claims = await Promise.all(Array.from({ length: 10 }, () => claim(lane, 30)));
    const keys = claims.flat().map(({ eventKey }) => eventKey);
    expect(new Set(keys).size).toBe(keys.length);
    expect(keys).toHaveLength(200);
  });

  it("brings what it leased once more when the lease has ended, as due as it was before", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 2);
    const first = await claim(lane);
    expect(first.map(({ wasLost }) => wasLost)).toEqual([false, false]);
    await expireLease(lane);
    const again = await claim(lane);
    expect(again.map(({ wasLost }) => wasLost)).toEqual([true, true]);
    expect(again.map(({ wasDueAtMs }) => wasDueAtMs)).toEqual(first.map(({ wasDueAtMs }) => wasDueAtMs));
  });

  it("changes no index: each page has room for what a claim makes of its rows", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant, { ordering: "PER_USER" });
    const users = Array.from({ length: 400 }, (_, i) => toRow(draftEvent(tenant, { user: { id: `u_${i}` } })));
    await appendEvents(db.server.hot, users, PENDING);
    await db.worker.hot.begin(async (tx) => {
      const lease = { leaseMs: 25_000, leaseToken: newToken() };
      const picks = [{ lane, quota: 400, sinceMs: Number.NEGATIVE_INFINITY }];
      const before = await updatesOf(tx);
      expect(await claimDueDeliveries(tx as unknown as Sql, picks, lease)).toHaveLength(400);
      const after = await updatesOf(tx);
      expect([after.all - before.all, after.hot - before.hot]).toEqual([400, 400]);
    });
  });

  it("leaves out a lane that is being changed right now, and one that is paused or deleted", async () => {
    const tenant = newTenant();
    const { lane, uuid } = await addSubscription(db, tenant);
    await publish(tenant, 1);
    await db.admin.begin(async (tx) => {
      await tx`SELECT pg_advisory_xact_lock(7102, ${lane})`;
      expect(await claim(lane)).toHaveLength(0);
    });
    await pauseSubscription(db.server.orm, tenant, uuid);
    expect(await claim(lane)).toHaveLength(0);
    await resumeSubscription(db.server.orm, tenant, uuid);
    await deleteSubscription(db.server.orm, tenant, uuid);
    expect(await claim(lane)).toHaveLength(0);
  });

  it("[B42] quarantines a row after three lost claims and ends it after ten, and a record clears the count", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 1);
    for (let lost = 0; lost < 3; lost += 1) {
      expect(await claim(lane)).toHaveLength(1);
      await expireLease(lane);
    }
    expect(await claim(lane)).toHaveLength(0);
    for (let lost = 3; lost < 10; lost += 1) {
      const alone = await claimQuarantinedDelivery(db.worker.hot, { leaseMs: 25_000, leaseToken: newToken() });
      expect(alone).toMatchObject({ subscriptionKey: lane, attempt: lost + 1, failures: 0 });
      await expireLease(lane);
    }
    expect(await claimQuarantinedDelivery(db.worker.hot, { leaseMs: 1, leaseToken: newToken() })).toBeUndefined();
    expect(await endLostDeliveries(db.worker.hot, 100)).toMatchObject({ count: 1 });
    const [dead] = await db.admin`SELECT * FROM nuncio.dead_letters WHERE subscription_key = ${lane}`;
    expect(dead).toMatchObject({ end_reason: 5, attempt: 10 });
    expect(await rowsOf(lane)).toHaveLength(0);
  });
});

describe("record", () => {
  it("ends a delivered row and keeps the attempt", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 1);
    const [claimed] = await claim(lane);
    expect(await recordAttempts(db.worker.hot, [recordOf(claimed as ClaimedDelivery)])).toMatchObject({
      stale: [false],
      promoted: [],
      superseded: [],
    });
    expect(await rowsOf(lane)).toHaveLength(0);
    const attempts = await db.admin`SELECT * FROM nuncio.delivery_attempts WHERE subscription_key = ${lane}`;
    expect(attempts).toMatchObject([
      { number: 1, outcome: 1, http_status: 200, stale: false, dns_ms: 0, connect_ms: 1 },
    ]);
  });

  it("moves a failed row to its next attempt, counts the failure and gives the lease back", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 1);
    const [claimed] = await claim(lane);
    await recordAttempts(db.worker.hot, [
      recordOf(claimed as ClaimedDelivery, { outcome: failed, decision: { kind: "retry", delayMs: 60_000 } }),
    ]);
    const [row] = await rowsOf(lane);
    expect(row).toMatchObject({ attempt: 1, failures: 1, lost_claims: 0, lease_token: null, lease_expires_at: null });
    expect(row?.next_at.getTime()).toBeGreaterThan(Date.now() + 50_000);
    const [attempt] = await db.admin`SELECT * FROM nuncio.delivery_attempts WHERE subscription_key = ${lane}`;
    expect(attempt).toMatchObject({ response_excerpt: "oh\uFFFDno", error_detail: "HTTP 500" });
  });

  it("makes an exhausted row a dead letter with its reason", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 1);
    const [claimed] = await claim(lane);
    await recordAttempts(db.worker.hot, [
      recordOf(claimed as ClaimedDelivery, {
        outcome: failed,
        decision: { kind: "dead_letter", reason: "RETRIES_EXHAUSTED" },
      }),
    ]);
    expect(await rowsOf(lane)).toHaveLength(0);
    expect(
      await db.admin`SELECT end_reason, attempt FROM nuncio.dead_letters WHERE subscription_key = ${lane}`,
    ).toEqual([{ end_reason: 1, attempt: 1 }]);
  });

  it("[B43] changes nothing under a token that the lease has left, and keeps the result as stale", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 2);
    const [first, second] = await claim(lane);
    await expireLease(lane);
    const again = await claim(lane);
    const before = await rowsOf(lane);
    const { stale } = await recordAttempts(db.worker.hot, [
      recordOf(first as ClaimedDelivery),
      recordOf(second as ClaimedDelivery, { outcome: failed, decision: { kind: "dead_letter", reason: "EXPIRED" } }),
    ]);
    expect(stale).toEqual([true, true]);
    expect(await rowsOf(lane)).toEqual(before);
    expect(await db.admin`SELECT FROM nuncio.dead_letters WHERE subscription_key = ${lane}`).toHaveLength(0);
    expect(await releaseDeliveries(db.worker.hot, [first as ClaimedDelivery])).toBe(0);
    const recorded = await recordAttempts(
      db.worker.hot,
      again.map((c) => recordOf(c)),
    );
    expect(recorded.stale).toEqual([false, false]);
    const kept = await db.admin`SELECT stale FROM nuncio.delivery_attempts WHERE subscription_key = ${lane}`;
    expect(kept.map((row) => row.stale).sort()).toEqual([false, false, true, true]);
  });
});

describe("release", () => {
  it("hands the row back due at once, without having spent the attempt", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 1);
    const claimed = await claim(lane);
    expect(await releaseDeliveries(db.worker.hot, claimed)).toBe(1);
    expect(await claim(lane)).toMatchObject([{ attempt: 1 }]);
  });
});

describe("lanes", () => {
  it("sees each lane with rows once, when its first row is due, and says which are deleted", async () => {
    const tenant = newTenant();
    const due = await addSubscription(db, tenant);
    const paused = await addSubscription(db, tenant);
    const gone = await addSubscription(db, tenant);
    await publish(tenant, 3);
    await pauseSubscription(db.server.orm, tenant, paused.uuid);
    await deleteSubscription(db.server.orm, tenant, gone.uuid);
    const seen = (await listLanes(db.worker.hot, { after: due.lane - 1, limit: 100 })).filter(
      ({ lane }) => lane <= gone.lane,
    );
    expect(seen).toMatchObject([
      { lane: due.lane, enabled: true, dueInMs: expect.any(Number), deleted: false },
      { lane: paused.lane, dueInMs: Number.POSITIVE_INFINITY, deleted: false },
      { lane: gone.lane, dueInMs: expect.any(Number), deleted: true },
    ]);
  });
});

describe("a lane of which all is leased", () => {
  const looks = async (lane: number) => {
    const sql = db.worker.hot;
    const seen = await Promise.all([
      listLanes(sql, { after: lane - 1, limit: 1 }),
      listLanesSince(sql, { after: lane - 1, limit: 1, overdueMs: 60_000 }),
      scanLanes(sql, lane - 1),
      getLanes(sql, [lane]),
      scanTheseLanes(sql, [lane]),
    ]);
    return seen.map((lanes) => lanes.find((found) => found.lane === lane)?.databaseDueAtMs ?? Number.POSITIVE_INFINITY);
  };

  it("has nothing due for any look, until the leases end", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 2);
    const before = await looks(lane);
    expect(before.every(Number.isFinite)).toBe(true);
    await claim(lane);
    expect(await looks(lane)).toEqual(Array(5).fill(Number.POSITIVE_INFINITY));
    await expireLease(lane);
    expect(await looks(lane)).toEqual(before);
  });

  it("has its live leases counted, whatever stands before and behind them, and how long the last lasts", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 2);
    const before = await claim(lane);
    await expireLease(lane);
    await publish(tenant, 3);
    const sinceMs = Math.max(...before.map(({ wasDueAtMs }) => wasDueAtMs)) + 0.01;
    const lease = { leaseMs: 25_000, leaseToken: newToken() };
    expect(await claimDueDeliveries(db.worker.hot, [{ lane, quota: 100, sinceMs }], lease)).toHaveLength(3);
    await publish(tenant, 5);
    const [found] = await countLeases(db.worker.hot, [lane]);
    expect(found).toMatchObject({ lane, count: 3 });
    expect(found?.lastForMs).toBeGreaterThan(20_000);
    expect(found?.lastForMs).toBeLessThanOrEqual(25_000);
  });
});

describe("what ends, moves or releases rows", () => {
  async function untilSomebodyWaits(): Promise<void> {
    for (let waits = 0; waits === 0; ) {
      const [row] = await db.admin`
        SELECT count(*)::integer AS waits FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'`;
      waits = row?.waits;
    }
  }

  const retry = { outcome: failed, decision: { kind: "retry", delayMs: 60_000 } } as const;

  it.each([
    [
      "a record",
      (claimed: ClaimedDelivery[]) =>
        recordAttempts(
          db.worker.hot,
          claimed.map((one) => recordOf(one)),
        ),
    ],
    [
      "a record of ends and retries",
      ([first, ...rest]: ClaimedDelivery[]) =>
        recordAttempts(db.worker.hot, [recordOf(first as ClaimedDelivery, retry), ...rest.map((one) => recordOf(one))]),
    ],
    ["a release", (claimed: ClaimedDelivery[]) => releaseDeliveries(db.worker.hot, claimed)],
    ["an end", (claimed: ClaimedDelivery[]) => endDeliveries(db.worker.hot, claimed, "EXPIRED")],
  ])("locks them in the order of their keys, so that no two deadlock: %s", async (_, write) => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 3);
    const claimed = (await claim(lane)).sort((a, b) => (a.eventKey < b.eventKey ? -1 : 1));
    const [first, ...others] = claimed;
    let writing: Promise<unknown> | undefined;
    await db.admin.begin(async (holder) => {
      await holder`SELECT FROM nuncio.outbox WHERE event_key = ${first?.eventKey ?? ""} FOR UPDATE`;
      writing = write(claimed.toReversed());
      await untilSomebodyWaits();
      // It waits for the first one, and so has none of the others yet.
      const free = await holder`
        SELECT event_key FROM nuncio.outbox WHERE subscription_key = ${lane} AND event_key <> ${first?.eventKey ?? ""}
        FOR UPDATE SKIP LOCKED`;
      expect(free).toHaveLength(others.length);
    });
    await writing;
    expect(
      await db.admin`SELECT FROM nuncio.outbox WHERE subscription_key = ${lane} AND lease_token IS NOT NULL`,
    ).toEqual([]);
  });
});
