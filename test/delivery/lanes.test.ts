import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Uuid } from "../../src/core/ids.ts";
import { ownerOf } from "../../src/core/ownership.ts";
import { Lanes } from "../../src/delivery/lanes.ts";
import type { ClaimedDelivery } from "../../src/store/outbox/claim.ts";
import type { LaneSighting } from "../../src/store/outbox/lanes.ts";

const DUE_AT_MS = Date.parse("2026-03-01T12:00:00.000Z");

function delivery(lane: number, wasDueAtMs = DUE_AT_MS): ClaimedDelivery {
  return {
    subscriptionKey: lane,
    revision: 1,
    eventKey: "00000000-0000-7000-8000-000000000000" as Uuid,
    leaseToken: 1n,
    userKey: null,
    redrive: false,
    wasLost: false,
    attempt: 1,
    failures: 0,
    wasDueAtMs,
    claimedAtMs: DUE_AT_MS,
    expiresAtMs: DUE_AT_MS,
    event: null,
  };
}

const deliveries = (lane: number, count: number, wasDueAtMs = DUE_AT_MS) =>
  Array.from({ length: count }, () => delivery(lane, wasDueAtMs));

const ME = "me";
const SLOTS = 1_000;

/** A healthy lane of a tenant of its own, as the outbox shows it. */
const sighting = (lane: number, changes: Partial<LaneSighting> = {}): LaneSighting => ({
  lane,
  tenant: lane,
  revision: 1,
  deleted: false,
  enabled: true,
  dueInMs: Number.POSITIVE_INFINITY,
  databaseDueAtMs: DUE_AT_MS + (changes.dueInMs ?? Number.POSITIVE_INFINITY),
  databaseNowMs: DUE_AT_MS,
  maxInFlight: undefined,
  requestsPerSecond: undefined,
  heldForMs: undefined,
  breakerForMs: undefined,
  breakerTrips: 0,
  consecutiveFailures: 0,
  failingForMs: undefined,
  succeededAgoMs: 0,
  recoveringForMs: undefined,
  ...changes,
});

/** All of them our own, long enough for nobody else to have anything on its way. */
function ownLanes(maxInFlight: number, slots = SLOTS): Lanes {
  const lanes = new Lanes({ worker: ME, slots, maxInFlight, leaseMs: 25_000 });
  lanes.setWorkers([ME], -1_000_000);
  return lanes;
}

/** Lanes 1 to `count`, all due at 0. */
function dueLanes(count: number, maxInFlight: number): Lanes {
  const lanes = ownLanes(maxInFlight);
  for (let lane = 1; lane <= count; lane++) lanes.sight(sighting(lane, { dueInMs: 0 }), 0);
  return lanes;
}

const moment = (nowMs: number) => ({ nowMs, random: 0, schedule: [5_000, 60_000] });
const succeed = (lanes: Lanes, lane: number, nowMs = 0) => lanes.finished(lane, { kind: "succeeded" }, moment(nowMs));
const fail = (lanes: Lanes, lane: number, eventKey: string, nowMs = 0, holdMs?: number) =>
  lanes.finished(lane, { kind: "failed", eventKey, detail: "HTTP 500", holdMs, isGone: false }, moment(nowMs));

/** One lane that is due, and how its picks begin. */
function oneLane(maxInFlight = 10) {
  const lanes = dueLanes(1, maxInFlight);
  const pick = (nowMs: number) => {
    const [found] = lanes.pick(nowMs, 100);
    if (!found) throw new Error("the lane sleeps");
    return found;
  };
  return { lanes, pick };
}

