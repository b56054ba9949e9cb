import postgres from "postgres";
import { expect, it } from "vitest";
import { keepVacuumed, type VacuumEvent } from "../../src/delivery/vacuumer.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import { recordAttempts } from "../../src/store/outbox/record.ts";
import { countOutboxRows, mayVacuumOutbox } from "../../src/store/vacuum.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, recordOf, toRow } from "../support/fixtures.ts";
import { holdSnapshot } from "../support/snapshot.ts";

const db = useDatabase();

async function serverVersion(): Promise<number> {
  const [row] = await db.admin<{ version: number }[]>`SELECT current_setting('server_version_num')::integer AS version`;
  return row?.version ?? 0;
}

/** One connection for everything, so that what it has counted is told to the others when it is asked to. */
function openConnection(): postgres.Sql {
  return postgres(db.url.reveal(), { max: 1, onnotice: () => undefined });
}

/** A lane, and what publishes and delivers so many in it: two dead versions of each row. */
async function openLane() {
  const tenant = newTenant();
  const { lane } = await addSubscription(db, tenant, { ordering: "NONE" });
  return {
    lane,
    async deliver(count: number) {
      const sql = openConnection();
      for (let done = 0; done < count; done += 500) {
        const rows = Array.from({ length: 500 }, () => toRow(draftEvent(tenant)));
        await appendEvents(sql, rows, { maxPendingMs: 86_400_000 });
        const quotas = [{ lane, quota: 500, sinceMs: Number.NEGATIVE_INFINITY }];
        const claimed = await claimDueDeliveries(sql, quotas, { leaseMs: 25_000, leaseToken: 7n });
        const records = claimed.map((delivery) => recordOf(delivery));
        await recordAttempts(sql, records);
      }
      await sql`SELECT pg_stat_force_next_flush()`;
      await sql.end();
    },
  };
}

it("lets the worker vacuum the outbox where Postgres can allow it, and the server never", async () => {
  expect(await mayVacuumOutbox(db.worker.hot)).toBe((await serverVersion()) >= 170_000);
  expect(await mayVacuumOutbox(db.server.hot)).toBe(false);
});

it("clears away what is dead once it is worth the work", async ({ skip }) => {
  if ((await serverVersion()) < 170_000) skip();
  await db.admin`ALTER TABLE nuncio.outbox SET (autovacuum_enabled = off)`;
  await (await openLane()).deliver(11_000);
  const stopping = new AbortController();
  const events: VacuumEvent[] = [];
  await keepVacuumed(
    {
      sql: db.worker.hot,
      maintenance: db.worker.maintenance,
      nowMs: () => performance.now(),
      onEvent: (event) => {
        events.push(event);
        stopping.abort();
      },
    },
    stopping.signal,
  );
  expect(events).toMatchObject([{ kind: "vacuumed" }]);
  expect((await countOutboxRows(db.worker.hot)).dead).toBeLessThan(100);
});

it("[B51] what an open transaction keeps from being cleared away lies behind the claims, not in their way", async () => {
  const { lane, deliver } = await openLane();
  await deliver(500);
  const held = await holdSnapshot(db);
  await deliver(5_000);
  const [row] = await db.admin<
    { now_ms: number }[]
  >`SELECT extract(epoch FROM now())::double precision * 1000 AS now_ms`;
  const fromNow = await pagesOfClaim(lane, row?.now_ms ?? 0);
  const fromTheStart = await pagesOfClaim(lane, Number.NEGATIVE_INFINITY);
  await held.end();
  expect(fromTheStart).toBeGreaterThan(50);
  expect(fromNow).toBeLessThan(fromTheStart / 10);
});

/** Pages of the outbox and its indexes that one claim of nothing looks at. */
async function pagesOfClaim(lane: number, sinceMs: number): Promise<number> {
  const sql = openConnection();
  const pages = async () => {
    await sql`SELECT pg_stat_force_next_flush()`;
    const [row] = await sql<{ pages: number }[]>`
      SELECT (heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::double precision AS pages
      FROM pg_statio_all_tables WHERE relid = 'nuncio.outbox'::regclass`;
    return row?.pages ?? 0;
  };
  const claim = () => claimDueDeliveries(sql, [{ lane, quota: 10, sinceMs }], { leaseMs: 25_000, leaseToken: 7n });
  await claim();
  const before = await pages();
  expect(await claim()).toEqual([]);
  const after = await pages();
  await sql.end();
  return after - before;
}
