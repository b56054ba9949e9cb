import { v7 as uuidV7 } from "uuid";
import { createAnswerJudge } from "../../src/core/address-policy.ts";
import type { Uuid } from "../../src/core/ids.ts";
import { keepConnections } from "../../src/delivery/connections.ts";
import { listenForDue } from "../../src/delivery/listen.ts";
import {
  type DeliveryLoop,
  type LoopDependencies,
  type LoopEvent,
  startDeliveryLoop,
} from "../../src/delivery/loop.ts";
import { createResolver, shareAnswers } from "../../src/delivery/resolver.ts";
import { cacheTargets } from "../../src/delivery/targets.ts";
import { startTester } from "../../src/delivery/tester.ts";
import { createWakeUp } from "../../src/store/outbox/wake-up.ts";
import { cleanUp } from "./clean-up.ts";
import type { TestDatabase } from "./database.ts";
import { LOOPBACK_POLICY } from "./service.ts";

export type RunningLoop = DeliveryLoop & {
  readonly events: LoopEvent[];
  /** Resolves once the predicate holds, looked at after each event of the loop. */
  until(predicate: (events: readonly LoopEvent[]) => boolean): Promise<void>;
  stop(): Promise<void>;
};

/** The worker's loop in this process, with its listener unless it should be deaf, on the file's database. */
export function startLoop(
  db: TestDatabase,
  changes: Partial<LoopDependencies> = {},
  { listens = true } = {},
): RunningLoop {
  const nowMs = () => performance.now();
  const events: LoopEvent[] = [];
  const waiting = new Set<() => void>();
  const connections = keepConnections(nowMs, 2_000);
  const loop = startDeliveryLoop({
    sql: db.worker.hot,
    worker: uuidV7() as Uuid,
    targets: cacheTargets(db.worker.hot, db.box),
    resolve: shareAnswers(createResolver(1_000), nowMs),
    connections,
    judge: createAnswerJudge(LOOPBACK_POLICY),
    nowMs,
    random: Math.random,
    schedule: [20, 40, 80],
    requestTimeoutMs: 2_000,
    maxResponseBytes: 65_536,
    concurrency: 64,
    maxInFlight: 16,
    leaseMs: 25_000,
    pollIntervalMs: 200,
    orderHoldMs: 3_600_000,
    wakeUp: createWakeUp(db.worker.hot, () => undefined),
    onEvent: (event) => {
      events.push(event);
      for (const check of waiting) check();
    },
    ...changes,
  });
  const listener = listens
    ? listenForDue({ url: db.url, role: "nuncio_worker", onDue: (due) => loop.wake(due), onLost: () => undefined })
    : undefined;
  let stopped: Promise<void> | undefined;
  const stop = () => {
    stopped ??= (async () => {
      await loop.drain();
      await Promise.all([listener?.close(), connections.close()]);
    })();
    return stopped;
  };
  cleanUp(stop);
  return {
    wake: (due) => loop.wake(due),
    drain: () => loop.drain(),
    catchUp: () => loop.catchUp(),
    findStalls: () => loop.findStalls(),
    state: () => loop.state(),
    events,
    until(predicate) {
      return new Promise((resolve) => {
        const check = () => {
          if (!predicate(events)) return;
          waiting.delete(check);
          resolve();
        };
        waiting.add(check);
        check();
      });
    },
    stop,
  };
}

/** What a worker does for tests of subscriptions, in this process, beside no loop. */
export function startTests(db: TestDatabase): void {
  const nowMs = () => performance.now();
  const connections = keepConnections(nowMs, 2_000);
  const tester = startTester({
    sql: db.worker.hot,
    box: db.box,
    resolve: shareAnswers(createResolver(1_000), nowMs),
    connections,
    judge: createAnswerJudge(LOOPBACK_POLICY),
    nowMs,
    requestTimeoutMs: 2_000,
    maxResponseBytes: 65_536,
    pollIntervalMs: 50,
    onEvent: ({ error }) => {
      throw error;
    },
  });
  cleanUp(async () => {
    await tester.close();
    await connections.close();
  });
}

/** Attempts of the loop's events, as records. */
export function attemptsIn(events: readonly LoopEvent[]) {
  return events.flatMap((event) => (event.kind === "attempted" ? [event] : []));
}
