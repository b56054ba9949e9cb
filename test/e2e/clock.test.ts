import { describe, expect, it } from "vitest";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, toRow } from "../support/fixtures.ts";
import { startWorker } from "../support/processes.ts";
import { openReceiver } from "../support/receiver.ts";

const db = useDatabase();
const HOUR_MS = 3_600_000;

/** Sets the wall clock of a Node process off, as its code sees it. */
const clockOff = (ms: number) => ({
  NODE_OPTIONS: `--import data:text/javascript,${encodeURIComponent(`
    const Real = Date;
    globalThis.Date = class extends Real {
      constructor(...args) { if (args.length > 0) super(...args); else super(Real.now() + ${ms}); }
      static now() { return Real.now() + ${ms}; }
    };`)}`,
});

describe("a worker whose clock is off by an hour", () => {
  it.each([
    ["ahead", HOUR_MS],
    ["behind", -HOUR_MS],
  ])("[B47] (%s) delivers neither early nor late, with timestamps that receivers accept", async (_, offMs) => {
    const tenant = newTenant();
    const arrivals: { atMs: number; timestamp: number }[] = [];
    const receiver = await openReceiver(({ headers }, response) => {
      arrivals.push({ atMs: Date.now(), timestamp: Number(headers["webhook-timestamp"]) });
      response.writeHead(arrivals.length === 1 ? 500 : 200).end();
    });
    await addSubscription(db, tenant, { url: receiver.url });
    await appendEvents(db.server.hot, [toRow(draftEvent(tenant))], { maxPendingMs: 86_400_000 });
    const worker = await startWorker(db.url, { ...clockOff(offMs), NUNCIO_RETRY_SCHEDULE: "1s,1s,1s" });
    // The log's own times are off: the clock is, as the process sees it.
    const [{ time } = { time: 0 }] = worker.lines;
    expect(Math.abs(Date.parse(String(time)) - Date.now() - offMs)).toBeLessThan(60_000);
    await receiver.until(() => arrivals.length === 2);
    worker.child.kill("SIGTERM");
    await worker.ended;
    for (const { atMs, timestamp } of arrivals) expect(Math.abs(timestamp * 1000 - atMs)).toBeLessThan(5_000);
    const [first, second] = arrivals;
    expect((second?.atMs ?? 0) - (first?.atMs ?? 0)).toBeGreaterThanOrEqual(1_000);
    expect(await db.admin`SELECT FROM nuncio.outbox`).toEqual([]);
    expect(await db.admin`SELECT FROM nuncio.dead_letters`).toEqual([]);
  });
});
