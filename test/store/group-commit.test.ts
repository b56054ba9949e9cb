import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { ResourceExhaustedError, UnavailableError } from "../../src/core/errors.ts";
import type { AppendResult, AppendRow } from "../../src/store/outbox/append.ts";
import { GroupCommit, type GroupCommitOptions } from "../../src/store/outbox/group-commit.ts";

/** A row whose result can be told from every other row's. */
function row(eventId: string, content = "", tenantId = "t"): AppendRow {
  return {
    tenantId,
    eventId,
    eventTypeCode: 1,
    userId: "u",
    contentHash: createHash("sha256").update(content).digest(),
    traceparent: undefined,
    bodyTail: `${tenantId}/${eventId}/${content}`,
  };
}

const appended = ({ bodyTail }: AppendRow): AppendResult => ({
  kind: "appended",
  deliveries: bodyTail.length,
  lanes: [createHash("sha256").update(bodyTail).digest().readUInt16BE()],
  dueAtMs: 1_000,
});

type Held = {
  readonly rows: readonly AppendRow[];
  readonly ids: readonly string[];
  commit(results?: AppendResult[]): void;
  fail(error: unknown): void;
};

/** An append that is on its way until the test ends it. */
function heldAppend() {
  const begun: Held[] = [];
  const waiting: ((held: Held) => void)[] = [];
  return {
    append(rows: readonly AppendRow[]): Promise<AppendResult[]> {
      const { promise, resolve, reject } = Promise.withResolvers<AppendResult[]>();
      const held = {
        rows,
        ids: rows.map(({ eventId }) => eventId),
        commit: (results = rows.map(appended)) => resolve(results),
        fail: reject,
      };
      const next = waiting.shift();
      if (next) next(held);
      else begun.push(held);
      return promise;
    },
    /** The next append that begins, or has begun and was not asked for. */
    next: () => new Promise<Held>((resolve) => (begun[0] ? resolve(begun.shift() as Held) : waiting.push(resolve))),
    begun,
  };
}

function start(changes: Partial<GroupCommitOptions> = {}) {
  const store = heldAppend();
  const committed: [number[], number][] = [];
  const groupCommit = new GroupCommit({
    nowMs: () => performance.now(),
    append: store.append,
    onCommitted: (lanes, sinceMs) => committed.push([[...lanes], sinceMs]),
    writers: 1,
    groupRows: 500,
    maxQueuedRows: 1_000,
    maxQueuedBytes: 1_000_000,
    timeoutMs: 60_000,
    ...changes,
  });
  const publish = async (...rows: AppendRow[]) => groupCommit.publish(rows);
  /** Settled, so that a call that fails before the test looks at it is no unhandled rejection. */
  const attempt = async (...rows: AppendRow[]) => (await Promise.allSettled([publish(...rows)]))[0];
  return { ...store, committed, publish, attempt };
}

/** Several turns of the event loop: whatever was scheduled has begun by then. */
async function turns(count = 5): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await setImmediate();
}

const TRANSIENT = Object.assign(new Error("terminating connection"), { code: "57P01" });
const REFUSED = Object.assign(new Error("invalid byte sequence"), { code: "22021" });

afterEach(() => void vi.useRealTimers());