describe("pick", () => {
  it("never gives more than the free slots, nor a lane more than it may have in flight", () => {
    const step = fc.oneof(
      fc.record({ kind: fc.constant("wake" as const), lane: fc.integer({ min: 1, max: 8 }), at: fc.nat(50) }),
      fc.record({
        kind: fc.constant("pick" as const),
        free: fc.nat(40),
        bring: fc.array(fc.nat(20), { maxLength: 8 }),
      }),
      fc.record({ kind: fc.constant("finish" as const), lane: fc.integer({ min: 1, max: 8 }) }),
      fc.record({ kind: fc.constant("forget" as const) }),
    );
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 12 }), fc.array(step, { maxLength: 60 }), (maxInFlight, steps) => {
        const lanes = ownLanes(maxInFlight);
        for (let lane = 1; lane <= 8; lane += 1) lanes.sight(sighting(lane), 0);
        const inFlight = new Map<number, number>();
        const woken = new Set<number>();
        for (const [nowMs, next] of steps.entries()) {
          if (next.kind === "wake") {
            lanes.wake(next.lane, nowMs + next.at);
            woken.add(next.lane);
          } else if (next.kind === "forget") lanes.forgetIdle(nowMs);
          else if (next.kind === "finish") {
            if (!inFlight.get(next.lane)) continue;
            inFlight.set(next.lane, (inFlight.get(next.lane) ?? 0) - 1);
            succeed(lanes, next.lane, nowMs);
          } else {
            const picks = lanes.pick(nowMs, next.free);
            expect(new Set(picks.map(({ lane }) => lane)).size).toBe(picks.length);
            expect(picks.reduce((sum, { quota }) => sum + quota, 0)).toBeLessThanOrEqual(next.free);
            for (const { lane, quota } of picks) {
              expect(woken).toContain(lane);
              expect(quota).toBeGreaterThanOrEqual(1);
              expect((inFlight.get(lane) ?? 0) + quota).toBeLessThanOrEqual(maxInFlight);
            }
            const claimed = picks.flatMap(({ lane, quota }, i) => {
              const count = Math.min(quota, next.bring[i] ?? 0);
              inFlight.set(lane, (inFlight.get(lane) ?? 0) + count);
              return deliveries(lane, count);
            });
            lanes.claimed(picks, claimed, nowMs);
          }
        }
      }),
      { numRuns: 500 },
    );
  });

  it("gives nothing without a free slot, a lane that is due, or a slot of the lane", () => {
    const { lanes, pick } = oneLane(2);
    expect(lanes.pick(0, 0)).toEqual([]);
    expect(lanes.pick(-1, 10)).toEqual([]);
    lanes.claimed([pick(0)], deliveries(1, 2), 0);
    expect(lanes.pick(0, 10)).toEqual([]);
    expect(lanes.nextDueAtMs(0)).toBe(Number.POSITIVE_INFINITY);
    succeed(lanes, 1);
    expect(lanes.pick(0, 10)).toMatchObject([{ lane: 1, quota: 1 }]);
  });

  /** The most picks in a row that leave out a lane that is due all the while. */
  function longestWait(count: number, free: number): number {
    const lanes = dueLanes(count, 1_000);
    const waits = new Map(Array.from({ length: count }, (_, i) => [i + 1, 0]));
    let longest = 0;
    for (let round = 0; round < 4 * count; round++) {
      const picks = lanes.pick(0, free);
      const picked = new Set(picks.map(({ lane }) => lane));
      for (const [lane, wait] of waits) waits.set(lane, picked.has(lane) ? 0 : wait + 1);
      longest = Math.max(longest, ...waits.values());
      // Each brings all it may, so that it stays due, and is over at once.
      lanes.claimed(
        picks,
        picks.flatMap(({ lane, quota }) => deliveries(lane, quota)),
        0,
      );
      for (const { lane, quota } of picks) for (let i = 0; i < quota; i++) succeed(lanes, lane);
    }
    return longest;
  }

  const sizes = [fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 40 })] as const;

  it("lets the lanes take turns: each is picked at least once in as many picks as there are lanes", () => {
    fc.assert(fc.property(...sizes, (count, free) => longestWait(count, free) < count));
  });

  it("leaves no due lane out for more picks than it takes to go round once, a handful each", () => {
    fc.assert(
      fc.property(
        ...sizes,
        (count, free) => longestWait(count, free) < Math.ceil(count / Math.min(count, Math.ceil(free / 8))),
      ),
    );
  });
});

