import { describe, expect, it } from "vitest";
import { disableSubscription, type LaneReport, reportLanes } from "../../src/store/lane-states.ts";
import { pauseSubscription, resumeSubscription } from "../../src/store/subscription-changes.ts";
import { getSubscription } from "../../src/store/subscriptions.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, newTenant } from "../support/fixtures.ts";

const db = useDatabase();
const MINUTE = 60_000;

const report = (lane: number, changes: Partial<LaneReport> = {}): LaneReport => ({
  lane,
  revision: 1,
  succeededAgoMs: undefined,
  failedAgoMs: undefined,
  lastFailure: undefined,
  consecutiveFailures: 0,
  failingForMs: undefined,
  heldForMs: undefined,
  breakerForMs: undefined,
  breakerTrips: 0,
  recoveringForMs: undefined,
  event: undefined,
  ...changes,
});

const write = (...reports: LaneReport[]) => reportLanes(db.worker.hot, reports);

/** What is stored, times as milliseconds from now. */
async function stored(lane: number) {
  const [row] = await db.admin`
    SELECT l.*, extract(epoch FROM held_until - now())::float8 * 1000 AS held_ms,
      extract(epoch FROM breaker_until - now())::float8 * 1000 AS breaker_ms,
      extract(epoch FROM now() - last_success_at)::float8 * 1000 AS succeeded_ms,
      extract(epoch FROM now() - nuncio.lane_clock(${lane}))::float8 * 1000 AS behind_ms
    FROM nuncio.lane_states l WHERE subscription_key = ${lane}`;
  return row;
}

const age = (lane: number, ms: number) => db.admin`
  UPDATE nuncio.lane_states SET stopped_since = stopped_since - ${ms}::bigint * interval '1 ms' WHERE subscription_key = ${lane}`;

describe("a report on a lane", () => {
  it("lets the later success and the longer hold win, whoever reports them", async () => {
    const { lane } = await addSubscription(db, newTenant());
    await write(
      report(lane, { succeededAgoMs: 1_000, heldForMs: 10 * MINUTE, failedAgoMs: 5_000, lastFailure: "HTTP 429" }),
    );
    await write(report(lane, { succeededAgoMs: 9_000, heldForMs: MINUTE, consecutiveFailures: 2 }));
    const row = await stored(lane);
    expect(row?.held_ms).toBeGreaterThan(9 * MINUTE);
    expect(row?.succeeded_ms).toBeLessThan(5_000);
    expect(row).toMatchObject({ last_failure: "HTTP 429", consecutive_failures: 2 });
  });

  it("lets the lane's clock stand while its breaker is open, and go on after; a hold does not stop it", async () => {
    const { lane } = await addSubscription(db, newTenant());
    await write(report(lane, { breakerForMs: 5_000, breakerTrips: 1, consecutiveFailures: 10 }));
    await age(lane, 30 * MINUTE);
    await write(report(lane, { breakerForMs: 10_000, breakerTrips: 2, consecutiveFailures: 11 }));
    expect((await stored(lane))?.behind_ms).toBeGreaterThan(29 * MINUTE);
    await write(report(lane));
    const row = await stored(lane);
    expect(row).toMatchObject({ stopped_since: null, breaker_until: null, breaker_trips: 0 });
    expect(row?.behind_ms).toBeGreaterThan(29 * MINUTE);
    expect(row?.behind_ms).toBeLessThan(31 * MINUTE);
    await write(report(lane, { heldForMs: MINUTE }));
    expect((await stored(lane))?.stopped_since).toBeNull();
  });

  it("does not undo a Resume that commits while it waits for the lane", async () => {
    const tenant = newTenant();
    const { lane, uuid } = await addSubscription(db, tenant);
    await pauseSubscription(db.server.orm, tenant, uuid);
    const late = report(lane, { revision: 2, heldForMs: 60 * MINUTE, breakerForMs: 30_000, consecutiveFailures: 13 });
    let reporting: Promise<unknown> | undefined;
    await db.server.orm.transaction(async (tx) => {
      await resumeSubscription(tx as unknown as typeof db.server.orm, tenant, uuid);
      reporting = write(late);
      const waits = async () =>
        (await db.admin`SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%report_lanes%'`)
          .length;
      await expect.poll(waits).toBe(1);
    });
    await reporting;
    expect(await stored(lane)).toMatchObject({ held_until: null, breaker_until: null, stopped_since: null });
  });

  it("is forgotten if the subscription has changed since", async () => {
    const tenant = newTenant();
    const { lane, uuid } = await addSubscription(db, tenant);
    await pauseSubscription(db.server.orm, tenant, uuid);
    await resumeSubscription(db.server.orm, tenant, uuid);
    await write(report(lane, { breakerForMs: 60_000, breakerTrips: 4, consecutiveFailures: 20 }));
    expect(await stored(lane)).toMatchObject({ breaker_until: null, consecutive_failures: 0 });
    await write(report(lane, { revision: 3, breakerForMs: 60_000, breakerTrips: 1, consecutiveFailures: 10 }));
    expect(await stored(lane)).toMatchObject({ breaker_trips: 1 });
  });

  it("leaves the clock of a paused subscription standing, and Resume forgets what was held against it", async () => {
    const tenant = newTenant();
    const { lane, uuid } = await addSubscription(db, tenant);
    await pauseSubscription(db.server.orm, tenant, uuid);
    await age(lane, 10 * MINUTE);
    await write(report(lane, { revision: 2, succeededAgoMs: 1_000 }));
    expect((await stored(lane))?.stopped_since).not.toBeNull();
    await write(
      report(lane, { revision: 2, breakerForMs: 1_000, heldForMs: MINUTE, failingForMs: 1, consecutiveFailures: 12 }),
    );
    await resumeSubscription(db.server.orm, tenant, uuid);
    const row = await stored(lane);
    expect(row).toMatchObject({
      stopped_since: null,
      held_until: null,
      breaker_until: null,
      failing_since: null,
      consecutive_failures: 0,
      recovering_since: expect.any(Date),
    });
    expect(row?.behind_ms).toBeGreaterThan(9 * MINUTE);
  });

  it("names those that have known nothing but failure for five days", async () => {
    const tenant = newTenant();
    const lanes = [];
    for (let i = 0; i < 3; i += 1) lanes.push((await addSubscription(db, tenant)).lane);
    const [long, short, well] = lanes as [number, number, number];
    const day = 86_400_000;
    const failing = await write(
      report(well, { succeededAgoMs: 1 }),
      report(long, { consecutiveFailures: 9, failingForMs: 5 * day + 1 }),
      report(short, { consecutiveFailures: 9, failingForMs: 5 * day - MINUTE }),
    );
    expect(failing).toEqual([long]);
  });
});

