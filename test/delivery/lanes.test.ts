import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Uuid } from "../../src/core/ids.ts";
import { type LanePick, Lanes } from "../../src/delivery/lanes.ts";
import type { ClaimedDelivery } from "../../src/store/outbox/claim.ts";

const DUE_AT_MS = Date.parse("2026-03-01T12:00:00.000Z");

function delivery(lane: number, wasDueAtMs = DUE_AT_MS): ClaimedDelivery {
  return {
    subscriptionKey: lane,
    revision: 1,
    eventKey: "00000000-0000-7000-8000-000000000000" as Uuid,
    leaseToken: 1n,
    userKey: null,
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

/** Lanes 1 to `count`, all due at 0. */
function dueLanes(count: number, maxInFlight: number): Lanes {
  const lanes = new Lanes(maxInFlight);
  for (let lane = 1; lane <= count; lane++) lanes.wake(lane, 0);
  return lanes;
}

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
        const lanes = new Lanes(maxInFlight);
        const inFlight = new Map<number, number>();
        const woken = new Set<number>();
        for (const [nowMs, next] of steps.entries()) {
          if (next.kind === "wake") {
            lanes.wake(next.lane, nowMs + next.at);
            woken.add(next.lane);
          } else if (next.kind === "forget") lanes.forgetIdle();
          else if (next.kind === "finish") {
            if (!inFlight.get(next.lane)) continue;
            inFlight.set(next.lane, (inFlight.get(next.lane) ?? 0) - 1);
            lanes.finished(next.lane);
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
            lanes.claimed(picks, claimed);
          }
        }
      }),
      { numRuns: 500 },
    );
  });

  it("spreads the free slots evenly, and gives all of them while the lanes can take them", () => {
    expect(
      dueLanes(3, 100)
        .pick(0, 10)
        .map(({ quota }) => quota),
    ).toEqual([4, 3, 3]);
    expect(
      dueLanes(3, 2)
        .pick(0, 10)
        .map(({ quota }) => quota),
    ).toEqual([2, 2, 2]);
  });

  it("asks a lane with more to give for a handful, a lane of one event for no more than its share", () => {
    const lanes = dueLanes(20, 16);
    const first = lanes.pick(0, 20);
    expect(first.map(({ quota }) => quota)).toEqual(Array(20).fill(1));
    const claimed = first.filter(({ lane }) => lane <= 10).flatMap(({ lane }) => deliveries(lane, 1));
    lanes.claimed(first, claimed);
    for (const { subscriptionKey } of claimed) lanes.finished(subscriptionKey);
    expect(lanes.pick(1, 20).map(({ quota }) => quota)).toEqual([8, 8, 4]);
  });

  it("lets a lane that was quiet come before all that have a backlog", () => {
    const lanes = dueLanes(30, 16);
    for (let round = 0; round < 5; round++) {
      const picks = lanes.pick(round, 16);
      const claimed = picks.flatMap(({ lane, quota }) => deliveries(lane, quota));
      lanes.claimed(picks, claimed);
      for (const { subscriptionKey } of claimed) lanes.finished(subscriptionKey);
    }
    lanes.wake(31, 5);
    expect(lanes.pick(5, 16)[0]?.lane).toBe(31);
  });

  it("gives nothing without a free slot, a lane that is due, or a slot of the lane", () => {
    const { lanes, pick } = oneLane(2);
    expect(lanes.pick(0, 0)).toEqual([]);
    expect(lanes.pick(-1, 10)).toEqual([]);
    lanes.claimed([pick(0)], deliveries(1, 2));
    expect(lanes.pick(0, 10)).toEqual([]);
    expect(lanes.nextDueAtMs()).toBe(Number.POSITIVE_INFINITY);
    lanes.finished(1);
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
      );
      for (const { lane, quota } of picks) for (let i = 0; i < quota; i++) lanes.finished(lane);
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
    lanes.claimed([pick(0)], deliveries(1, 3));
    expect(lanes.pick(1_000_000, 100)).toEqual([]);
    expect(lanes.nextDueAtMs()).toBe(Number.POSITIVE_INFINITY);
    lanes.finished(1);
    expect(lanes.pick(1_000_000, 100)).toEqual([]);
    lanes.wake(1, 1_000_500);
    expect(lanes.nextDueAtMs()).toBe(1_000_500);
    expect(lanes.pick(1_000_499, 100)).toEqual([]);
    expect(lanes.pick(1_000_500, 100)).toMatchObject([{ lane: 1, quota: 8 }]);
  });

  it("keeps a lane that gave its whole quota due", () => {
    const { lanes, pick } = oneLane();
    const full = { ...pick(0), quota: 4 };
    lanes.claimed([full], deliveries(1, 4));
    expect(lanes.nextDueAtMs()).toBe(0);
    expect(pick(0)).toMatchObject({ quota: 6 });
  });

  it("does not forget a wake that comes while the claim is on its way", () => {
    const { lanes, pick } = oneLane();
    const early = pick(0);
    lanes.wake(1, 5);
    lanes.claimed([early], []);
    expect(lanes.nextDueAtMs()).toBeLessThanOrEqual(5);
    lanes.claimed([pick(5)], []);
    expect(lanes.nextDueAtMs()).toBe(Number.POSITIVE_INFINITY);
  });

  it("does not forget that anything may be due, either", () => {
    const { lanes, pick } = oneLane();
    const early = pick(0);
    lanes.wakeAll(5);
    lanes.claimed([early], []);
    expect(pick(5)).toMatchObject({ lane: 1 });
  });

  it("counts what came without a pick, as the quarantine claims it", () => {
    const lanes = new Lanes(2);
    lanes.claimed([], deliveries(7, 1));
    lanes.wake(7, 0);
    expect(lanes.pick(0, 10)).toMatchObject([{ lane: 7, quota: 1 }]);
  });
});

