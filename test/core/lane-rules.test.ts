import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { afterFailure, afterSuccess, type Breaker, CLOSED } from "../../src/core/breaker.ts";
import { isNoisy, type LaneView, MOST_LANES, shareSlots } from "../../src/core/fair-shares.ts";
import { ownerOf } from "../../src/core/ownership.ts";
import { LONGEST_HOLD_MS, parseRetryAfter } from "../../src/core/retry-after.ts";
import { emptyBucket, nextTokenAtMs, refill, take } from "../../src/core/token-bucket.ts";

describe("Retry-After", () => {
  const NOW = Date.parse("2026-11-26T10:00:00.000Z");
  const table: [string | undefined, number | undefined][] = [
    ["1", 1_000],
    [" 120 ", 120_000],
    ["3600", LONGEST_HOLD_MS],
    ["86400", LONGEST_HOLD_MS],
    ["9999999999", LONGEST_HOLD_MS],
    ["Thu, 26 Nov 2026 10:00:30 GMT", 30_000],
    ["Thursday, 26-Nov-26 10:00:30 GMT", 30_000],
    ["Fri, 27 Nov 2026 10:00:00 GMT", LONGEST_HOLD_MS],
    ["Thu, 26 Nov 2026 09:59:59 GMT", undefined],
    ["Thu, 26 Nov 2026 10:00:00 GMT", undefined],
    ["0", undefined],
    ["-5", undefined],
    ["1.5", undefined],
    ["1e3", undefined],
    ["99999999999999999999", undefined],
    ["soon", undefined],
    ["Thu, 99 Nov 2026 10:00:00 GMT", undefined],
    ["2026-11-26T11:00:00Z", undefined],
    ["", undefined],
    [undefined, undefined],
  ];
  it.each(table)("[B22] %j asks for %j ms", (value, expected) => {
    expect(parseRetryAfter(503, value, NOW)).toBe(expected);
    expect(parseRetryAfter(429, value, NOW)).toBe(expected);
  });

  it("[B22] only ever delays, and never for more than an hour, whatever it says", () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.integer().map(String), fc.date().map(String)), (value) => {
        const ms = parseRetryAfter(429, value, NOW);
        return ms === undefined || (ms > 0 && ms <= LONGEST_HOLD_MS);
      }),
    );
  });

  it("counts for 429 and 503 alone", () => {
    for (const status of [undefined, 200, 301, 400, 500, 502])
      expect(parseRetryAfter(status, "60", NOW)).toBeUndefined();
  });
});

describe("the breaker", () => {
  const schedule = [5_000, 60_000, 300_000];
  const fail = (breaker: Breaker, eventKey: string, nowMs = 0, random = 0) =>
    afterFailure(breaker, { eventKey, nowMs, random, schedule });
  const failAll = (keys: readonly string[], from = CLOSED) => keys.reduce((b, key) => fail(b, key), from);

  /** Ten failures of ten events. */
  const TEN = [..."abcdefghij"];

  it("[B40] opens after ten failures in a row, of three events at least", () => {
    expect(failAll(TEN.slice(1)).openUntilMs).toBeUndefined();
    expect(failAll(TEN)).toMatchObject({ openUntilMs: 5_000, trips: 1 });
    expect(failAll(["a", "b", ...Array(8).fill("c")])).toMatchObject({ openUntilMs: 5_000, trips: 1 });
  });

  it("stays closed for one or two poison events, however often they fail", () => {
    expect(failAll(Array(40).fill("a")).openUntilMs).toBeUndefined();
    expect(failAll(["a", ...Array(40).fill("b")]).openUntilMs).toBeUndefined();
  });

  it("[B40] closes with any success, and counts from the beginning", () => {
    expect(afterSuccess()).toEqual(CLOSED);
    expect(failAll(TEN.slice(1), afterSuccess()).openUntilMs).toBeUndefined();
  });

  it("[B40] pauses twice as long after each probe that fails, at most a minute, stretched by a fifth at most", () => {
    let breaker = failAll(TEN);
    const pauses: number[] = [];
    for (let i = 0; i < 6; i += 1) {
      const atMs = breaker.openUntilMs ?? 0;
      breaker = fail(breaker, "a", atMs);
      pauses.push((breaker.openUntilMs ?? 0) - atMs);
    }
    expect(pauses).toEqual([10_000, 20_000, 40_000, 60_000, 60_000, 60_000]);
    const stretched = fail(failAll(TEN.slice(1)), "a", 0, 0.999).openUntilMs ?? 0;
    expect(stretched).toBeGreaterThan(5_900);
    expect(stretched).toBeLessThanOrEqual(6_000);
  });

  it("never pauses longer than a delivery that failed as often waits for its next attempt", () => {
    const quick = { schedule: [20, 40], random: 0, nowMs: 0 };
    let breaker = TEN.reduce((b, eventKey) => afterFailure(b, { ...quick, eventKey }), CLOSED);
    expect(breaker.openUntilMs).toBe(20);
    for (const expected of [40, 40]) {
      const nowMs = breaker.openUntilMs ?? 0;
      breaker = afterFailure(breaker, { ...quick, nowMs, eventKey: "a" });
      expect((breaker.openUntilMs ?? 0) - nowMs).toBe(expected);
    }
  });

  it("counts its trips no further than a smallint and the pause need", () => {
    let breaker = failAll(TEN);
    for (let i = 0; i < 200; i += 1) breaker = fail(breaker, "a", breaker.openUntilMs);
    expect(breaker.trips).toBe(100);
  });

  it("takes no notice of what began before it opened and fails after", () => {
    const open = failAll(TEN);
    expect(fail(open, "z", 4_999)).toMatchObject({ openUntilMs: 5_000, trips: 1 });
  });
});