describe("claimed", () => {
  it("lets a lane that gave less than its quota sleep until it is woken", () => {
    const { lanes, pick } = oneLane();
    lanes.claimed([pick(0)], deliveries(1, 3), 0);
    expect(lanes.pick(1_000_000, 100)).toEqual([]);
    expect(lanes.nextDueAtMs(0)).toBe(Number.POSITIVE_INFINITY);
    succeed(lanes, 1);
    expect(lanes.pick(1_000_000, 100)).toEqual([]);
    lanes.wake(1, 1_000_500);
    expect(lanes.nextDueAtMs(0)).toBe(1_000_500);
    expect(lanes.pick(1_000_499, 100)).toEqual([]);
    expect(lanes.pick(1_000_500, 100)).toMatchObject([{ lane: 1, quota: 8 }]);
  });

  it("keeps a lane that gave its whole quota due", () => {
    const { lanes, pick } = oneLane();
    const full = { ...pick(0), quota: 4 };
    lanes.claimed([full], deliveries(1, 4), 0);
    expect(lanes.nextDueAtMs(0)).toBe(0);
    expect(pick(0)).toMatchObject({ quota: 6 });
  });

  it("does not forget a wake that comes while the claim is on its way", () => {
    const { lanes, pick } = oneLane();
    const early = pick(0);
    lanes.wake(1, 5);
    lanes.claimed([early], [], 0);
    expect(lanes.nextDueAtMs(0)).toBeLessThanOrEqual(5);
    lanes.claimed([pick(5)], [], 5);
    expect(lanes.nextDueAtMs(5)).toBe(Number.POSITIVE_INFINITY);
  });

  it("counts what came without a pick, as the quarantine claims it", () => {
    const lanes = ownLanes(2);
    lanes.sight(sighting(7, { dueInMs: 0 }), 0);
    lanes.claimedAlone(7, 0);
    expect(lanes.pick(0, 10)).toMatchObject([{ lane: 7, quota: 1 }]);
  });
});

describe("wake", () => {
  it("brings a lane forward and never puts it off", () => {
    const lanes = ownLanes(1);
    lanes.sight(sighting(1), 0);
    for (const dueAtMs of [100, 50, 200]) lanes.wake(1, dueAtMs);
    expect(lanes.nextDueAtMs(0)).toBe(50);
  });

  it("asks first of a lane that is not known, or that was paused when it was last looked at", () => {
    const lanes = ownLanes(1);
    lanes.sight(sighting(1, { enabled: false }), 0);
    lanes.wake(1, 0);
    lanes.wake(2, 0);
    expect(lanes.pick(0, 10)).toEqual([]);
    expect(lanes.takeStrangers()).toEqual([1, 2]);
    expect(lanes.takeStrangers()).toEqual([]);
    lanes.sight(sighting(1, { revision: 2, dueInMs: 0 }), 0);
    lanes.sight(sighting(2, { dueInMs: 0 }), 0);
    expect(lanes.pick(0, 10)).toHaveLength(2);
  });
});

