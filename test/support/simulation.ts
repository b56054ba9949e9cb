import type { Uuid } from "../../src/core/ids.ts";
import { parseSchedule } from "../../src/core/schedule.ts";
import type { LaneOutcome } from "../../src/delivery/lane.ts";
import { type LanePick, Lanes } from "../../src/delivery/lanes.ts";
import type { LaneReport } from "../../src/store/lane-states.ts";
import type { ClaimedDelivery } from "../../src/store/outbox/claim.ts";
import type { LaneSighting } from "../../src/store/outbox/lanes.ts";
import { seeded } from "./interleavings.ts";

// The worker's own knowledge of the lanes (`src/delivery/lanes.ts`, with all the rules of `core` behind it) in several
// simulated workers, before a model of what the database functions promise, under a clock that is only a number. What the
// functions do in truth is shown elsewhere, on a real Postgres.

export type Answer = { readonly ok: boolean; readonly afterMs: number; readonly holdMs?: number };
export type SimulatedLane = {
  readonly lane: number;
  readonly tenant: number;
  readonly maxInFlight?: number;
  readonly requestsPerSecond?: number;
  readonly answer: (nowMs: number, random: () => number) => Answer;
};

export type Settings = { readonly slots: number; readonly maxInFlight: number; readonly leaseMs: number };

type Row = {
  readonly lane: number;
  readonly user: number;
  readonly sequence: number;
  nextAtMs: number;
  leaseUntilMs: number;
  token: number;
  failures: number;
  attempt: number;
};

/** One request as its receiver saw it. */
export type Request = {
  readonly worker: string;
  readonly lane: number;
  readonly user: number;
  readonly sequence: number;
  readonly atMs: number;
  /** How many the lane had open then, this one included: from this worker, and from all. */
  readonly openOfWorker: number;
  readonly openOfAll: number;
  /** How many this worker had open then, in all and in lanes that had never succeeded. */
  readonly openInWorker: number;
  readonly unprovenInWorker: number;
  /** Whether an earlier delivery of the same user had not ended. */
  readonly overtakes: boolean;
};

const SCHEDULE = parseSchedule("1s,2s,4s,8s,8s,8s,8s,8s,8s,8s,8s,8s,8s,8s,8s,8s,8s,8s,8s,8s") as number[];
const LATEST_COMMIT_MS = 5_000;
const HEARTBEAT_MS = 2_000;
const HEARTBEAT_LIFE_MS = 6_000;

export class Simulation {
  readonly random: () => number;
  readonly requests: Request[] = [];
  nowMs = 0;
  readonly #settings: Settings;
  readonly #lanes: ReadonlyMap<number, SimulatedLane>;
  readonly #rows = new Map<string, Row>();
  readonly #states = new Map<number, LaneReport & { readonly writtenAtMs: number }>();
  readonly #heartbeats = new Map<string, number>();
  readonly #workers = new Map<string, SimulatedWorker>();
  readonly #open: { worker: string; lane: number; endsAtMs: number }[] = [];
  readonly #proven = new Set<number>();
  readonly #agenda: { atMs: number; order: number; act: () => void }[] = [];
  #uncommitted = 0;
  #sequence = 0;
  #tokens = 0;

  constructor(seed: number, lanes: readonly SimulatedLane[], settings: Settings) {
    const choose = seeded(seed);
    this.random = () => choose(1_000_000) / 1_000_000;
    this.#lanes = new Map(lanes.map((lane) => [lane.lane, lane]));
    this.#settings = settings;
  }

