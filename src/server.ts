import { randomBytes } from "node:crypto";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { v7 as uuidV7 } from "uuid";
import { type Config, toAddressPolicy } from "./config.ts";
import { openSecretBox } from "./core/encryption.ts";
import { closeTracing, keepDoing, keepTrying, runProcess, type Stop } from "./lifecycle.ts";
import type { Logger } from "./logger.ts";
import { createRegistry, createServerMetrics } from "./operations/metrics.ts";
import { openOperationsPort } from "./operations/operations-port.ts";
import { openTracing } from "./operations/tracing.ts";
import type { PublishOutcome } from "./rpc/dependencies.ts";
import { openPort } from "./rpc/port.ts";
import { registerRoutes, routerOptions } from "./rpc/routes.ts";
import { TenantQuotas } from "./rpc/tenant-quotas.ts";
import { answerUnknownPath } from "./rpc/unknown-path.ts";
import { openDatabase } from "./store/database.ts";
import { ensurePartitions } from "./store/housekeeping.ts";
import { appendEvents } from "./store/outbox/append.ts";
import { GroupCommit } from "./store/outbox/group-commit.ts";
import { createWakeUp } from "./store/outbox/wake-up.ts";
import { countPending } from "./store/pending.ts";
import { findStoreWaits } from "./store/readiness.ts";
import { checkSecretKeys } from "./store/secret-keys.ts";

/** Transactions on their way at once: one flushes while the other gathers. More only fight for two cores. */
const WRITERS = 2;
const HOUSEKEEPING_MS = 3_600_000;
const READINESS_EVERY_MS = 1_000;
const COUNT_PENDING_MS = 10_000;

/** Builds the server from its settings and serves until it is told to stop. */
async function runServer(config: Config, logger: Logger, stop: Stop): Promise<void> {
  const nowMs = () => performance.now();
  const box = openSecretBox(config.secretKeys, randomBytes);
  const db = openDatabase({
    url: config.databaseUrl,
    role: "nuncio_server",
    connections: 6,
    hotConnections: WRITERS + 1,
    statementTimeoutMs: 5_000,
  });
  const wakeUp = createWakeUp(db.hot, (error) => logger.warn({ error }, "wake_up.failed"));
  const groupCommit = new GroupCommit({
    append: (rows) => appendEvents(db.hot, rows, { maxPendingMs: config.maxPendingMs }),
    onCommitted: (lanes, sinceMs) => wakeUp.announce(lanes, sinceMs),
    nowMs,
    writers: WRITERS,
    groupRows: 500,
    maxQueuedRows: 20_000,
    maxQueuedBytes: 64 * 1024 * 1024,
    timeoutMs: 10_000,
  });

  let waits: readonly string[] = ["the server has not finished starting"];
  const tracing = await openTracing("nuncio-server");
  const registry = createRegistry();
  const operations = await openOperationsPort(config.operationsListen, {
    registry,
    findWaits: async () => waits,
  });
  const metrics = createServerMetrics(registry, {
    quotaShares: () => quotas.highestShares(),
    queuedEvents: () => groupCommit.queuedRows,
  });
  const quotas = new TenantQuotas({
    eventsPerSecond: config.maxEventsPerSecond,
    maxPending: config.maxPendingPerTenant,
    nowMs,
    onRefused: (quota) => metrics.refused.inc({ quota }),
  });
  const deps = {
    orm: db.orm,
    groupCommit,
    wakeUp,
    box,
    bounds: {
      addressPolicy: toAddressPolicy(config),
      maxPendingMs: config.maxPendingMs,
      payloadRetentionMs: config.payloadRetentionMs,
    },
    userAttributeKeys: config.userAttributeKeys,
    maxEventBytes: config.maxEventBytes,
    maxSubscriptionsPerTenant: config.maxSubscriptionsPerTenant,
    quotas,
    onPublished: (outcome: PublishOutcome) => metrics.published.inc({ outcome }),
    now: Date.now,
    randomBytes,
    newUuidV7: () => uuidV7(),
  };
  const isReady = await keepTrying(stop, logger, async () => {
    const [wait] = await findStoreWaits(db.hot);
    if (wait !== undefined) throw new Error(wait);
    await checkSecretKeys(db.hot, box);
    await ensurePartitions(db.hot);
  });

  if (isReady) {
    const watchesEnd = new AbortController();
    const frame = routerOptions({
      operatorKey: config.bootstrapOperatorKey,
      maxRequestBytes: config.maxRequestBytes,
      logger,
      nowMs,
      onCall: ({ rpc, code, durationMs }) => metrics.calls.observe({ rpc, code }, durationMs / 1_000),
      startCall: tracing?.startCall,
      shutdownSignal: watchesEnd.signal,
    });
    const routes = registerRoutes(deps, { isServing: () => waits.length === 0, reflection: config.reflection });
    const handler = connectNodeAdapter({ ...frame, routes, fallback: answerUnknownPath });
    const port = await openPort(handler, config.listen);
    waits = [];
    const readiness = setInterval(async () => {
      waits = [...(await findStoreWaits(db.hot)), ...groupCommit.findStalls()];
    }, READINESS_EVERY_MS);
    const housekeeping = setInterval(() => {
      ensurePartitions(db.hot).catch((error) => logger.error({ error }, "housekeeping.failed"));
    }, HOUSEKEEPING_MS);
    const { maxPendingPerTenant } = config;
    if (maxPendingPerTenant > 0) {
      const count = async () => quotas.counted(await countPending(db.maintenance, Math.ceil(maxPendingPerTenant / 10)));
      const onFailure = (error: unknown) => logger.warn({ error }, "quotas.not_counted");
      void keepDoing(count, { everyMs: COUNT_PENDING_MS, onFailure }, watchesEnd.signal);
    }
    logger.info({ address: `${port.address.host}:${port.address.port}` }, "server.started");

    await stop.requested;
    logger.info("server.draining");
    clearInterval(readiness);
    clearInterval(housekeeping);
    waits = ["the server is stopping"];
    // Streams without an end of their own would hold the port open for the whole of the grace.
    watchesEnd.abort();
    await port.close(config.shutdownTimeoutMs);
  }
  await Promise.all([operations.close(), db.close(), closeTracing(tracing, logger)]);
  logger.info("server.stopped");
}

await runProcess("server", runServer);