describe("gathering", () => {
  it("lets the calls of one turn share an append", async () => {
    const { publish, next, committed } = start();
    const calls = [publish(row("a")), publish(row("b"), row("c"))];
    const group = await next();
    expect(group.ids).toEqual(["a", "b", "c"]);
    group.commit();
    expect(await Promise.all(calls)).toEqual([[appended(row("a"))], [row("b"), row("c")].map(appended)]);
    expect(committed).toEqual([[["a", "b", "c"].flatMap((id) => lanesOf(row(id))), 1_000]]);
  });

  it("gathers calls while one is on its way, and appends them together after it", async () => {
    const { publish, next, begun } = start();
    const first = publish(row("a"));
    const one = await next();
    const later = [publish(row("b")), publish(row("c"))];
    await turns();
    later.push(publish(row("d")));
    await turns();
    expect(begun).toEqual([]);
    one.commit();
    await first;
    const two = await next();
    expect(two.ids).toEqual(["b", "c", "d"]);
    two.commit();
    expect(await Promise.all(later)).toEqual(["b", "c", "d"].map((id) => [appended(row(id))]));
  });

  it("resolves no call before its append has", async () => {
    const { publish, next } = start();
    let done = false;
    const call = publish(row("a")).then(() => {
      done = true;
    });
    const group = await next();
    await turns();
    expect(done).toBe(false);
    group.commit();
    await call;
  });

  it("has as many appends on their way as there are writers, and no more", async () => {
    const { publish, next, begun } = start({ writers: 2 });
    const calls = [publish(row("a"))];
    const one = await next();
    calls.push(publish(row("b")));
    const two = await next();
    calls.push(publish(row("c")));
    await turns();
    expect(begun).toEqual([]);
    two.commit();
    (await next()).commit();
    one.commit();
    await Promise.all(calls);
  });

  it("takes no further call once the group has its rows, and never splits a call", async () => {
    const { publish, next } = start({ groupRows: 3 });
    const large = ["d", "e", "f", "g", "h"].map((id) => row(id));
    const calls = [publish(row("a"), row("b")), publish(row("c")), publish(...large), publish(row("i"))];
    const groups = [];
    for (let group = 0; group < 3; group += 1) {
      const held = await next();
      groups.push(held.ids);
      held.commit();
    }
    expect(groups).toEqual([["a", "b", "c"], ["d", "e", "f", "g", "h"], ["i"]]);
    expect((await Promise.all(calls)).map((results) => results.length)).toEqual([2, 1, 5, 1]);
  });
});

describe("calls with the same event", () => {
  it("puts them into groups of their own, in their order, and lets others pass", async () => {
    const { publish, next } = start();
    const calls = [
      publish(row("a", "1")),
      publish(row("a", "2"), row("b")),
      publish(row("b", "x")),
      publish(row("c")),
      publish(row("a", "3")),
    ];
    const groups = [];
    for (let group = 0; group < 3; group += 1) {
      const held = await next();
      groups.push(held.rows.map(({ bodyTail }) => bodyTail));
      held.commit();
    }
    expect(groups).toEqual([
      ["t/a/1", "t/c/"],
      ["t/a/2", "t/b/"],
      ["t/b/x", "t/a/3"],
    ]);
    expect((await Promise.all(calls)).map((results) => results.length)).toEqual([1, 2, 1, 1, 1]);
  });

  it("takes the same id of two tenants for two events", async () => {
    const { publish, next } = start();
    const calls = [publish(row("a", "", "one")), publish(row("a", "", "two"), row("a", "", "one_"))];
    const group = await next();
    expect(group.rows).toHaveLength(3);
    group.commit();
    await Promise.all(calls);
  });

  it("appends a repetition within a call once, and answers it as duplicate or conflict", async () => {
    const { publish, next } = start();
    const call = publish(row("a", "1"), row("b"), row("a", "1"), row("a", "2"), row("b"));
    const group = await next();
    expect(group.rows.map(({ bodyTail }) => bodyTail)).toEqual(["t/a/1", "t/b/"]);
    group.commit();
    expect(await call).toEqual([
      appended(row("a", "1")),
      appended(row("b")),
      { kind: "duplicate" },
      { kind: "conflict" },
      { kind: "duplicate" },
    ]);
  });

  it("answers a repetition of what was a conflict as a conflict", async () => {
    const { publish, next } = start();
    const call = publish(row("a"), row("a"));
    (await next()).commit([{ kind: "conflict" }]);
    expect(await call).toEqual([{ kind: "conflict" }, { kind: "conflict" }]);
  });
});

