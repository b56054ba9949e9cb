import { randomBytes } from "node:crypto";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { v7 as uuidV7 } from "uuid";
import { readConfig, toAddressPolicy } from "../../src/config.ts";
import { openSecretBox } from "../../src/core/encryption.ts";
import { createLogger } from "../../src/logger.ts";
import type { RpcDependencies } from "../../src/rpc/dependencies.ts";
import { openPort } from "../../src/rpc/port.ts";
import { registerRoutes, routerOptions } from "../../src/rpc/routes.ts";
import { TenantQuotas } from "../../src/rpc/tenant-quotas.ts";
import { answerUnknownPath } from "../../src/rpc/unknown-path.ts";
import type { AppendResult, AppendRow } from "../../src/store/outbox/append.ts";

// `src/server.ts` with the one difference that is to be measured: an append that answers at once and stores nothing.
const config = readConfig(process.env, "server");
const groupCommit = {
  publish: async (rows: readonly AppendRow[]): Promise<AppendResult[]> =>
    rows.map(() => ({ kind: "appended", deliveries: 1, lanes: [], dueAtMs: 0 })),
} as Pick<RpcDependencies["groupCommit"], "publish"> as RpcDependencies["groupCommit"];
const deps: RpcDependencies = {
  // Publish does not touch it.
  orm: undefined as unknown as RpcDependencies["orm"],
  groupCommit,
  wakeUp: { announce: () => undefined },
  box: openSecretBox(config.secretKeys, randomBytes),
  quotas: new TenantQuotas({ eventsPerSecond: 0, maxPending: 0, nowMs: () => 0, onRefused: () => undefined }),
  onPublished: () => undefined,
  bounds: {
    addressPolicy: toAddressPolicy(config),
    maxPendingMs: config.maxPendingMs,
    payloadRetentionMs: config.payloadRetentionMs,
  },
  userAttributeKeys: config.userAttributeKeys,
  maxEventBytes: config.maxEventBytes,
  maxSubscriptionsPerTenant: config.maxSubscriptionsPerTenant,
  now: Date.now,
  randomBytes,
  newUuidV7: () => uuidV7(),
};
const frame = routerOptions({
  operatorKey: config.bootstrapOperatorKey,
  maxRequestBytes: config.maxRequestBytes,
  logger: createLogger("server", config.logLevel),
  nowMs: () => performance.now(),
});
const routes = registerRoutes(deps, { isServing: () => true, reflection: config.reflection });
await openPort(connectNodeAdapter({ ...frame, routes, fallback: answerUnknownPath }), config.listen);
process.send?.("listening");
