import { describe, expect, it } from "vitest";
import { Secret } from "../../src/core/secret.ts";
import { listenForDue } from "../../src/delivery/listen.ts";
import {
  createWakeUp,
  DUE_CHANNEL,
  type Due,
  formatDuePayload,
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
});

describe("a wake-up", () => {
  it("names its lanes, or none when they are too many for a payload, and the time since which they have something due", () => {
    expect(parseDuePayload(formatDuePayload(new Set([1, 2])))).toEqual({ lanes: [1, 2], sinceMs: undefined });
    const sinceMs = 1_764_173_721_345.678;
    expect(parseDuePayload(formatDuePayload(new Set([1, 2]), sinceMs))).toEqual({ lanes: [1, 2], sinceMs });
    const many = new Set(Array.from({ length: 501 }, (_, i) => 2_000_000_000 + i));
    expect(parseDuePayload(formatDuePayload(many, sinceMs))).toEqual({ lanes: undefined });
    expect(formatDuePayload(new Set([...many].slice(0, 500)), sinceMs).length).toBeLessThan(8_000);
    for (const rubbish of ["", "a,b", "1.5", ":1", "1:", "1,", "x:1", "1:2:3"])
      expect(parseDuePayload(rubbish)).toEqual({ lanes: undefined });
  });
});
