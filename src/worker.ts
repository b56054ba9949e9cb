import { randomBytes } from "node:crypto";
import type { Sql } from "postgres";
import { v7 as uuidV7 } from "uuid";
import { type Config, toAddressPolicy } from "./config.ts";
import { createAnswerJudge } from "./core/address-policy.ts";
import { openSecretBox } from "./core/encryption.ts";
import type { Uuid } from "./core/ids.ts";
import { keepConnections } from "./delivery/connections.ts";
import { keepErasing } from "./delivery/eraser.ts";
import { listenForDue } from "./delivery/listen.ts";
import { startDeliveryLoop } from "./delivery/loop.ts";
import { keepRedriving } from "./delivery/redriver.ts";
import { createResolver, shareAnswers } from "./delivery/resolver.ts";
import { cacheTargets } from "./delivery/targets.ts";
import { startTester } from "./delivery/tester.ts";
import { keepVacuumed } from "./delivery/vacuumer.ts";
import { closeTracing, elapse, keepDoing, keepTrying, runProcess, type Stop } from "./lifecycle.ts";
import type { Logger } from "./logger.ts";
import { createRegistry, createWorkerMetrics, type WorkerMetrics } from "./operations/metrics.ts";
import { openOperationsPort } from "./operations/operations-port.ts";
import { openTracing } from "./operations/tracing.ts";
import { openDatabase } from "./store/database.ts";
import { dropOutlived, ensurePartitions } from "./store/housekeeping.ts";
import { countOutbox } from "./store/outbox/totals.ts";
import { createWakeUp } from "./store/outbox/wake-up.ts";
import { countConnections, findOldestSnapshot } from "./store/postgres-state.ts";
import { findStoreWaits } from "./store/readiness.ts";
import { checkSecretKeys } from "./store/secret-keys.ts";
import { countEvent, logEvent, type WorkerEvent } from "./worker-events.ts";

const HOUSEKEEPING_MS = 3_600_000;
const COUNT_OUTBOX_MS = 15_000;
const LOOK_AT_POSTGRES_MS = 15_000;