describe("the queue's bounds", () => {
  it.each([
    ["rows", { maxQueuedRows: 2 }],
    ["bytes", { maxQueuedBytes: 2 * row("x").bodyTail.length }],
  ])(
    "refuses a call over the bound of %s as SERVER_BUSY, with a time to wait, and takes calls again later",
    async (_, bound) => {
      const { publish, attempt, next } = start(bound);
      const first = publish(row("a"));
      const one = await next();
      const waiting = [publish(row("b")), publish(row("c"))];
      const refused = await attempt(row("d"));
      expect(refused).toMatchObject({
        status: "rejected",
        reason: { reason: "SERVER_BUSY", retryAfterMs: expect.any(Number) },
      });
      expect(refused.status === "rejected" && refused.reason).toBeInstanceOf(ResourceExhaustedError);
      one.commit();
      await first;
      const two = await next();
      expect(two.ids).toEqual(["b", "c"]);
      waiting.push(publish(row("e")), publish(row("f")));
      two.commit();
      (await next()).commit();
      expect(await Promise.all(waiting)).toHaveLength(4);
    },
  );
});

describe("failure", () => {
  it("fails every call of the group as STORE_UNAVAILABLE when Postgres is in trouble, without a second try", async () => {
    const { attempt, next, begun, committed } = start();
    const calls = [attempt(row("a")), attempt(row("b"))];
    (await next()).fail(TRANSIENT);
    for (const call of await Promise.all(calls)) {
      expect(call).toMatchObject({
        status: "rejected",
        reason: { reason: "STORE_UNAVAILABLE", cause: TRANSIENT, retryAfterMs: expect.any(Number) },
      });
      expect(call.status === "rejected" && call.reason).toBeInstanceOf(UnavailableError);
    }
    await turns();
    expect([begun, committed]).toEqual([[], []]);
  });

  it("goes on after trouble", async () => {
    const { publish, attempt, next } = start();
    const failing = attempt(row("a"));
    (await next()).fail(TRANSIENT);
    await failing;
    const again = publish(row("a"));
    (await next()).commit();
    expect(await again).toEqual([appended(row("a"))]);
  });

  it("fails only the call whose row Postgres refuses", async () => {
    const { attempt, next } = start();
    const ids = ["a", "b", "bad", "c", "d"];
    const calls = ids.map((id) => attempt(row(id), row(`${id}_2`)));
    const sizes = [];
    // 5 calls → 3 + 2; 3 → 2 + 1.
    for (let append = 0; append < 5; append += 1) {
      const held = await next();
      sizes.push(held.rows.length);
      if (held.ids.includes("bad")) held.fail(REFUSED);
      else held.commit();
    }
    expect(sizes).toEqual([10, 6, 4, 2, 4]);
    expect(await Promise.all(calls)).toEqual(
      ids.map((id) =>
        id === "bad"
          ? { status: "rejected", reason: REFUSED }
          : { status: "fulfilled", value: [row(id), row(`${id}_2`)].map(appended) },
      ),
    );
  });

  it("answers a call that waits too long as STORE_UNAVAILABLE, on its way or in the queue, and forgets nothing", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const { attempt, publish, next } = start({ timeoutMs: 1_000 });
    const onItsWay = attempt(row("a"));
    const one = await next();
    const queued = attempt(row("b"));
    vi.advanceTimersByTime(999);
    const late = publish(row("c"));
    vi.advanceTimersByTime(1);
    expect(await Promise.all([onItsWay, queued])).toMatchObject([
      { status: "rejected", reason: { reason: "STORE_UNAVAILABLE" } },
      { status: "rejected", reason: { reason: "STORE_UNAVAILABLE" } },
    ]);
    one.commit();
    const two = await next();
    expect(two.ids).toEqual(["b", "c"]);
    two.commit();
    expect(await late).toEqual([appended(row("c"))]);
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe("any interleaving", () => {
  const event = fc.record({ id: fc.constantFrom("a", "b", "c", "d"), content: fc.constantFrom("1", "2") });
  const call = fc.record({
    events: fc.array(event, { minLength: 1, maxLength: 4 }),
    refused: fc.integer({ min: 0, max: 5 }).map((n) => n === 0),
    turnsBefore: fc.nat({ max: 2 }),
  });
  const plan = fc.record({
    calls: fc.array(call, { minLength: 1, maxLength: 12 }),
    appendTurns: fc.array(fc.nat({ max: 3 }), { minLength: 1, maxLength: 5 }),
    groupRows: fc.integer({ min: 1, max: 8 }),
    writers: fc.integer({ min: 1, max: 3 }),
  });

  it("gives every call exactly its own results", async () => {
    await fc.assert(
      fc.asyncProperty(plan, async ({ calls, appendTurns, groupRows, writers }) => {
        // With one writer the order of calls is the order of commits; with several, calls that share events race.
        const rowsOf = calls.map(({ events, refused }, i) => {
          const tenant = writers === 1 ? "t" : `t${i}`;
          const rows = events.map(({ id, content }) => row(id, content, tenant));
          return refused ? [...rows, row(`refused_${i}`, "", tenant)] : rows;
        });
        const fake = fakeTable(appendTurns);
        const groupCommit = new GroupCommit({
          nowMs: () => performance.now(),
          append: fake.append,
          onCommitted: () => undefined,
          writers,
          groupRows,
          maxQueuedRows: 1_000,
          maxQueuedBytes: 1_000_000,
          timeoutMs: 60_000,
        });
        const answers = [];
        for (const [i, { turnsBefore }] of calls.entries()) {
          await turns(turnsBefore);
          answers.push(Promise.allSettled([groupCommit.publish(rowsOf[i] as AppendRow[])]));
        }
        expect((await Promise.all(answers)).flat()).toEqual(expectedOf(rowsOf));
        expect(fake.mostAtOnce()).toBeLessThanOrEqual(writers);
      }),
      { numRuns: 200 },
    );
  });
});

function lanesOf(one: AppendRow): readonly number[] {
  const result = appended(one);
  return result.kind === "appended" ? result.lanes : [];
}

const keyOf = ({ tenantId, eventId }: AppendRow) => `${tenantId}/${eventId}`;

function resultIn(table: ReadonlyMap<string, AppendRow>, one: AppendRow): AppendResult {
  const stored = table.get(keyOf(one));
  if (stored === undefined) return appended(one);
  return { kind: stored.contentHash.equals(one.contentHash) ? "duplicate" : "conflict" };
}

/** What the append function does, in memory: all or nothing, and no two rows with one id. */
function fakeTable(appendTurns: readonly number[]) {
  const table = new Map<string, AppendRow>();
  let appends = 0;
  let now = 0;
  let most = 0;
  return {
    mostAtOnce: () => most,
    async append(rows: readonly AppendRow[]): Promise<AppendResult[]> {
      now += 1;
      most = Math.max(most, now);
      appends += 1;
      await turns(appendTurns[appends % appendTurns.length]);
      now -= 1;
      if (rows.some(({ eventId }) => eventId.startsWith("refused"))) throw REFUSED;
      if (new Set(rows.map(keyOf)).size < rows.length) throw new Error("two rows of one append have the same id");
      const results = rows.map((one) => resultIn(table, one));
      for (const one of rows) if (!table.has(keyOf(one))) table.set(keyOf(one), one);
      return results;
    },
  };
}

/** The calls one after the other, each alone. */
function expectedOf(calls: readonly (readonly AppendRow[])[]): PromiseSettledResult<AppendResult[]>[] {
  const table = new Map<string, AppendRow>();
  return calls.map((rows) => {
    if (rows.some(({ eventId }) => eventId.startsWith("refused"))) return { status: "rejected", reason: REFUSED };
    const before = new Map(table);
    const value = rows.map((one): AppendResult => {
      const first = rows.find((other) => keyOf(other) === keyOf(one)) as AppendRow;
      if (first === one) return resultIn(before, one);
      if (!first.contentHash.equals(one.contentHash)) return { kind: "conflict" };
      const result = resultIn(before, first);
      return result.kind === "appended" ? { kind: "duplicate" } : result;
    });
    for (const one of rows) if (!table.has(keyOf(one))) table.set(keyOf(one), one);
    return { status: "fulfilled", value };
  });
}
