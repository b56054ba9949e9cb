import type { Sql } from "postgres";
import { describe, expect, it } from "vitest";
import { FloorRaiser } from "../../src/delivery/floor-raiser.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import { noteOrder, raiseOrderFloor } from "../../src/store/outbox/order-floor.ts";
import { recordAttempts } from "../../src/store/outbox/record.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, recordOf, toRow } from "../support/fixtures.ts";
import { holdSnapshot } from "../support/snapshot.ts";

const db = useDatabase();
const ROUNDS = 30;

const append = (sql: Sql, tenant: string) =>
  appendEvents(sql, [toRow(draftEvent(tenant, { user: { id: "u_1" } }))], { maxPendingMs: 86_400_000 });

async function openLane() {
  const tenant = newTenant();
  const { lane } = await addSubscription(db, tenant, { ordering: "PER_USER" });
  return {
    tenant,
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
        await append(tx as unknown as Sql, tenant);
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

const floors = () => db.admin`
  SELECT user_sequence, lanes_behind FROM nuncio.order_floors WHERE lanes_behind IS NOT NULL`;

describe("the floor of the users' order", () => {
  it("spares an append what has ended, and hides nothing that has not", async () => {
    await holdSnapshot(db);
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
    const appending = db.server.hot.begin(async (tx) => {
      await append(tx as unknown as Sql, lane.tenant);
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

  it("is raised by a worker in two steps, once much is dead, and then not for a while", async () => {
    await db.admin`DELETE FROM nuncio.order_floors`;
    let nowMs = 0;
    const options = { sql: db.worker.hot, nowMs: () => nowMs };
    const idle = new FloorRaiser(options);
    for (let look = 0; look < 3; look += 1) await idle.step();
    expect(await floors()).toEqual([]);

    const raiser = new FloorRaiser({ ...options, manyDead: 0 });
    await raiser.step();
    expect(await floors()).toEqual([]);
    await raiser.step();
    const [first] = await floors();
    expect(first).toBeDefined();
    await (await openLane()).publish();
    for (let look = 0; look < 3; look += 1) await raiser.step();
    expect(await floors()).toEqual([first]);
    nowMs += 30_001;
    for (let look = 0; look < 2; look += 1) await raiser.step();
    expect(BigInt((await floors())[0]?.user_sequence)).toBeGreaterThan(BigInt(first?.user_sequence));
  });
});