describe("disable", () => {
  it("[B24] does nothing within a minute of a success, nor to what is not enabled", async () => {
    const tenant = newTenant();
    const { lane, uuid } = await addSubscription(db, tenant);
    await write(report(lane, { succeededAgoMs: 59_000 }));
    expect(await disableSubscription(db.worker.hot, lane, "gone")).toBe(false);
    await db.admin`UPDATE nuncio.lane_states SET last_success_at = now() - interval '61 s' WHERE subscription_key = ${lane}`;
    await pauseSubscription(db.server.orm, tenant, uuid);
    expect(await disableSubscription(db.worker.hot, lane, "gone")).toBe(false);
    await resumeSubscription(db.server.orm, tenant, uuid);
    expect(await disableSubscription(db.worker.hot, lane, "gone")).toBe(true);
    expect(await disableSubscription(db.worker.hot, lane, "gone")).toBe(false);
    expect(await getSubscription(db.server.orm, tenant, uuid)).toMatchObject({
      state: "DISABLED",
      stateReason: "gone",
    });
  });
});

describe("a recovery", () => {
  const eventsOf = async (lane: number) =>
    (
      await db.admin<{ type: number; count: number }[]>`
        SELECT type, count FROM nuncio.operational_events WHERE subscription_key = ${lane} ORDER BY first_at, type`
    ).map(({ type, count }) => [type, count]);
  const [DISABLED, FAILING, RECOVERED] = [1, 2, 3];

  it("is told with the first success after a Resume of what was failing, once", async () => {
    const tenant = newTenant();
    const { lane, uuid } = await addSubscription(db, tenant);
    await write(
      report(lane, {
        consecutiveFailures: 12,
        breakerForMs: 60_000,
        failingForMs: 60_000,
        event: "subscription.failing",
      }),
    );
    await resumeSubscription(db.server.orm, tenant, uuid);
    await resumeSubscription(db.server.orm, tenant, uuid);
    // A success from before, and one that was learned under the old revision, say nothing.
    await write(report(lane, { revision: 3, succeededAgoMs: 60_000 }));
    await write(report(lane, { revision: 1, succeededAgoMs: 0 }));
    expect(await eventsOf(lane)).toEqual([[FAILING, 1]]);
    await write(report(lane, { revision: 3, succeededAgoMs: 0 }));
    await write(report(lane, { revision: 3, succeededAgoMs: 0 }));
    expect(await eventsOf(lane)).toEqual([
      [FAILING, 1],
      [RECOVERED, 1],
    ]);
  });

  it("is told of what was disabled, not of what was only paused, and not twice where the worker says so itself", async () => {
    const tenant = newTenant();
    const [gone, paused] = [await addSubscription(db, tenant), await addSubscription(db, tenant)];
    await disableSubscription(db.worker.hot, gone.lane, "gone");
    await pauseSubscription(db.server.orm, tenant, paused.uuid);
    for (const { uuid } of [gone, paused]) await resumeSubscription(db.server.orm, tenant, uuid);
    await write(
      report(gone.lane, { revision: 3, succeededAgoMs: 0, event: "subscription.recovered" }),
      report(paused.lane, { revision: 3, succeededAgoMs: 0 }),
    );
    await write(report(gone.lane, { revision: 3, succeededAgoMs: 0 }));
    expect(await eventsOf(gone.lane)).toEqual([
      [DISABLED, 1],
      [RECOVERED, 1],
    ]);
    expect(await eventsOf(paused.lane)).toEqual([]);
  });
});