describe("a lane", () => {
  it("[B55] is picked by its owner alone, however late it is", () => {
    const lanes = ownLanes(10);
    for (let lane = 1; lane <= 40; lane += 1) lanes.sight(sighting(lane, { dueInMs: -3_600_000 }), 0);
    lanes.setWorkers([ME, "other"], 0);
    lanes.counted(lanes.uncounted(), [], 0);
    const ours = Array.from({ length: 40 }, (_, i) => i + 1).filter((lane) => ownerOf(lane, [ME, "other"]) === ME);
    const picked = lanes.pick(0, 1_000).map(({ lane }) => lane);
    expect(picked.toSorted((a, b) => a - b)).toEqual(ours);
    expect(ours.length).toBeLessThan(40);
  });

  it("counts what the owner before may have on its way before it begins, until those leases end", () => {
    const lanes = new Lanes({ worker: ME, slots: SLOTS, maxInFlight: 10, leaseMs: 25_000 });
    lanes.setWorkers([ME], 0);
    lanes.sight(sighting(1, { dueInMs: 0 }), 0);
    expect(lanes.pick(0, 100)).toEqual([]);
    expect(lanes.uncounted()).toEqual([1]);
    lanes.counted([1], [{ lane: 1, count: 7, lastForMs: 20_000 }], 0);
    expect(lanes.pick(0, 100)).toMatchObject([{ quota: 3 }]);
    expect(lanes.pick(20_000, 100)).toMatchObject([{ quota: 10 }]);
  });

  it("is looked at once more when those leases end, since what they leave stands before all that was claimed", () => {
    const lanes = ownLanes(10);
    lanes.setWorkers([ME, "other"], 0);
    lanes.setWorkers([ME], 1_000);
    lanes.sight(sighting(1, { dueInMs: 0 }), 1_000);
    lanes.counted([1], [{ lane: 1, count: 7, lastForMs: 20_000 }], 1_000);
    expect(lanes.takeReturned(20_999)).toEqual([]);
    expect(lanes.takeReturned(21_000)).toEqual([1]);
    expect(lanes.takeReturned(21_000)).toEqual([]);
    lanes.counted([1], [], 22_000);
    expect(lanes.takeReturned(60_000)).toEqual([]);
  });

  it("takes over, when it becomes ours, what its owner before has just written down", () => {
    const lanes = new Lanes({ worker: ME, slots: SLOTS, maxInFlight: 10, leaseMs: 25_000 });
    lanes.setWorkers([ME, "other"], -1_000_000);
    const foreign = Array.from({ length: 40 }, (_, i) => i + 1).find(
      (lane) => ownerOf(lane, [ME, "other"]) === "other",
    );
    const key = foreign as number;
    lanes.sight(sighting(key, { dueInMs: 0 }), 0);
    lanes.setWorkers([ME], 1_000);
    expect(lanes.pick(1_000, 100)).toEqual([]);
    expect(lanes.uncounted()).toEqual([key]);
    lanes.sight(sighting(key, { dueInMs: 0, heldForMs: 60_000 }), 1_000);
    lanes.counted([key], [], 1_000);
    expect(lanes.pick(60_999, 100)).toEqual([]);
    expect(lanes.pick(61_000, 100)).toMatchObject([{ lane: key }]);
  });

  it("[B25] has no more in flight than its subscription says, and the operator's bound caps that", () => {
    const lanes = ownLanes(16);
    lanes.sight(sighting(1, { dueInMs: 0, maxInFlight: 3 }), 0);
    lanes.sight(sighting(2, { dueInMs: 0, maxInFlight: 1_000 }), 0);
    expect(lanes.pick(0, 1_000).map(({ quota }) => quota)).toEqual([3, 16]);
    lanes.setLimits({ lane: 2, revision: 2, maxInFlight: 5, requestsPerSecond: undefined }, 0, 0);
    expect(lanes.pick(0, 1_000).find(({ lane }) => lane === 2)).toMatchObject({ quota: 5 });
  });

  it("[B27] is picked no faster than its rate, and gives back what it did not use", () => {
    const lanes = ownLanes(100);
    lanes.sight(sighting(1, { dueInMs: 0, requestsPerSecond: 20 }), 0);
    expect(lanes.pick(0, 100)).toEqual([]);
    expect(lanes.nextDueAtMs(0)).toBe(50);
    const picks = lanes.pick(100, 100);
    expect(picks).toMatchObject([{ quota: 2 }]);
    lanes.claimed(picks, [], 100);
    lanes.wake(1, 100);
    expect(lanes.pick(100, 100)).toMatchObject([{ quota: 2 }]);
    expect(lanes.pick(100, 100)).toEqual([]);
  });

  it("[B22] stays silent for as long as its receiver asks, all of it, and only ever longer", () => {
    const lanes = ownLanes(10);
    lanes.sight(sighting(1, { dueInMs: 0 }), 0);
    lanes.claimed(lanes.pick(0, 3), deliveries(1, 3), 0);
    expect(fail(lanes, 1, "a", 0, 60_000)).toBe(true);
    fail(lanes, 1, "b", 1_000, 5_000);
    expect(lanes.pick(59_999, 10)).toEqual([]);
    expect(lanes.nextDueAtMs(0)).toBe(60_000);
    expect(lanes.pick(60_000, 10)).toMatchObject([{ lane: 1 }]);
    expect(lanes.takeReports(1_000)).toMatchObject([{ lane: 1, heldForMs: 59_000, consecutiveFailures: 2 }]);
  });

  /** A lane whose breaker has just opened at 0, with nothing in flight. */
  function broken() {
    const lanes = ownLanes(10);
    lanes.sight(sighting(1, { dueInMs: 0 }), 0);
    lanes.claimed(lanes.pick(0, 10), deliveries(1, 10), 0);
    for (const key of "abcdefghij") fail(lanes, 1, key);
    return lanes;
  }

  it("[B40] costs no slot while its breaker is open, then probes with one", () => {
    const lanes = broken();
    expect(lanes.pick(4_999, 100)).toEqual([]);
    expect(lanes.nextDueAtMs(0)).toBe(5_000);
    const probe = lanes.pick(5_000, 100);
    expect(probe).toMatchObject([{ lane: 1, quota: 1 }]);
    lanes.claimed(probe, deliveries(1, 1), 5_000);
    expect(lanes.pick(5_000, 100)).toEqual([]);
    expect(lanes.nextDueAtMs(5_000)).toBe(Number.POSITIVE_INFINITY);
    fail(lanes, 1, "a", 6_000);
    expect(lanes.nextDueAtMs(6_000)).toBe(16_000);
    expect(lanes.takeReports(6_000)).toMatchObject([
      { event: "subscription.failing", breakerForMs: 10_000, breakerTrips: 2, failingForMs: 6_000 },
    ]);
  });

  it("[B40] recovers with a probe that succeeds: what waits begins evenly over a minute", () => {
    const lanes = broken();
    lanes.takeReports(0);
    lanes.claimed(lanes.pick(5_000, 100), deliveries(1, 1), 5_000);
    succeed(lanes, 1, 5_000);
    expect(lanes.takeReports(5_000)).toMatchObject([
      { event: "subscription.recovered", breakerForMs: undefined, recoveringForMs: 0, consecutiveFailures: 0 },
    ]);
    expect(lanes.pick(5_000, 100)).toEqual([]);
    expect(lanes.unpaced()).toEqual([1]);
    lanes.pace(1, 600, 5_000);
    let begun = 0;
    for (let nowMs = 5_000; nowMs < 65_000; nowMs += 100) {
      const picks = lanes.pick(nowMs, 100);
      const claimed = picks.flatMap(({ lane, quota }) => deliveries(lane, quota));
      lanes.claimed(picks, claimed, nowMs);
      for (const _ of claimed) succeed(lanes, 1, nowMs);
      begun += claimed.length;
      expect(begun).toBeLessThanOrEqual((10 * (nowMs - 5_000)) / 1_000 + 1);
    }
    expect(begun).toBeGreaterThan(590);
    expect(lanes.pick(65_000, 100)).toMatchObject([{ quota: 10 }]);
  });

  it("takes over what others wrote down, and on a change of its subscription forgets what it knew", () => {
    const lanes = ownLanes(10);
    lanes.sight(sighting(1, { dueInMs: 0, breakerForMs: 30_000, breakerTrips: 3, consecutiveFailures: 9 }), 0);
    lanes.sight(sighting(2, { dueInMs: 0, heldForMs: 10_000 }), 0);
    expect(lanes.nextDueAtMs(0)).toBe(10_000);
    expect(lanes.pick(29_999, 10).map(({ lane }) => lane)).toEqual([2]);
    lanes.sight(sighting(1, { revision: 2, dueInMs: 0 }), 0);
    expect(lanes.pick(0, 10)).toMatchObject([{ lane: 1 }]);
  });

  it("[B57] that has never succeeded shares a quarter of the slots with its like", () => {
    const lanes = ownLanes(16, 64);
    for (let lane = 1; lane <= 20; lane += 1) lanes.sight(sighting(lane, { dueInMs: 0, succeededAgoMs: undefined }), 0);
    const picks = lanes.pick(0, 64);
    expect(picks.reduce((sum, { quota }) => sum + quota, 0)).toBe(16);
    lanes.claimed(
      picks,
      picks.flatMap(({ lane, quota }) => deliveries(lane, quota)),
      0,
    );
    expect(lanes.pick(0, 48)).toEqual([]);
    // Nothing to wait for but the end of a request, which is a nudge of its own.
    expect(lanes.nextDueAtMs(0)).toBe(Number.POSITIVE_INFINITY);
    lanes.sight(sighting(21, { dueInMs: 0 }), 0);
    expect(lanes.pick(0, 48)).toMatchObject([{ lane: 21, quota: 16 }]);
  });

  it("is told of once, and again if that could not be written", () => {
    const lanes = broken();
    const reports = lanes.takeReports(0);
    expect(reports).toHaveLength(1);
    expect(lanes.takeReports(0)).toEqual([]);
    lanes.putBack(reports);
    expect(lanes.takeReports(0)).toMatchObject([{ event: "subscription.failing" }]);
    // What has happened since is not overwritten by what could not be written before.
    lanes.claimed(lanes.pick(5_000, 100), deliveries(1, 1), 5_000);
    succeed(lanes, 1, 5_000);
    lanes.putBack(reports);
    expect(lanes.takeReports(5_000)).toMatchObject([{ event: "subscription.recovered" }]);
  });

  it("are made again once the lane's new revision is known, of what was learned under the old one", () => {
    const lanes = ownLanes(10);
    lanes.sight(sighting(1, { dueInMs: 0, succeededAgoMs: undefined }), 0);
    lanes.claimed(lanes.pick(0, 1), deliveries(1, 1), 0);
    // Resumed meanwhile, twice: nothing is pending, so that no look at the outbox would tell.
    const limits = { lane: 1, revision: 3, maxInFlight: undefined, requestsPerSecond: undefined };
    expect(lanes.setLimits(limits, 1, 60_000)).toBe(true);
    expect(lanes.takeStrangers()).toEqual([1]);
    succeed(lanes, 1, 65_000);
    expect(lanes.takeReports(65_000)).toMatchObject([{ revision: 1 }]);
    lanes.sight(sighting(1, { revision: 3, succeededAgoMs: 90_000 }), 66_000);
    expect(lanes.takeReports(66_000)).toMatchObject([{ revision: 3, succeededAgoMs: 1_000 }]);
    expect(lanes.setLimits(limits, 0, 67_000)).toBe(false);
  });

  it("need not be told of for each of its successes", () => {
    const lanes = ownLanes(10);
    lanes.sight(sighting(1, { dueInMs: 0, succeededAgoMs: undefined }), 0);
    const reported: number[] = [];
    for (let nowMs = 0; nowMs < 30_000; nowMs += 500) {
      lanes.claimed(lanes.pick(nowMs, 1), deliveries(1, 1), nowMs);
      lanes.wake(1, nowMs);
      succeed(lanes, 1, nowMs);
      if (lanes.takeReports(nowMs).length > 0) reported.push(nowMs);
    }
    expect(reported).toEqual([0, 10_000, 20_000]);
  });
});