describe("the rate limit", () => {
  it("[B27] lets no more begin than its rate and a tenth of a second's burst, in any window", () => {
    const asks = fc.array(fc.record({ afterMs: fc.nat(400), wants: fc.nat(20) }), { minLength: 1, maxLength: 100 });
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 500 }), asks, (perSecond, steps) => {
        let bucket = emptyBucket(perSecond, 0);
        let nowMs = 0;
        const begun: { atMs: number; count: number }[] = [];
        for (const { afterMs, wants } of steps) {
          nowMs += afterMs;
          bucket = refill(bucket, nowMs);
          const count = Math.min(wants, Math.floor(bucket.tokens));
          bucket = take(bucket, count);
          begun.push({ atMs: nowMs, count });
        }
        for (const [i, { atMs }] of begun.entries()) {
          let sum = 0;
          for (const later of begun.slice(i)) {
            sum += later.count;
            const most = (perSecond * (later.atMs - atMs)) / 1000 + Math.max(1, perSecond / 10);
            expect(sum).toBeLessThanOrEqual(most + 1e-6);
          }
        }
      }),
    );
  });

  it("says when the next may begin, and not a moment later", () => {
    const bucket = emptyBucket(4, 1_000);
    expect(nextTokenAtMs(bucket)).toBe(1_250);
    expect(Math.floor(refill(bucket, 1_249).tokens)).toBe(0);
    expect(Math.floor(refill(bucket, 1_250).tokens)).toBe(1);
  });

  it("does not run backwards with the clock", () => {
    expect(refill({ perSecond: 10, most: 1, tokens: 0.5, filledAtMs: 100 }, 50).tokens).toBe(0.5);
  });
});

describe("who owns a lane", () => {
  const names = (count: number) => Array.from({ length: count }, (_, i) => `0199aa00-0000-7000-8000-00000000000${i}`);

  it("is the same for everybody who knows the same workers, in whatever order", () => {
    fc.assert(
      fc.property(fc.nat(), fc.uniqueArray(fc.uuid(), { minLength: 1, maxLength: 8 }), (lane, workers) => {
        const owner = ownerOf(lane, workers);
        expect(workers).toContain(owner);
        expect(ownerOf(lane, workers.toReversed())).toBe(owner);
      }),
    );
  });

  it.each([2, 3, 5, 8])("gives each of %i workers an even part", (count) => {
    const parts = new Map<string | undefined, number>();
    for (let lane = 1; lane <= 10_000; lane += 1) {
      const owner = ownerOf(lane, names(count));
      parts.set(owner, (parts.get(owner) ?? 0) + 1);
    }
    for (const part of parts.values()) expect(Math.abs(part / (10_000 / count) - 1)).toBeLessThan(0.1);
    expect(parts.size).toBe(count);
  });

  it("moves nothing but the part of the one who comes or goes", () => {
    const [gone, ...rest] = names(6);
    for (let lane = 1; lane <= 2_000; lane += 1) {
      const before = ownerOf(lane, names(6));
      if (before !== gone) expect(ownerOf(lane, rest)).toBe(before);
    }
  });

  it("is nobody without workers", () => {
    expect(ownerOf(1, [])).toBeUndefined();
  });
});

