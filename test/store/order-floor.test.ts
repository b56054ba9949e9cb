import postgres from "postgres";
import { describe, expect, it } from "vitest";
import { Sweeper } from "../../src/delivery/sweeper.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import { noteOrder, raiseOrderFloor } from "../../src/store/outbox/order-floor.ts";
import { recordAttempts } from "../../src/store/outbox/record.ts";
import { cleanUp } from "../support/clean-up.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, recordOf, toRow } from "../support/fixtures.ts";

const db = useDatabase();
const ROUNDS = 30;

const append = (sql: postgres.Sql, tenant: string) =>
  appendEvents(sql, [toRow(draftEvent(tenant, { user: { id: "u_1" } }))], { maxPendingMs: 86_400_000 });

async function openLane() {
  const tenant = newTenant();
  const { lane } = await addSubscription(db, tenant, { ordering: "PER_USER" });
  return {
    lane,
    publish: () => append(db.server.hot, tenant),
    /** Publishes and delivers. */
    async deliver() {
      await append(db.server.hot, tenant);
      const picks = [{ lane, quota: 1, sinceMs: Number.NEGATIVE_INFINITY }];
      const claimed = await claimDueDeliveries(db.worker.hot, picks, { leaseMs: 25_000, leaseToken: 1n });
      expect(claimed).toHaveLength(1);
      await recordAttempts(
        db.worker.hot,
        claimed.map((one) => recordOf(one)),
      );
    },
    /** Entries of the order's index that a publish reads, and whether what it stores waits. */
    async tryPublish() {
      const rollback = new Error("only tried");
      let tried = { entries: -1, waits: false };
      const trying = db.server.hot.begin(async (tx) => {
        // What this connection has read so far and not reported yet, earlier transactions included.
        const entriesRead = async () => {
          const [row] = await tx<{ entries: number }[]>`
            SELECT pg_stat_get_xact_tuples_returned('nuncio.outbox_order'::regclass)::integer AS entries`;
          return row?.entries ?? 0;
        };
        const before = await entriesRead();
        await append(tx as unknown as postgres.Sql, tenant);
        const entries = (await entriesRead()) - before;
        const [row] = await tx<{ waits: boolean }[]>`
          SELECT q.next_at = 'infinity' AS waits FROM nuncio.outbox q WHERE q.subscription_key = ${lane}
          ORDER BY q.user_sequence DESC LIMIT 1`;
        tried = { entries, waits: row?.waits ?? false };
        throw rollback;
      });
      await expect(trying).rejects.toBe(rollback);
      return tried;
    },
  };
}

/** A transaction that keeps what ends from being cleared away. */
async function holdSnapshot(): Promise<void> {
  const sql = postgres(db.url.reveal(), { max: 1 });
  cleanUp(() => sql.end({ timeout: 0 }));
  await sql`BEGIN ISOLATION LEVEL REPEATABLE READ`;
  await sql`SELECT count(*) FROM nuncio.outbox`;
}

const floors = () => db.admin`
  SELECT user_sequence, lanes_behind FROM nuncio.order_floors WHERE lanes_behind IS NOT NULL`;

describe("the floor of the users' order", () => {
  it("spares an append what has ended, and hides nothing that has not", async () => {
    await holdSnapshot();
    const [done, behind] = [await openLane(), await openLane()];
    await behind.publish();
    for (let round = 0; round < ROUNDS; round += 1) await done.deliver();
    expect((await done.tryPublish()).entries).toBeGreaterThanOrEqual(ROUNDS);

    const note = await noteOrder(db.worker.hot);
    expect(await raiseOrderFloor(db.worker.hot, note)).toBe(true);
    expect(await floors()).toEqual([{ user_sequence: note.sequence, lanes_behind: [behind.lane] }]);
    const tried = await done.tryPublish();
    expect(tried.waits).toBe(false);
    expect(tried.entries).toBeLessThan(3);
    expect((await behind.tryPublish()).waits).toBe(true);

    // And what comes after it is seen as before.
    await done.publish();
    expect((await done.tryPublish()).waits).toBe(true);
    expect(await raiseOrderFloor(db.worker.hot, await noteOrder(db.worker.hot))).toBe(true);
    expect(await floors()).toMatchObject([{ lanes_behind: expect.arrayContaining([behind.lane, done.lane]) }]);
    expect((await done.tryPublish()).waits).toBe(true);
  });

  it("is not raised over what is being appended", async () => {
    const lane = await openLane();
    const appended = Promise.withResolvers<void>();
    const mayCommit = Promise.withResolvers<void>();
    const [{ tenant } = { tenant: "" }] = await db.admin<{ tenant: string }[]>`
      SELECT tenant_id AS tenant FROM nuncio.tenants JOIN nuncio.webhook_subscriptions USING (tenant_key)
      WHERE subscription_key = ${lane.lane}`;
    const appending = db.server.hot.begin(async (tx) => {
      await append(tx as unknown as postgres.Sql, tenant);
      appended.resolve();
      await mayCommit.promise;
    });
    await appended.promise;
    const note = await noteOrder(db.worker.hot);
    expect(note.appending).toHaveLength(1);
    const before = await floors();
    expect(await raiseOrderFloor(db.worker.hot, note)).toBe(false);
    expect(await floors()).toEqual(before);
    mayCommit.resolve();
    await appending;
    expect(await raiseOrderFloor(db.worker.hot, note)).toBe(true);
    expect((await lane.tryPublish()).waits).toBe(true);
  });

  it("is none where the database has lost the note: its numbers may be given out once more", async () => {
    const note = await noteOrder(db.worker.hot);
    const before = await floors();
    await db.admin`DELETE FROM nuncio.order_floors WHERE user_sequence = ${note.sequence}`;
    await raiseOrderFloor(db.worker.hot, note);
    expect(await floors()).toEqual(before);
  });

  it("is raised by the sweeper in two steps, once much is dead, and then not for a while", async () => {
    await db.admin`DELETE FROM nuncio.order_floors`;
    let nowMs = 0;
    const options = {
      sql: db.worker.hot,
      nowMs: () => nowMs,
      orderHoldMs: 3_600_000,
      onEnded: () => undefined,
      onStranded: () => undefined,
    };
    const idle = new Sweeper(options);
    for (let look = 0; look < 3; look += 1) await idle.raiseOrderFloor();
    expect(await floors()).toEqual([]);

    const sweeper = new Sweeper({ ...options, manyDead: 0 });
    await sweeper.raiseOrderFloor();
    expect(await floors()).toEqual([]);
    await sweeper.raiseOrderFloor();
    const [first] = await floors();
    expect(first).toBeDefined();
    await (await openLane()).publish();
    for (let look = 0; look < 3; look += 1) await sweeper.raiseOrderFloor();
    expect(await floors()).toEqual([first]);
    nowMs += 30_001;
    for (let look = 0; look < 2; look += 1) await sweeper.raiseOrderFloor();
    expect(BigInt((await floors())[0]?.user_sequence)).toBeGreaterThan(BigInt(first?.user_sequence));
  });
});