  at(atMs: number, act: () => void): void {
    // Of what happens at one moment, chance decides what comes first.
    this.#agenda.push({ atMs, order: this.random(), act });
    siftUp(this.#agenda);
  }

  /** Runs what is on the agenda until that time, or until nothing is left to be delivered. */
  run(untilMs: number, { stopWhenEmpty = false } = {}): void {
    while (this.#agenda[0] && this.#agenda[0].atMs <= untilMs) {
      if (stopWhenEmpty && this.pending === 0) return;
      const { atMs, act } = pop(this.#agenda);
      this.nowMs = atMs;
      act();
    }
    this.nowMs = untilMs;
  }

  get pending(): number {
    return this.#rows.size + this.#uncommitted;
  }

  /** Due now, and there for everybody once its transaction has committed, which nothing bounds but a time limit. */
  publish(lane: number, user: number): void {
    const dueAtMs = this.nowMs;
    const lateMs = this.random() < 0.05 ? this.random() * LATEST_COMMIT_MS : this.random() * 20;
    this.#uncommitted += 1;
    this.at(this.nowMs + lateMs, () => this.#commit(lane, user, dueAtMs));
  }

  #commit(lane: number, user: number, dueAtMs: number): void {
    this.#uncommitted -= 1;
    this.#sequence += 1;
    const isBehind = this.#rowsOf(lane).some((row) => row.user === user);
    this.#rows.set(`${lane} ${this.#sequence}`, {
      lane,
      user,
      sequence: this.#sequence,
      nextAtMs: isBehind ? Number.POSITIVE_INFINITY : dueAtMs,
      leaseUntilMs: 0,
      token: 0,
      failures: 0,
      attempt: 0,
    });
    for (const worker of this.#workers.values()) worker.wake(lane, dueAtMs);
  }

  startWorker(name: string): void {
    this.#workers.set(name, new SimulatedWorker(name, this, this.#settings));
  }

  /** Ends at once, and with it all that it had on its way. */
  kill(name: string): void {
    this.#workers.get(name)?.kill();
    this.#workers.delete(name);
  }

  /** Stands still. */
  pause(name: string, ms: number): void {
    this.#workers.get(name)?.pause(ms);
  }

  ownersOf(lane: number): string[] {
    return [...this.#workers.values()].filter((worker) => worker.owns(lane)).map(({ name }) => name);
  }

  // What the database does, each in one moment.

  beat(name: string): string[] {
    this.#heartbeats.set(name, this.nowMs);
    return [...this.#heartbeats].filter(([, atMs]) => this.nowMs - atMs < HEARTBEAT_LIFE_MS).map(([worker]) => worker);
  }

  claim(picks: readonly LanePick[]): ClaimedDelivery[] {
    this.#tokens += 1;
    return picks.flatMap(({ lane, quota, sinceMs }) =>
      this.#unleasedOf(lane)
        .filter((row) => row.nextAtMs >= sinceMs && row.nextAtMs <= this.nowMs)
        .sort((a, b) => a.nextAtMs - b.nextAtMs)
        .slice(0, quota)
        .map((row) => {
          row.leaseUntilMs = this.nowMs + this.#settings.leaseMs;
          row.token = this.#tokens;
          row.attempt += 1;
          return toClaimed(row, this.nowMs);
        }),
    );
  }

  record({ subscriptionKey, eventKey, leaseToken, failures }: ClaimedDelivery, ok: boolean): void {
    const row = this.#rows.get(`${subscriptionKey} ${eventKey}`);
    if (!row || BigInt(row.token) !== leaseToken) return;
    const delay = ok ? undefined : SCHEDULE[failures];
    if (delay === undefined) this.#end(row);
    else Object.assign(row, { nextAtMs: this.nowMs + delay, failures: failures + 1, token: 0, leaseUntilMs: 0 });
  }

  release({ subscriptionKey, eventKey, leaseToken }: ClaimedDelivery): void {
    const row = this.#rows.get(`${subscriptionKey} ${eventKey}`);
    if (row && BigInt(row.token) === leaseToken)
      Object.assign(row, { nextAtMs: this.nowMs, token: 0, leaseUntilMs: 0 });
  }

  #end(row: Row): void {
    this.#rows.delete(`${row.lane} ${row.sequence}`);
    const [next] = this.#rowsOf(row.lane)
      .filter(({ user }) => user === row.user)
      .sort((a, b) => a.sequence - b.sequence);
    if (next?.nextAtMs === Number.POSITIVE_INFINITY) next.nextAtMs = this.nowMs;
  }

  sightings(): LaneSighting[] {
    const lanes = new Set([...this.#rows.values()].map(({ lane }) => lane));
    return [...lanes].map((lane) => this.sighting(lane));
  }

  sighting(lane: number): LaneSighting {
    const { tenant, maxInFlight, requestsPerSecond } = this.#lanes.get(lane) as SimulatedLane;
    const state = this.#states.get(lane);
    const since = this.nowMs - (state?.writtenAtMs ?? 0);
    const later = (ms: number | undefined) => (ms === undefined ? undefined : ms + since);
    const sooner = (ms: number | undefined) => (ms === undefined ? undefined : ms - since);
    const held = sooner(state?.heldForMs);
    const databaseDueAtMs = Math.min(...this.#unleasedOf(lane).map(({ nextAtMs }) => nextAtMs));
    return {
      lane,
      tenant,
      revision: 1,
      deleted: false,
      enabled: true,
      dueInMs: databaseDueAtMs - this.nowMs,
      databaseDueAtMs,
      databaseNowMs: this.nowMs,
      maxInFlight,
      requestsPerSecond,
      heldForMs: held !== undefined && held > 0 ? held : undefined,
      breakerForMs: sooner(state?.breakerForMs),
      breakerTrips: state?.breakerTrips ?? 0,
      consecutiveFailures: state?.consecutiveFailures ?? 0,
      failingForMs: later(state?.failingForMs),
      succeededAgoMs: later(state?.succeededAgoMs),
      recoveringForMs: later(state?.recoveringForMs),
    };
  }

  report(reports: readonly LaneReport[]): void {
    for (const report of reports) this.#states.set(report.lane, { ...report, writtenAtMs: this.nowMs });
  }

  leases(lane: number): { count: number; lastForMs: number } {
    const leased = this.#rowsOf(lane).filter(({ leaseUntilMs }) => leaseUntilMs > this.nowMs);
    return {
      count: leased.length,
      lastForMs: Math.max(0, ...leased.map(({ leaseUntilMs }) => leaseUntilMs - this.nowMs)),
    };
  }

  due(lane: number): number {
    return this.#unleasedOf(lane).filter(({ nextAtMs }) => nextAtMs <= this.nowMs).length;
  }

  #unleasedOf(lane: number): Row[] {
    return this.#rowsOf(lane).filter(({ leaseUntilMs }) => leaseUntilMs <= this.nowMs);
  }

  #rowsOf(lane: number): Row[] {
    return [...this.#rows.values()].filter((row) => row.lane === lane);
  }

  // What the receivers do.

  request(
    worker: string,
    { subscriptionKey: lane, eventKey }: ClaimedDelivery,
    onAnswer: (answer: Answer) => void,
  ): void {
    const row = this.#rows.get(`${lane} ${eventKey}`);
    const answer = (this.#lanes.get(lane) as SimulatedLane).answer(this.nowMs, this.random);
    const open = this.#open.filter(({ endsAtMs }) => endsAtMs > this.nowMs);
    open.push({ worker, lane, endsAtMs: this.nowMs + answer.afterMs });
    this.#open.splice(0, this.#open.length, ...open);
    const mine = open.filter((entry) => entry.worker === worker);
    const ofLane = open.filter((entry) => entry.lane === lane);
    this.requests.push({
      worker,
      lane,
      user: row?.user ?? -1,
      sequence: Number(eventKey),
      atMs: this.nowMs,
      openOfWorker: ofLane.filter((entry) => entry.worker === worker).length,
      openOfAll: ofLane.length,
      openInWorker: mine.length,
      unprovenInWorker: mine.filter((entry) => !this.#proven.has(entry.lane)).length,
      overtakes: row !== undefined && this.#rowsOf(lane).some((o) => o.user === row.user && o.sequence < row.sequence),
    });
    this.at(this.nowMs + answer.afterMs, () => {
      if (answer.ok) this.#proven.add(lane);
      onAnswer(answer);
    });
  }
}

/** The worker's loop as far as it matters here: claims for free slots, sends, records, looks, beats, reports. */
class SimulatedWorker {
  readonly name: string;
  readonly #world: Simulation;
  readonly #lanes: Lanes;
  readonly #settings: Settings;
  #inFlight = 0;
  #isDead = false;
  #standsUntilMs = 0;
  #claimAtMs = Number.POSITIVE_INFINITY;
  #isClaiming = false;

  constructor(name: string, world: Simulation, settings: Settings) {
    this.name = name;
    this.#world = world;
    this.#settings = settings;
    this.#lanes = new Lanes({ worker: name, ...settings });
    this.#beat();
    this.#look();
  }

  owns(lane: number): boolean {
    return this.#lanes.owns(lane);
  }

  kill(): void {
    this.#isDead = true;
  }

  pause(ms: number): void {
    this.#standsUntilMs = this.#world.nowMs + ms;
  }

  /** In so many milliseconds, or when it stands no longer; never once it is dead. */
  #later(ms: number, act: () => void): void {
    const run = () => {
      if (this.#isDead) return;
      if (this.#world.nowMs < this.#standsUntilMs) this.#world.at(this.#standsUntilMs, run);
      else act();
    };
    this.#world.at(this.#world.nowMs + ms, run);
  }

  /** What a statement takes. */
  #latency(): number {
    const spike = this.#world.random() < 0.02 ? 2_000 : 0;
    return 1 + this.#world.random() * 10 + spike;
  }

  #beat(): void {
    this.#later(this.#latency(), () => {
      const workers = this.#world.beat(this.name);
      this.#later(this.#latency(), () => {
        if (this.#lanes.setWorkers(workers, this.#world.nowMs)) this.#look();
        this.#later(HEARTBEAT_MS, () => this.#beat());
      });
    });
  }

  #look(): void {
    this.#later(this.#latency(), () => {
      for (const sighting of this.#world.sightings()) this.#lanes.sight(sighting, this.#world.nowMs);
      this.#report();
      this.#claimSoon(0);
      this.#later(800 + this.#world.random() * 400, () => this.#look());
    });
  }

