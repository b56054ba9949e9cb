import { describe, expect, it } from "vitest";
import { leastUuidAt } from "../../src/core/ids.ts";
import { dropOutlived } from "../../src/store/housekeeping.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import { endExpiredDeliveries } from "../../src/store/outbox/end.ts";
import { pauseSubscription } from "../../src/store/subscription-changes.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, toRow } from "../support/fixtures.ts";

const db = useDatabase();
const DAY = 86_400_000;
const KEEP = { payloadMs: 30 * DAY, attemptMs: 30 * DAY, deadLetterMs: 30 * DAY };

const suffixOf = (ms: number) => new Date(ms).toISOString().slice(0, 10).replaceAll("-", "");

/** A day of the past with a partition of each kind, one event, its id and its attempt; returns the names. */
async function addDay(daysAgo: number): Promise<{ events: string; attempts: string; eventId: string }> {
  const from = Math.floor(Date.now() / DAY) * DAY - daysAgo * DAY;
  const [events, attempts] = [`events_${suffixOf(from)}`, `delivery_attempts_${suffixOf(from)}`];
  const eventId = `evt_${daysAgo}`;
  const key = leastUuidAt(from + 1);
  await db.admin.unsafe(`
    CREATE TABLE nuncio.${events} PARTITION OF nuncio.events
      FOR VALUES FROM ('${leastUuidAt(from)}') TO ('${leastUuidAt(from + DAY)}');
    CREATE TABLE nuncio.${attempts} PARTITION OF nuncio.delivery_attempts
      FOR VALUES FROM ('${new Date(from).toISOString()}') TO ('${new Date(from + DAY).toISOString()}');
    INSERT INTO nuncio.events (event_key, tenant_key, event_type, user_sequence, event_id, user_id, body)
      VALUES ('${key}', 1, 1, 1, '${eventId}', 'u_1', '{}');
    INSERT INTO nuncio.event_ids (event_key, tenant_key, event_id) VALUES ('${key}', 1, '${eventId}')`);
  return { events, attempts, eventId };
}

async function standing(...names: string[]): Promise<string[]> {
  const rows = await db.admin`
    SELECT relname FROM pg_class WHERE relnamespace = 'nuncio'::regnamespace AND relname = ANY (${names}) ORDER BY relname`;
  return rows.map(({ relname }) => relname as string);
}

const idsLeft = async () =>
  (await db.admin`SELECT event_id FROM nuncio.event_ids WHERE event_id LIKE 'evt\\___' ORDER BY event_id`).map(
    ({ event_id }) => event_id as string,
  );

