import { describe, expect, it } from "vitest";
import { Secret } from "../../src/core/secret.ts";
import { listenForDue } from "../../src/delivery/listen.ts";
import { createWakeUp, DUE_CHANNEL, formatDuePayload, parseDuePayload } from "../../src/store/outbox/wake-up.ts";
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
    const started = signal<readonly number[] | undefined>((lanes) => lanes?.includes(0) === true);
    const heard = signal<readonly number[] | undefined>((lanes) => lanes?.includes(7) === true);
    const listener = listenForDue({
      url: db.url,
      role: "nuncio_worker",
      onDue: (lanes) => {
        started.call(lanes);
        heard.call(lanes);
      },
      onLost: () => undefined,
      heartbeatMs: 20,
    });
    const wakeUp = createWakeUp(db.server.hot, () => undefined);
    const announcing = setInterval(() => wakeUp.announce([0]), 20);
    await started.promise;
    clearInterval(announcing);
    wakeUp.announce([7, 8]);
    expect(await heard.promise).toContain(8);
    await listener.close();
  });

  it("[B46] notices a connection that has gone silent, and replaces it", async () => {
    const proxy = await openTcpProxy(new URL(db.url.reveal()));
    const lost = signal<unknown>();
    const heard: (readonly number[] | undefined)[] = [];
    let check: () => void = () => undefined;
    const listener = listenForDue({
      url: new Secret(proxy.through(db.url.reveal())),
      role: "nuncio_worker",
      onDue: (lanes) => {
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
  it("names its lanes, or none when they are too many for a payload", () => {
    expect(parseDuePayload(formatDuePayload(new Set([1, 2])))).toEqual([1, 2]);
    const many = new Set(Array.from({ length: 501 }, (_, i) => 2_000_000_000 + i));
    expect(parseDuePayload(formatDuePayload(many))).toBeUndefined();
    expect(formatDuePayload(new Set([...many].slice(0, 500))).length).toBeLessThan(8_000);
    for (const rubbish of ["", "a,b", "1.5"]) expect(parseDuePayload(rubbish)).toBeUndefined();
  });
});