  #report(): void {
    const reports = this.#lanes.takeReports(this.#world.nowMs);
    if (reports.length > 0) this.#later(this.#latency(), () => this.#world.report(reports));
  }

  wake(lane: number, sinceMs: number): void {
    this.#later(this.#latency(), () => {
      this.#lanes.appeared(lane, { dueAtMs: this.#world.nowMs, sinceMs });
      this.#claimSoon(0);
    });
  }

  #claimSoon(ms: number): void {
    const atMs = this.#world.nowMs + ms;
    if (this.#isClaiming || this.#claimAtMs <= atMs) return;
    this.#claimAtMs = atMs;
    this.#later(ms, () => {
      if (this.#claimAtMs !== atMs || this.#isClaiming) return;
      this.#claimAtMs = Number.POSITIVE_INFINITY;
      this.#claim();
    });
  }

  #claim(): void {
    const world = this.#world;
    const strangers = [...this.#lanes.takeStrangers(), ...this.#lanes.takeReturned(world.nowMs)];
    for (const lane of strangers) this.#lanes.sight(world.sighting(lane), world.nowMs);
    const uncounted = this.#lanes.uncounted();
    for (const lane of uncounted) this.#lanes.sight(world.sighting(lane), world.nowMs);
    const leases = uncounted.map((lane) => ({ lane, ...world.leases(lane) }));
    this.#lanes.counted(uncounted, leases, world.nowMs);
    for (const lane of this.#lanes.unpaced()) this.#lanes.pace(lane, world.due(lane), world.nowMs);

    const picks = this.#lanes.pick(world.nowMs, this.#settings.slots - this.#inFlight);
    if (picks.length === 0) {
      const nextAtMs = this.#lanes.nextDueAtMs(world.nowMs);
      if (nextAtMs < world.nowMs + 5_000) this.#claimSoon(Math.max(4, Math.ceil(nextAtMs - world.nowMs)));
      return;
    }
    this.#isClaiming = true;
    const sentAtMs = world.nowMs;
    this.#later(this.#latency(), () => {
      const claimed = world.claim(picks);
      this.#later(this.#latency(), () => {
        this.#isClaiming = false;
        this.#lanes.claimed(picks, claimed, world.nowMs);
        this.#inFlight += claimed.length;
        for (const delivery of claimed) this.#send(delivery, sentAtMs);
        this.#claimSoon(4);
      });
    });
  }

  #send(delivery: ClaimedDelivery, claimSentAtMs: number): void {
    const end = (outcome: LaneOutcome) => {
      this.#inFlight -= 1;
      const moment = { nowMs: this.#world.nowMs, random: this.#world.random(), schedule: SCHEDULE };
      if (this.#lanes.finished(delivery.subscriptionKey, outcome, moment)) this.#report();
      this.#claimSoon(0);
    };
    if (this.#world.nowMs - claimSentAtMs > 1_000) {
      end({ kind: "unsent" });
      this.#later(this.#latency(), () => {
        this.#world.release(delivery);
        this.#lanes.wake(delivery.subscriptionKey, this.#world.nowMs + 250);
      });
      return;
    }
    this.#world.request(this.name, delivery, ({ ok, holdMs }) => {
      this.#later(0, () => {
        const { eventKey } = delivery;
        end(ok ? { kind: "succeeded" } : { kind: "failed", eventKey, detail: "HTTP 500", holdMs, isGone: false });
        this.#later(this.#latency(), () => {
          this.#world.record(delivery, ok);
          const recordedAtMs = this.#world.nowMs;
          this.#later(this.#latency(), () => {
            const delayMs = ok ? 0 : (SCHEDULE[delivery.failures] ?? 0);
            const dueAtMs = this.#world.nowMs + delayMs;
            this.#lanes.appeared(delivery.subscriptionKey, { dueAtMs, sinceMs: recordedAtMs + delayMs });
            this.#claimSoon(0);
          });
        });
      });
    });
  }
}

