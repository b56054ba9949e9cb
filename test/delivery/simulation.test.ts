import { describe, expect, it } from "vitest";
import { seeded } from "../support/interleavings.ts";
import { type Answer, type Request, type Settings, type SimulatedLane, Simulation } from "../support/simulation.ts";

/** `SEED=123 npx vitest run test/delivery/simulation.test.ts` runs that schedule alone. */
const only = process.env.SEED;
const SCHEDULES = only === undefined ? Array.from({ length: 2_000 }, (_, i) => i) : [Number(only)];
const SETTINGS: Settings = { slots: 16, maxInFlight: 4, leaseMs: 10_000 };
const TROUBLE_MS = 40_000;
/** A lease, the life of a heartbeat, a heartbeat, and what statements take. */
const SETTLED_MS = SETTINGS.leaseMs + 6_000 + 2_000 + 5_000;
/** The longest pause of a breaker, a recovery, the longest hold, and twice what it takes to settle. */
const DRAINED_MS = 75_000 + 60_000 + 20_000 + 2 * SETTLED_MS;

const quick = (random: () => number): Answer => ({ ok: true, afterMs: 1 + random() * 40 });

type Kind = { readonly name: string; readonly answer: SimulatedLane["answer"] };

/** What receivers are like until the trouble ends; after that, all are well. */
const KINDS: readonly Kind[] = [
  { name: "well", answer: (_, random) => quick(random) },
  { name: "slow", answer: (_, random) => ({ ok: true, afterMs: 500 + random() * 2_000 }) },
  { name: "dead", answer: () => ({ ok: false, afterMs: 5 }) },
  { name: "hanging", answer: () => ({ ok: false, afterMs: 3_000 }) },
  { name: "flaky", answer: (_, random) => ({ ...quick(random), ok: random() > 0.3 }) },
  { name: "asks for silence", answer: (_, random) => ({ ok: random() > 0.3, afterMs: 10, holdMs: random() * 20_000 }) },
];

type Schedule = {
  readonly simulation: Simulation;
  readonly kinds: Map<number, string>;
  readonly troubleAtMs: number[];
};

/** Workers that come, go, die and stand still; receivers of every kind; events for few users. */
function play(seed: number): Schedule {
  const choose = seeded(seed * 7_919 + 1);
  const kinds = new Map<number, string>();
  const lanes = Array.from({ length: 6 }, (_, i): SimulatedLane => {
    const kind = KINDS[choose(KINDS.length)] as Kind;
    kinds.set(i + 1, kind.name);
    return {
      lane: i + 1,
      tenant: choose(3),
      ...(choose(4) === 0 ? { requestsPerSecond: 2 + choose(8) } : {}),
      ...(choose(4) === 0 ? { maxInFlight: 1 + choose(3) } : {}),
      answer: (nowMs, random) => (nowMs < TROUBLE_MS ? kind.answer(nowMs, random) : quick(random)),
    };
  });
  const simulation = new Simulation(seed, lanes, SETTINGS);
  const workers = Array.from({ length: 1 + choose(3) }, (_, i) => `worker ${i}`);
  for (const name of workers) simulation.startWorker(name);
  const troubleAtMs = [0];
  for (let i = 0; i < choose(4); i += 1) {
    const atMs = 5_000 + choose(TROUBLE_MS - 5_000);
    const victim = workers[choose(workers.length)] as string;
    const kind = choose(3);
    const forMs = 2_000 + choose(18_000);
    troubleAtMs.push(atMs, kind === 2 ? atMs + forMs : atMs);
    simulation.at(atMs, () => {
      if (kind === 0) simulation.startWorker(`worker ${10 + i}`);
      else if (kind === 2) simulation.pause(victim, forMs);
      else {
        simulation.kill(victim);
        simulation.startWorker(`worker ${20 + i}`);
      }
    });
  }
  for (let i = 0; i < 120; i += 1) {
    const [lane, user] = [1 + choose(6), choose(10)];
    simulation.at(choose(TROUBLE_MS), () => simulation.publish(lane, user));
  }
  simulation.run(TROUBLE_MS);
  simulation.run(TROUBLE_MS + DRAINED_MS, { stopWhenEmpty: true });
  return { simulation, kinds, troubleAtMs };
}

