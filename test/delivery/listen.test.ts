import { describe, expect, it } from "vitest";
import { Secret } from "../../src/core/secret.ts";
import { listenForDue } from "../../src/delivery/listen.ts";
import {
  createWakeUp,
  DUE_CHANNEL,
  type Due,
  formatDuePayloads,
  parseDuePayload,
} from "../../src/store/outbox/wake-up.ts";
import { useDatabase } from "../support/database.ts";
import { openTcpProxy } from "../support/tcp-proxy.ts";

const db = useDatabase();

/** Resolves when the callback that it gives out is called with something that passes. */
function signal<T>(passes: (value: T) => boolean = () => true) {
  const { promise, resolve } = Promise.withResolvers<T>();
  return { promise, call: (value: T) => passes(value) && resolve(value) };
}

describe("the listener", () => {
  it("hears which lanes have something due", async () => {
    const started = signal<Due>(({ lanes }) => lanes?.includes(0) === true);
    const dated = signal<Due>(({ lanes }) => lanes?.includes(7) === true);
    const undated = signal<Due>(({ lanes }) => lanes?.includes(9) === true);
    const listener = listenForDue({
      url: db.url,
      role: "nuncio_worker",
      onDue: (due) => {
        started.call(due);
        dated.call(due);
        undated.call(due);
      },
      onLost: () => undefined,
      heartbeatMs: 20,
    });
    const wakeUp = createWakeUp(db.server.hot, () => undefined);
    const announcing = setInterval(() => wakeUp.announce([0]), 20);
    await started.promise;
    clearInterval(announcing);
    // Gathered while the last of those before is on its way; of two times the earlier one counts.
    wakeUp.announce([7], 1_764_173_721_345.678);
    wakeUp.announce([8], 1_764_173_721_345.677);
    wakeUp.announce([9, 10]);
    const before = await dated.promise;
    expect(before.sinceMs).toBeLessThanOrEqual(1_764_173_721_345.678);
    expect(before.sinceMs).toBeGreaterThanOrEqual(1_764_173_721_345.677);
    const { lanes, sinceMs } = await undated.promise;
    expect(lanes).toContain(10);
    expect(sinceMs).toBeUndefined();
    await listener.close();
  });

  it("[B46] notices a connection that has gone silent, and replaces it", async () => {
    const proxy = await openTcpProxy(new URL(db.url.reveal()));
    const lost = signal<unknown>();
    const heard: Due["lanes"][] = [];
    let check: () => void = () => undefined;
    const listener = listenForDue({
      url: new Secret(proxy.through(db.url.reveal())),
      role: "nuncio_worker",
      onDue: ({ lanes }) => {
        heard.push(lanes);
        check();
      },
      onLost: (reason) => lost.call(reason),
      heartbeatMs: 20,
      silenceMs: 500,
    });
    const until = (predicate: () => boolean) =>
      new Promise<void>((resolve) => {
        check = () => predicate() && resolve();
        check();
      });
    const announcing = setInterval(() => void db.admin.notify(DUE_CHANNEL, "5"), 50);
    await until(() => heard.some((lanes) => lanes?.includes(5)));
    proxy.silence("both");
    expect(String(await lost.promise)).toContain("heard nothing");
    proxy.silence("none");
    const before = heard.length;
    await until(() => heard.slice(before).some((lanes) => lanes?.includes(5)));
    // Whatever was announced in between is lost: the listener says "any lane" once it hears again.
    expect(heard).toContain(undefined);
    clearInterval(announcing);
    await listener.close();
  });

  it("says that it may have missed something once it listens again, also where the driver has replaced the connection", async () => {
    const started = signal<Due>(({ lanes }) => lanes?.includes(0) === true);
    const again = signal<Due>(({ lanes }) => lanes === undefined);
    const gap = signal<void>();
    const lost: unknown[] = [];
    const listener = listenForDue({
      url: db.url,
      role: "nuncio_worker",
      onDue: (due) => {
        started.call(due);
        again.call(due);
      },
      onGap: () => gap.call(),
      onLost: (reason) => lost.push(reason),
    });
    const announcing = setInterval(() => void db.admin.notify(DUE_CHANNEL, "0"), 20);
    await started.promise;
    clearInterval(announcing);
    // The heartbeat is set up and has come back: what listens rests until the next one.
    const isResting = async () => {
      const resting = await db.admin`
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'nuncio_worker_listener' AND state = 'idle'
          AND (query LIKE 'listen "nuncio_heartbeat%' OR query LIKE 'SELECT pg_notify%')`;
      return resting.length === 2;
    };
    while (!(await isResting()));
    await db.admin`
      SELECT pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE datname = current_database() AND application_name = 'nuncio_worker_listener' AND query LIKE 'listen%'`;
    await Promise.all([gap.promise, again.promise]);
    expect(lost).toEqual([]);
    await listener.close();
  });
});

describe("a wake-up", () => {
  it("names its lanes, in as many payloads as it takes or as any, and the time since which they have something due", () => {
    const parsed = (lanes: readonly number[], sinceMs?: number) =>
      formatDuePayloads(new Set(lanes), sinceMs).map(parseDuePayload);
    expect(parsed([])).toEqual([]);
    expect(parsed([1, 2])).toEqual([{ lanes: [1, 2], sinceMs: undefined }]);
    const sinceMs = 1_764_173_721_345.678;
    expect(parsed([1, 2], sinceMs)).toEqual([{ lanes: [1, 2], sinceMs }]);
    const many = Array.from({ length: 5_001 }, (_, i) => 2_000_000_000 + i);
    expect(parsed(many, sinceMs)).toEqual([{ lanes: undefined }]);
    const most = many.slice(0, 5_000);
    expect(parsed(most, sinceMs).flatMap(({ lanes }) => lanes)).toEqual(most);
    expect(parsed(most, sinceMs).every((due) => due.sinceMs === sinceMs)).toBe(true);
    for (const payload of formatDuePayloads(new Set(most), sinceMs)) expect(payload.length).toBeLessThan(8_000);
    for (const rubbish of ["", "*", "a,b", "1.5", ":1", "1:", "1,", "x:1", "1:2:3"])
      expect(parseDuePayload(rubbish)).toEqual({ lanes: undefined });
  });
});