type TestLane = { id: number; room: number; hasMore: boolean; proven: boolean };
const VIEW: LaneView<TestLane> = {
  room: ({ room }) => room,
  hasMore: ({ hasMore }) => hasMore,
  isProven: ({ proven }) => proven,
};
let ids = 0;
const lane = (room: number, { hasMore = false, proven = true } = {}): TestLane => ({
  id: ids++,
  room,
  hasMore,
  proven,
});
const tenant = (inFlight: number, ...lanes: TestLane[]) => ({ inFlight, lanes: new Map(lanes.map((l) => [l.id, l])) });
const slots = (free: number, total = free, unproven = 0) => ({ total, free, unproven });
const deal = (tenants: ReturnType<typeof tenant>[], s: ReturnType<typeof slots>) =>
  shareSlots(tenants, s, VIEW).map(({ lane: { id }, quota }) => ({ id, quota }));
const quotas = (...args: Parameters<typeof deal>) => deal(...args).map(({ quota }) => quota);

describe("the shares", () => {
  it("are even between tenants, then between each one's subscriptions", () => {
    expect(quotas([tenant(0, lane(100)), tenant(0, lane(100), lane(100), lane(100))], slots(12))).toEqual([6, 2, 2, 2]);
  });

  it("leave to others what a tenant or a subscription cannot take", () => {
    expect(quotas([tenant(0, lane(1)), tenant(0, lane(2), lane(100))], slots(12))).toEqual([1, 2, 9]);
  });

  it("ask a lane with more to give for a handful, and one of a single event for no more than its share", () => {
    const backlog = () => tenant(0, lane(16, { hasMore: true }));
    expect(quotas([backlog(), backlog(), backlog()], slots(12, 256))).toEqual([8, 4]);
    expect(quotas([tenant(0, lane(16)), tenant(0, lane(16))], slots(2, 256))).toEqual([1, 1]);
  });

  it("[B39] let every quiet tenant come before a noisy one", () => {
    const noisy = tenant(30, lane(16, { hasMore: true }));
    const quiet = tenant(0, lane(1));
    expect(quotas([noisy, quiet, tenant(25, lane(1))], slots(4, 256))).toEqual([1, 1, 2]);
    expect(isNoisy(29, { total: 10 })).toBe(false);
    expect(isNoisy(30, { total: 300 })).toBe(false);
    expect(isNoisy(31, { total: 300 })).toBe(true);
  });

  it("[B57] give what has not lately succeeded a quarter of all slots, together", () => {
    const unproven = Array.from({ length: 50 }, () => tenant(0, lane(16, { proven: false, hasMore: true })));
    const sum = (list: number[]) => list.reduce((a, b) => a + b, 0);
    expect(sum(quotas(unproven, slots(256)))).toBe(64);
    expect(sum(quotas(unproven, slots(256, 256, 60)))).toBe(4);
    expect(quotas(unproven, slots(200, 256, 64))).toEqual([]);
    expect(sum(quotas([...unproven, tenant(0, lane(500))], slots(256)))).toBe(256);
    expect(quotas([tenant(0, lane(5, { proven: false }))], slots(2))).toEqual([1]);
  });

  it("name no more lanes than Postgres has locks for", () => {
    const many = Array.from({ length: 3_000 }, () => tenant(0, lane(1)));
    expect(quotas(many, slots(10_000))).toHaveLength(MOST_LANES);
  });

  it("never exceed the free slots nor a lane's room, and leave no slot free that a proven lane wants", () => {
    const anyLane = fc.record({ room: fc.nat(20), hasMore: fc.boolean(), proven: fc.boolean() });
    const anyTenant = fc.record({ inFlight: fc.nat(60), lanes: fc.array(anyLane, { maxLength: 6 }) });
    fc.assert(
      fc.property(fc.array(anyTenant, { maxLength: 12 }), fc.nat(80), fc.nat(40), (drawn, free, unproven) => {
        const tenants = drawn.map(({ inFlight, lanes }) => tenant(inFlight, ...lanes.map((l) => lane(l.room, l))));
        const all = tenants.flatMap(({ lanes }) => [...lanes.values()]);
        const total = 100;
        const dealt = shareSlots(tenants, { total, free, unproven }, VIEW);
        const given = dealt.reduce((sum, { quota }) => sum + quota, 0);
        expect(given).toBeLessThanOrEqual(free);
        expect(new Set(dealt.map((share) => share.lane.id)).size).toBe(dealt.length);
        for (const share of dealt) {
          expect(share.quota).toBeGreaterThan(0);
          expect(share.quota).toBeLessThanOrEqual(share.lane.room);
        }
        const risky = dealt.reduce((sum, share) => sum + (share.lane.proven ? 0 : share.quota), 0);
        expect(risky).toBeLessThanOrEqual(Math.max(0, 25 - unproven));
        // Somebody is always served while there is a slot and a wish.
        if (free > 0 && all.some(({ room, proven }) => room > 0 && proven)) expect(given).toBeGreaterThan(0);
      }),
      { numRuns: 1_000 },
    );
  });
});