describe("forgetIdle", () => {
  it("forgets a lane in which nothing happens for a minute, and no other", () => {
    const lanes = dueLanes(3, 10);
    const picks = lanes.pick(0, 30);
    // 1 sleeps with one in flight, 2 sleeps idle, 3 is woken.
    lanes.claimed(picks, deliveries(1, 1), 0);
    lanes.wake(3, 10);
    lanes.forgetIdle(60_000);
    expect(lanes.takeStrangers()).toEqual([]);
    lanes.forgetIdle(60_001);
    for (const lane of [1, 2, 3]) lanes.wake(lane, 60_001);
    expect(lanes.takeStrangers()).toEqual([2]);
    expect(lanes.pick(60_001, 30)).toMatchObject([{ lane: 1, quota: 9 }, { lane: 3 }]);
  });
});

describe("since", () => {
  it("begins at the first row that was seen, or about now if none is due yet or none is there", () => {
    for (const [dueInMs, since] of [
      [-5_000, DUE_AT_MS - 5_001],
      [60_000, DUE_AT_MS - 2_000],
      [Number.POSITIVE_INFINITY, DUE_AT_MS - 2_000],
    ] as const) {
      const lanes = ownLanes(100);
      lanes.sight(sighting(1, { dueInMs }), 0);
      lanes.wake(1, 0);
      expect(lanes.pick(0, 100)).toMatchObject([{ sinceMs: since }]);
    }
  });

  it("follows what was claimed closely", () => {
    const rows = [300, 900, 600].map((ms) => delivery(1, DUE_AT_MS + ms));
    for (const quota of [3, 4]) {
      const { lanes, pick } = oneLane();
      lanes.claimed([{ ...pick(1), quota }], rows, 1);
      lanes.wake(1, 2);
      expect(pick(2).sinceMs).toBe(DUE_AT_MS + 900 - 100);
    }
  });

  it("goes back to what is announced, as far as that says, and by two seconds where it does not say", () => {
    for (const [sinceMs, expected] of [
      [DUE_AT_MS - 20_000, DUE_AT_MS - 20_001],
      [undefined, DUE_AT_MS + 900 - 2_001],
      [DUE_AT_MS + 900, DUE_AT_MS + 900 - 100],
    ] as const) {
      const { lanes, pick } = oneLane();
      const picked = { ...pick(1), quota: 1 };
      lanes.claimed([picked], [delivery(1, DUE_AT_MS + 900)], 1);
      for (let times = 0; times < 3; times += 1) lanes.appeared(1, { dueAtMs: 2, sinceMs });
      expect(pick(2).sinceMs).toBe(expected);
    }
  });

  it("has no beginning until the lane was looked through from its own: what a partial look shows first is not the first", () => {
    const lanes = ownLanes(100);
    lanes.sight(sighting(1, { dueInMs: 0 }), 0, { isPartial: true });
    lanes.appeared(1, { dueAtMs: 0, sinceMs: DUE_AT_MS - 40_000 });
    expect(lanes.takeStrangers()).toEqual([1]);
    lanes.sight(sighting(1, { dueInMs: -30_000 }), 0);
    expect(lanes.pick(0, 100)).toMatchObject([{ sinceMs: DUE_AT_MS - 40_001 }]);
    lanes.sight(sighting(1, { dueInMs: 0 }), 0, { isPartial: true });
    expect(lanes.takeStrangers()).toEqual([]);
  });

  it("begins anew in a lane that is taken over, however long ago it was first seen and whatever was announced meanwhile", () => {
    const lane = [1, 2, 3, 4, 5, 6, 7, 8].find((key) => ownerOf(key, [ME, "other"]) === "other") as number;
    const lanes = ownLanes(100);
    lanes.setWorkers([ME, "other"], -900_000);
    lanes.sight(sighting(lane, { dueInMs: -5_000 }), 0);
    lanes.appeared(lane, { dueAtMs: 0, sinceMs: DUE_AT_MS - 40_000 });
    lanes.setWorkers([ME], 600_000);
    const databaseNowMs = DUE_AT_MS + 600_000;
    lanes.sight(sighting(lane, { dueInMs: 0, databaseDueAtMs: databaseNowMs, databaseNowMs }), 600_000);
    lanes.counted([lane], [], 600_000);
    expect(lanes.pick(600_000, 100)).toMatchObject([{ sinceMs: databaseNowMs - 2_000 }]);
  });

  it("is asked for again and again of no lane whose subscription was deleted, and of a paused one once it goes on", () => {
    const lanes = ownLanes(100);
    for (const lane of [1, 2]) lanes.sight(sighting(lane, { dueInMs: 0 }), 0);
    lanes.setWorkers(["other"], 1);
    lanes.setWorkers([ME], 2);
    lanes.retire(1);
    lanes.sight(sighting(2, { enabled: false }), 2);
    expect(lanes.uncounted()).toEqual([]);
    expect(lanes.pick(3, 100)).toEqual([]);
    lanes.sight(sighting(2, { dueInMs: 0, revision: 2 }), 3);
    expect(lanes.uncounted()).toEqual([2]);
    lanes.counted([2], [], 4);
    expect(lanes.pick(4, 100)).toMatchObject([{ lane: 2 }]);
  });

  it("does not go back for ever: once what was announced is claimed it follows again", () => {
    const { lanes, pick } = oneLane();
    lanes.claimed([{ ...pick(1), quota: 1 }], [delivery(1, DUE_AT_MS + 900)], 1);
    lanes.appeared(1, { dueAtMs: 2, sinceMs: DUE_AT_MS - 20_000 });
    lanes.claimed([{ ...pick(2), quota: 1 }], [delivery(1, DUE_AT_MS + 950)], 2);
    lanes.wake(1, 3);
    expect(pick(3).sinceMs).toBe(DUE_AT_MS + 850);
  });

  it("goes back to a row that a later look finds behind it, and to that of no other lane", () => {
    const { lanes, pick } = oneLane();
    lanes.claimed([{ ...pick(1), quota: 1 }], [delivery(1, DUE_AT_MS + 50_000)], 1);
    lanes.sight(sighting(2, { dueInMs: 0 }), 2);
    lanes.sight(sighting(1, { dueInMs: 10, databaseDueAtMs: DUE_AT_MS + 20_000 }), 2);
    lanes.wake(1, 2);
    expect(pick(20).sinceMs).toBeLessThan(DUE_AT_MS + 20_000);
    lanes.claimed([{ ...pick(21), quota: 1 }], [delivery(1, DUE_AT_MS + 60_000)], 21);
    lanes.sight(sighting(2, { dueInMs: -90_000 }), 22);
    lanes.wake(1, 22);
    expect(pick(22).sinceMs).toBe(DUE_AT_MS + 59_900);
  });

  it("does not pass a row that a look has seen while a claim was on its way", () => {
    const { lanes, pick } = oneLane();
    const picked = { ...pick(1), quota: 1 };
    lanes.sight(sighting(1, { dueInMs: -30_000, databaseDueAtMs: DUE_AT_MS + 20_000 }), 2);
    lanes.claimed([picked], [delivery(1, DUE_AT_MS + 50_000)], 3);
    lanes.wake(1, 3);
    expect(pick(4).sinceMs).toBeLessThan(DUE_AT_MS + 20_000);
  });

  it("never passes a row that a look has seen or that was announced, also while a claim is on its way", () => {
    const step = fc.record({
      kind: fc.constantFrom("claim", "look", "announcement"),
      dueMs: fc.nat(100_000),
      isFull: fc.boolean(),
      isInBetween: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const { lanes, pick } = oneLane();
        let nowMs = 1;
        for (const { kind, dueMs, isFull, isInBetween } of steps) {
          nowMs += 1;
          const claim = (brought: number) => {
            lanes.claimed([{ ...pick(nowMs), quota: isFull ? 1 : 2 }], [delivery(1, DUE_AT_MS + brought)], nowMs);
            succeed(lanes, 1, nowMs);
          };
          const notice = () => {
            if (kind === "announcement") lanes.appeared(1, { dueAtMs: nowMs, sinceMs: DUE_AT_MS + dueMs });
            else lanes.sight(sighting(1, { dueInMs: -dueMs, databaseDueAtMs: DUE_AT_MS + dueMs }), nowMs);
          };
          if (kind === "claim") claim(dueMs);
          else if (isInBetween) {
            const picked = { ...pick(nowMs), quota: isFull ? 1 : 2 };
            notice();
            lanes.claimed([picked], [delivery(1, DUE_AT_MS + dueMs + 50_000)], nowMs);
            succeed(lanes, 1, nowMs);
          } else notice();
          lanes.wake(1, nowMs);
          expect(pick(nowMs).sinceMs).toBeLessThan(DUE_AT_MS + dueMs);
        }
      }),
    );
  });
});
