import { describe, expect, it } from "vitest";
import { Recorder } from "../../src/delivery/recorder.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import type { AttemptRecord } from "../../src/store/outbox/record.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, recordOf, toRow } from "../support/fixtures.ts";

const db = useDatabase();

async function claimedRecords(count: number): Promise<AttemptRecord[]> {
  const tenant = newTenant();
  const { lane } = await addSubscription(db, tenant);
  const rows = Array.from({ length: count }, () => toRow(draftEvent(tenant)));
  await appendEvents(db.server.hot, rows, { maxPendingMs: 86_400_000 });
  const quota = [{ lane, quota: count, sinceMs: Number.NEGATIVE_INFINITY }];
  const claimed = await claimDueDeliveries(db.worker.hot, quota, { leaseMs: 25_000, leaseToken: 1n });
  return claimed.map((delivery) => recordOf(delivery));
}

describe("the recorder", () => {
  it("writes what gathers in few statements, and flush waits for all of it", async () => {
    const records = await claimedRecords(300);
    const batches: number[] = [];
    const recorder = new Recorder(
      db.worker.hot,
      () => performance.now(),
      ({ recorded }) => batches.push(recorded.length),
      (error) => expect.fail(String(error)),
    );
    for (const record of records) recorder.add(record);
    await recorder.flush();
    expect(batches.reduce((sum, size) => sum + size, 0)).toBe(300);
    expect(batches.length).toBeLessThanOrEqual(3);
    expect(recorder.pending).toBe(0);
  });

  it("keeps one record that cannot be written from taking the others with it", async () => {
    const records = await claimedRecords(9);
    // There is no partition for that day.
    records[4] = { ...(records[4] as AttemptRecord), startedAtMs: Date.parse("2001-01-01T00:00:00Z") };
    const written: AttemptRecord[] = [];
    const failures: unknown[] = [];
    const recorder = new Recorder(
      db.worker.hot,
      () => performance.now(),
      ({ recorded }) => written.push(...recorded.map(({ record }) => record)),
      (error) => failures.push(error),
    );
    for (const record of records) recorder.add(record);
    await recorder.flush();
    expect(written).toHaveLength(8);
    expect(written).not.toContain(records[4]);
    expect(failures.length).toBeGreaterThan(0);
    const lane = records[0]?.subscriptionKey ?? 0;
    expect(await db.admin`SELECT event_key FROM nuncio.outbox WHERE subscription_key = ${lane}`).toEqual([
      { event_key: records[4]?.eventKey },
    ]);
  });
});
