import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { isWorthVacuum, nextVacuumPauseMs, VACUUM_LOOK_MS } from "../../src/core/vacuum-pace.ts";

describe("isWorthVacuum", () => {
  it.each([
    { live: 0, dead: 9_999, worth: false },
    { live: 0, dead: 10_000, worth: true },
    { live: 1_000_000, dead: 400_000, worth: false },
    { live: 1_000_000, dead: 500_000, worth: true },
  ])("$dead dead beside $live: $worth", ({ live, dead, worth }) => {
    expect(isWorthVacuum({ live, dead })).toBe(worth);
  });
});

describe("nextVacuumPauseMs", () => {
  it("waits ever longer, up to five minutes, while vacuums have to leave what is dead, and looks often again after", () => {
    let pauseMs = VACUUM_LOOK_MS;
    const pauses = Array.from({ length: 8 }, () => {
      pauseMs = nextVacuumPauseMs(pauseMs, { live: 0, dead: 50_000 }, { live: 0, dead: 49_000 });
      return pauseMs / 1_000;
    });
    expect(pauses).toEqual([10, 20, 40, 80, 160, 300, 300, 300]);
    expect(nextVacuumPauseMs(pauseMs, { live: 0, dead: 50_000 }, { live: 0, dead: 10 })).toBe(VACUUM_LOOK_MS);
  });

  it("never pauses shorter than a look or longer than five minutes", () => {
    const rows = fc.record({ live: fc.nat(), dead: fc.nat() });
    fc.assert(
      fc.property(fc.integer({ min: VACUUM_LOOK_MS, max: 300_000 }), rows, rows, (pauseMs, before, after) => {
        const next = nextVacuumPauseMs(pauseMs, before, after);
        return next >= VACUUM_LOOK_MS && next <= 300_000;
      }),
    );
  });
});