function toClaimed(row: Row, nowMs: number): ClaimedDelivery {
  return {
    subscriptionKey: row.lane,
    revision: 1,
    eventKey: String(row.sequence) as Uuid,
    leaseToken: BigInt(row.token),
    userKey: null,
    redrive: false,
    wasLost: false,
    attempt: row.attempt,
    failures: row.failures,
    wasDueAtMs: row.nextAtMs,
    claimedAtMs: nowMs,
    expiresAtMs: Number.POSITIVE_INFINITY,
    event: null,
  };
}

type Entry = { readonly atMs: number; readonly order: number; readonly act: () => void };

const isBefore = (a: Entry, b: Entry) => a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);

/** A binary heap: the last entry finds its place. */
function siftUp(heap: Entry[]): void {
  for (let i = heap.length - 1; i > 0; ) {
    const parent = (i - 1) >> 1;
    const [a, b] = [heap[i] as Entry, heap[parent] as Entry];
    if (!isBefore(a, b)) return;
    [heap[i], heap[parent]] = [b, a];
    i = parent;
  }
}

function pop(heap: Entry[]): Entry {
  const first = heap[0] as Entry;
  const last = heap.pop() as Entry;
  if (heap.length === 0) return first;
  heap[0] = last;
  for (let i = 0; ; ) {
    const [left, right] = [2 * i + 1, 2 * i + 2];
    let least = i;
    if (heap[left] && isBefore(heap[left], heap[least] as Entry)) least = left;
    if (heap[right] && isBefore(heap[right], heap[least] as Entry)) least = right;
    if (least === i) return first;
    [heap[i], heap[least]] = [heap[least] as Entry, heap[i] as Entry];
    i = least;
  }
}