describe("wake", () => {
  it("brings a lane forward and never puts it off", () => {
    const lanes = new Lanes(1);
    lanes.wake(1, 100);
    lanes.wake(1, 50);
    lanes.wake(1, 200);
    expect(lanes.nextDueAtMs()).toBe(50);
  });
});

describe("forgetIdle", () => {
  it("forgets a lane that sleeps with nothing in flight, and no other", () => {
    const lanes = dueLanes(3, 10);
    const picks = lanes.pick(0, 30);
    // 1 sleeps with one in flight, 2 sleeps idle, 3 is woken.
    lanes.claimed(picks, deliveries(1, 1));
    lanes.wake(3, 10);
    lanes.forgetIdle();
    lanes.wakeAll(20);
    expect(
      lanes
        .pick(20, 30)
        .map(({ lane, quota }) => [lane, quota])
        .sort(),
    ).toEqual([
      [1, 9],
      [3, 10],
    ]);
  });
});

describe("since", () => {
  const MINUTE = 60_000;

  it("is a minute before the latest due time that was claimed, whatever the order of the rows", () => {
    const { lanes, pick } = oneLane();
    expect(pick(0).sinceMs).toBe(Number.NEGATIVE_INFINITY);
    const rows = [300, 900, 600].map((ms) => delivery(1, DUE_AT_MS + ms));
    lanes.claimed([{ ...pick(1), quota: 3 }], rows);
    expect(pick(2).sinceMs).toBe(DUE_AT_MS + 900 - MINUTE);
  });

  it("never passes what was claimed less a minute, and is the beginning every 5 s", () => {
    const claim = fc.record({ afterMs: fc.nat(3_000), brings: fc.array(fc.nat(10 * MINUTE), { maxLength: 5 }) });
    fc.assert(
      fc.property(fc.array(claim, { minLength: 1, maxLength: 40 }), (claims) => {
        const { lanes, pick } = oneLane();
        let nowMs = 0;
        let lookedFromStartAtMs = Number.NEGATIVE_INFINITY;
        let latest: number | undefined;
        for (const { afterMs, brings } of claims) {
          nowMs += afterMs;
          lanes.wake(1, nowMs);
          const picked: LanePick = pick(nowMs);
          if (nowMs - lookedFromStartAtMs >= 5_000) {
            expect(picked.sinceMs).toBe(Number.NEGATIVE_INFINITY);
            lookedFromStartAtMs = nowMs;
          } else {
            expect(picked.sinceMs).toBe(latest === undefined ? Number.NEGATIVE_INFINITY : latest - MINUTE);
          }
          const rows = brings.map((ms) => delivery(1, DUE_AT_MS + ms));
          lanes.claimed([picked], rows);
          if (brings.length > 0) latest = DUE_AT_MS + Math.max(...brings);
          for (const _ of rows) lanes.finished(1);
        }
      }),
      { numRuns: 300 },
    );
  });

  it("belongs to the lane: another lane begins at the beginning", () => {
    const { lanes, pick } = oneLane();
    lanes.claimed([{ ...pick(0), quota: 1 }], deliveries(1, 1));
    lanes.wake(2, 0);
    const since = new Map(lanes.pick(1, 100).map((picked) => [picked.lane, picked.sinceMs]));
    expect(since.get(2)).toBe(Number.NEGATIVE_INFINITY);
    expect(since.get(1)).not.toBe(Number.NEGATIVE_INFINITY);
  });
});