/** Builds the worker from its settings and runs it until it is told to stop. Nothing is claimed before it is ready. */
async function runWorker(config: Config, logger: Logger, stop: Stop): Promise<void> {
  const nowMs = () => performance.now();
  const box = openSecretBox(config.secretKeys, randomBytes);
  const db = openDatabase({
    url: config.databaseUrl,
    role: "nuncio_worker",
    connections: 1,
    hotConnections: 4,
    statementTimeoutMs: 5_000,
  });

  const tracing = await openTracing("nuncio-worker");
  const registry = createRegistry();
  const metrics = createWorkerMetrics(registry, () => loop?.state());
  const tell = (event: WorkerEvent) => {
    countEvent(metrics, event);
    logEvent(logger, event);
  };
  let loop: ReturnType<typeof startDeliveryLoop> | undefined;
  const operations = await openOperationsPort(config.workerOperationsListen, {
    registry,
    findWaits: async () => {
      const waits = await findStoreWaits(db.hot);
      return [...waits, ...(loop?.findStalls() ?? ["the worker has not finished starting"])];
    },
  });
  const isReady = await keepTrying(stop, logger, async () => {
    const [wait] = await findStoreWaits(db.hot);
    if (wait !== undefined) throw new Error(wait);
    await checkSecretKeys(db.hot, box);
    await ensurePartitions(db.hot);
  });

  if (isReady) {
    const stopping = new AbortController();
    const connections = keepConnections(nowMs, config.requestTimeoutMs);
    const wakeUp = createWakeUp(db.hot, (error) => logger.warn({ error }, "wake_up.failed"));
    const sending = {
      sql: db.hot,
      resolve: shareAnswers(createResolver(config.requestTimeoutMs), nowMs),
      connections,
      judge: createAnswerJudge(toAddressPolicy(config)),
      nowMs,
      requestTimeoutMs: config.requestTimeoutMs,
      maxResponseBytes: config.maxResponseBytes,
      pollIntervalMs: config.pollIntervalMs,
      onEvent: tell,
    };
    loop = startDeliveryLoop({
      ...sending,
      worker: uuidV7() as Uuid,
      targets: cacheTargets(db.hot, box),
      random: Math.random,
      schedule: config.retrySchedule,
      concurrency: config.workerConcurrency,
      maxInFlight: config.maxInFlight,
      leaseMs: config.leaseMs,
      orderHoldMs: config.orderHoldMs,
      wakeUp,
      ...(tracing ? { startAttempt: tracing.startAttempt } : {}),
    });
    const tester = startTester({ ...sending, box });
    const { maxPendingMs, payloadRetentionMs } = config;
    void keepErasing({ ...sending, onDue: (lanes, sinceMs) => wakeUp.announce(lanes, sinceMs) }, stopping.signal);
    void keepRedriving(
      { ...sending, maxPendingMs, payloadRetentionMs, onDue: (lane, sinceMs) => wakeUp.announce([lane], sinceMs) },
      stopping.signal,
    );
    const running = loop;
    const listener = listenForDue({
      url: config.databaseUrl,
      role: "nuncio_worker",
      onDue: (due) => running.wake(due),
      onGap: () => running.catchUp(),
      onTest: () => tester.wake(),
      onLost: (error) => logger.warn({ error }, "listener.lost"),
    });
    void keepVacuumed({ sql: db.hot, maintenance: db.maintenance, nowMs, onEvent: tell }, stopping.signal);
    void keepDoing(
      () => showOutbox(db.maintenance, metrics),
      { everyMs: COUNT_OUTBOX_MS, onFailure: (error) => logger.warn({ error }, "outbox.not_counted") },
      stopping.signal,
    );
    void keepDoing(
      () => showPostgres(db.hot, metrics),
      { everyMs: LOOK_AT_POSTGRES_MS, onFailure: (error) => logger.warn({ error }, "postgres.not_looked_at") },
      stopping.signal,
    );
    const keepHouse = () => housekeep(db.hot, config, logger);
    const housekeeping = setInterval(keepHouse, HOUSEKEEPING_MS);
    void keepHouse();
    logger.info({ concurrency: config.workerConcurrency }, "worker.started");

    await stop.requested;
    logger.info("worker.draining");
    clearInterval(housekeeping);
    stopping.abort();
    await Promise.race([Promise.all([running.drain(), tester.close()]), elapse(config.shutdownTimeoutMs)]);
    await Promise.all([listener.close(), connections.close()]);
  }
  await Promise.all([operations.close(), db.close(), closeTracing(tracing, logger)]);
  logger.info("worker.stopped");
}

/** What stands in the outbox, for `/metrics`. */
async function showOutbox(sql: Sql, metrics: WorkerMetrics): Promise<void> {
  const { pending, waiting, delivering, due, oldestDueSeconds } = await countOutbox(sql);
  for (const [state, count] of Object.entries({ pending, waiting, delivering }))
    metrics.deliveries.set({ state }, count);
  metrics.due.set(due);
  metrics.oldestDue.set(oldestDueSeconds);
}

/** What Postgres says of itself, for `/metrics`. */
async function showPostgres(sql: Sql, metrics: WorkerMetrics): Promise<void> {
  const oldest = await findOldestSnapshot(sql);
  metrics.snapshotSeconds.set(oldest?.heldForSeconds ?? 0);
  metrics.snapshotTransactions.set(oldest?.transactions ?? 0);
  for (const { process, state, count } of await countConnections(sql))
    metrics.connections.set({ process, state }, count);
}

/** Partitions ahead, and what has outlived its retention behind. What fails is tried again an hour later. */
async function housekeep(sql: Sql, config: Config, logger: Logger): Promise<void> {
  try {
    await ensurePartitions(sql);
    const dropped = await dropOutlived(sql, {
      payloadMs: config.payloadRetentionMs,
      attemptMs: config.attemptRetentionMs,
      deadLetterMs: config.deadLetterRetentionMs,
    });
    if (dropped.length > 0) logger.info({ dropped }, "housekeeping.dropped");
  } catch (error) {
    logger.warn({ error }, "housekeeping.failed");
  }
}

await runProcess("worker", runWorker);