function check({ simulation, kinds, troubleAtMs }: Schedule): void {
  const { requests } = simulation;
  const isSettled = (atMs: number) => troubleAtMs.every((trouble) => atMs < trouble || atMs > trouble + SETTLED_MS);
  const limits = (lane: number) => simulation.sighting(lane);

  expect(requests.filter(({ overtakes }) => overtakes)).toEqual([]);
  const wrong = (what: string, broken: (request: Request) => boolean) =>
    expect(requests.filter(broken), what).toEqual([]);
  wrong("slots", ({ openInWorker }) => openInWorker > SETTINGS.slots);
  wrong("unproven", ({ unprovenInWorker }) => unprovenInWorker > SETTINGS.slots / 4);
  const most = (lane: number) => Math.min(limits(lane).maxInFlight ?? SETTINGS.maxInFlight, SETTINGS.maxInFlight);
  wrong("in flight", ({ lane, openOfWorker }) => openOfWorker > most(lane));
  wrong("in flight over all", ({ lane, openOfAll, atMs }) => isSettled(atMs) && openOfAll > most(lane));

  for (const [lane, kind] of kinds) {
    const starts = requests
      .filter((request) => request.lane === lane && isSettled(request.atMs))
      .map(({ atMs }) => atMs);
    const rate = limits(lane).requestsPerSecond;
    if (rate !== undefined) {
      // A second's worth, a tenth's burst, and a whole one.
      const inWindow = starts.map((from) => starts.filter((atMs) => atMs >= from && atMs < from + 1_000).length);
      expect(Math.max(0, ...inWindow), `rate of lane ${lane}`).toBeLessThanOrEqual(rate * 1.1 + 2);
    }
    if (kind === "dead" && troubleAtMs.length === 1) {
      // What opens the breaker, what was on its way then, and the probes of 40 s: after 1, 2, 4 s, then every 8.
      const tries = starts.filter((atMs) => atMs < TROUBLE_MS).length;
      expect(tries, `dead lane ${lane}`).toBeLessThanOrEqual(10 + SETTINGS.maxInFlight + 8);
    }
  }
  expect(simulation.pending, "everything is delivered once the trouble is over").toBe(0);
}

describe("simulated workers", () => {
  it("[B25] [B27] [B37] [B40] [B55] [B57] keep order and limits, and deliver everything, in every schedule", () => {
    for (const seed of SCHEDULES) {
      try {
        check(play(seed));
      } catch (cause) {
        throw new Error(`the schedule of seed ${seed} broke: SEED=${seed} runs it alone`, { cause });
      }
    }
  }, 120_000);
});

describe("two to eight simulated workers", () => {
  const well: SimulatedLane["answer"] = (_, random) => quick(random);
  const lanes = Array.from({ length: 64 }, (_, i) => ({ lane: i + 1, tenant: i, answer: well }));

  it.each([2, 4, 8])("[B55] %i own each lane once, also seconds after one has come or gone", (count) => {
    const simulation = new Simulation(count, lanes, SETTINGS);
    for (let i = 0; i < count; i += 1) simulation.startWorker(`worker ${i}`);
    for (const { lane } of lanes)
      for (let i = 0; i < 20; i += 1) simulation.at(i * 2_000, () => simulation.publish(lane, i));
    const owners = () => lanes.map(({ lane }) => simulation.ownersOf(lane));
    simulation.run(9_000);
    expect(owners().every((names) => names.length === 1)).toBe(true);
    expect(new Set(owners().flat()).size).toBe(count);

    simulation.startWorker("late");
    simulation.run(18_000);
    expect(owners().every((names) => names.length === 1)).toBe(true);
    expect(owners().flat()).toContain("late");

    simulation.kill("worker 0");
    simulation.run(32_000);
    expect(owners().every((names) => names.length === 1)).toBe(true);
    expect(owners().flat()).not.toContain("worker 0");
  });
});