describe("retention", () => {
  it("[B49] drops the days behind it with the ids of their events, and no other", async () => {
    const [old, older, kept] = [await addDay(40), await addDay(45), await addDay(20)];
    const dropped = await dropOutlived(db.worker.hot, KEEP);
    expect(dropped).toEqual([older.events, old.events, older.attempts, old.attempts]);
    expect(await standing(old.events, older.attempts, kept.events, kept.attempts)).toEqual(
      [kept.attempts, kept.events].sort(),
    );
    expect(await idsLeft()).toEqual([kept.eventId]);
    expect(await dropOutlived(db.worker.hot, KEEP)).toEqual([]);
  });

  it("[B49] keeps a day of events that an unfinished delivery needs, and the ids with it", async () => {
    const { events, attempts, eventId } = await addDay(50);
    const { lane } = await addSubscription(db, newTenant());
    const [event] = await db.admin`SELECT event_key FROM nuncio.events WHERE event_id = ${eventId}`;
    await db.admin`
      INSERT INTO nuncio.outbox (event_key, next_at, expires_at, tenant_key, subscription_key)
      VALUES (${event?.event_key}, now(), now() + interval '1 day', 1, ${lane})`;
    expect(await dropOutlived(db.worker.hot, KEEP)).toEqual([attempts]);
    expect(await standing(events)).toEqual([events]);
    expect(await idsLeft()).toContain(eventId);
    await db.admin`DELETE FROM nuncio.outbox WHERE subscription_key = ${lane}`;
    expect(await dropOutlived(db.worker.hot, KEEP)).toEqual([events]);
    expect(await idsLeft()).not.toContain(eventId);
  });

  it("[B49] gives way to whoever reads a table, stalls no publish, and goes on the next time", async () => {
    const { events } = await addDay(60);
    const tenant = newTenant();
    await db.admin.begin(async (reader) => {
      await reader`SELECT count(*) FROM nuncio.events`;
      const dropping = dropOutlived(db.worker.hot, KEEP);
      const publishing = appendEvents(db.server.hot, [toRow(draftEvent(tenant))], { maxPendingMs: DAY });
      await expect(dropping).rejects.toMatchObject({ code: "55P03" });
      expect(await publishing).toMatchObject([{ kind: "appended" }]);
    });
    expect(await standing(events)).toEqual([events]);
    expect(await dropOutlived(db.worker.hot, KEEP)).toContain(events);
  });

  it("deletes dead letters by their end and create requests after a day, and nothing that is younger", async () => {
    const { lane } = await addSubscription(db, newTenant());
    const ages = [1, 29, 31, 90];
    for (const [i, days] of ages.entries()) {
      await db.admin`
        INSERT INTO nuncio.dead_letters (event_key, ended_at, tenant_key, subscription_key, attempt, end_reason)
        VALUES (${leastUuidAt(i + 1)}, now() - ${days}::integer * interval '1 day', 1, ${lane}, 1, 1)`;
      await db.admin`
        INSERT INTO nuncio.subscription_requests (tenant_key, request_id, content_hash, subscription_key, created_at)
        VALUES (1, ${`r_${days}`}, ${Buffer.alloc(32)}, ${lane}, now() - ${days}::integer * interval '23 hours')`;
    }
    await dropOutlived(db.worker.hot, KEEP);
    const letters = await db.admin`
      SELECT round(extract(epoch FROM now() - ended_at) / 86400)::integer AS days
      FROM nuncio.dead_letters WHERE subscription_key = ${lane} ORDER BY ended_at DESC`;
    expect(letters.map(({ days }) => days)).toEqual([1, 29]);
    const requests = await db.admin`
      SELECT request_id FROM nuncio.subscription_requests WHERE subscription_key = ${lane}`;
    expect(requests.map(({ request_id }) => request_id)).toEqual(["r_1"]);
  });

  it("[B49] reckons in UTC whatever the zone of the session: an id stays while its payload does", async () => {
    const [kept, old] = [await addDay(29), await addDay(33)];
    const session = await db.worker.hot.reserve();
    for (const zone of ["America/Los_Angeles", "Pacific/Kiritimati"]) {
      await session`SELECT set_config('TimeZone', ${zone}, false)`;
      await dropOutlived(session, KEEP);
      expect(await idsLeft()).toContain(kept.eventId);
    }
    expect(await idsLeft()).not.toContain(old.eventId);
    await session`RESET TimeZone`;
    session.release();
  });

  it("[B49] is done once when several workers are at it", async () => {
    const days = [await addDay(70), await addDay(71), await addDay(72)];
    const dropped = await Promise.all(Array.from({ length: 4 }, () => dropOutlived(db.worker.hot, KEEP)));
    const names = days.flatMap(({ events, attempts }) => [events, attempts]);
    expect(new Set(dropped.flat()).size).toBe(dropped.flat().length);
    await dropOutlived(db.worker.hot, KEEP);
    expect(await standing(...names)).toEqual([]);
  });

  it("[B49] looks once more under the lock: what is put back while a drop waits keeps its payload", async () => {
    const { events, eventId } = await addDay(80);
    const { lane } = await addSubscription(db, newTenant());
    let dropping: Promise<string[]> | undefined;
    await db.admin.begin(async (redrive) => {
      const [event] = await redrive`SELECT event_key FROM nuncio.events WHERE event_id = ${eventId}`;
      dropping = dropOutlived(db.worker.hot, KEEP);
      dropping.catch(() => undefined);
      await redrive`
        INSERT INTO nuncio.outbox (event_key, next_at, expires_at, tenant_key, subscription_key)
        VALUES (${event?.event_key}, now(), now() + interval '1 day', 1, ${lane})`;
    });
    // Either it waited and saw the row, or it gave way.
    expect(await dropping?.catch(() => [])).not.toContain(events);
    expect(await standing(events)).toEqual([events]);
    await db.admin`DELETE FROM nuncio.outbox WHERE subscription_key = ${lane}`;
    await dropOutlived(db.worker.hot, KEEP);
  });

  it("does the rest where one table is held", async () => {
    const { events, attempts } = await addDay(65);
    await db.admin.begin(async (reader) => {
      await reader`SELECT count(*) FROM nuncio.events`;
      await expect(dropOutlived(db.worker.hot, KEEP)).rejects.toMatchObject({ code: "55P03" });
    });
    expect(await standing(events, attempts)).toEqual([events]);
    await dropOutlived(db.worker.hot, KEEP);
  });

  it("is refused for less than a day, for another table, and to the server", async () => {
    const drop = (sql: typeof db.admin, parent: string, ms: number) =>
      sql`SELECT nuncio.drop_oldest_partition(${parent}, ${ms}::bigint)`;
    await expect(drop(db.worker.hot, "events", DAY - 1)).rejects.toThrow("at least a day");
    await expect(drop(db.worker.hot, "outbox", DAY)).rejects.toThrow("no partitions of outbox");
    await expect(drop(db.server.hot, "events", DAY)).rejects.toThrow("permission denied");
  });
});

describe("the end of a delivery's time", () => {
  it("[B52] comes also to one that a pause holds, and leaves a live lease to its worker", async () => {
    const tenant = newTenant();
    const [paused, leased] = [await addSubscription(db, tenant), await addSubscription(db, tenant)];
    await appendEvents(db.server.hot, [toRow(draftEvent(tenant))], { maxPendingMs: DAY });
    await pauseSubscription(db.server.orm, tenant, paused.uuid);
    const quota = [{ lane: leased.lane, quota: 1, sinceMs: Number.NEGATIVE_INFINITY }];
    await claimDueDeliveries(db.worker.hot, quota, { leaseMs: 25_000, leaseToken: 1n });
    expect(await endExpiredDeliveries(db.worker.hot, 100)).toMatchObject({ count: 0 });

    await db.admin`UPDATE nuncio.outbox SET expires_at = now()`;
    expect(await endExpiredDeliveries(db.worker.hot, 100)).toMatchObject({ count: 1 });
    expect(
      await db.admin`SELECT subscription_key, end_reason FROM nuncio.dead_letters WHERE subscription_key IN (${paused.lane}, ${leased.lane})`,
    ).toEqual([{ subscription_key: paused.lane, end_reason: 2 }]);

    await db.admin`UPDATE nuncio.outbox SET lease_expires_at = now(), next_at = now()`;
    expect(await endExpiredDeliveries(db.worker.hot, 100)).toMatchObject({ count: 1 });
    expect(await db.admin`SELECT FROM nuncio.outbox`).toHaveLength(0);
  });
});
