import { randomBytes } from "node:crypto";
import { type Client, createClient, createRouterTransport, type Interceptor } from "@connectrpc/connect";
import { v7 as uuidV7 } from "uuid";
import { DeliveryService } from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { EventService } from "../../gen/nuncio/v1/event_service_pb.ts";
import { OperationsService } from "../../gen/nuncio/v1/operations_service_pb.ts";
import { WebhookSubscriptionService } from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import { parseAllowedCidrs } from "../../src/core/address-policy.ts";
import { Secret } from "../../src/core/secret.ts";
import { createLogger } from "../../src/logger.ts";
import type { RpcDependencies } from "../../src/rpc/dependencies.ts";
import { registerRoutes, routerOptions } from "../../src/rpc/routes.ts";
import { TenantQuotas } from "../../src/rpc/tenant-quotas.ts";
import type { Database } from "../../src/store/database.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { GroupCommit } from "../../src/store/outbox/group-commit.ts";
import { createWakeUp } from "../../src/store/outbox/wake-up.ts";
import type { TestDatabase } from "./database.ts";

export const OPERATOR_KEY = "test_operator_key_of_the_suite";
export const MAX_REQUEST_BYTES = 4_194_304;
export const LOOPBACK_POLICY = { allowHttp: true, allowedCidrs: parseAllowedCidrs("127.0.0.0/8,::1/128") };

export type Service = {
  readonly events: Client<typeof EventService>;
  readonly subscriptions: Client<typeof WebhookSubscriptionService>;
  readonly deliveries: Client<typeof DeliveryService>;
  readonly operations: Client<typeof OperationsService>;
};

export function createDependencies(
  db: Pick<TestDatabase, "box">,
  server: Database,
  changes: Partial<RpcDependencies> = {},
): RpcDependencies {
  const wakeUp = createWakeUp(server.hot, () => undefined);
  return {
    orm: server.orm,
    groupCommit: new GroupCommit({
      nowMs: () => performance.now(),
      append: (rows) => appendEvents(server.hot, rows, { maxPendingMs: 7 * 86_400_000 }),
      onCommitted: (lanes, sinceMs) => wakeUp.announce(lanes, sinceMs),
      writers: 2,
      groupRows: 500,
      maxQueuedRows: 20_000,
      maxQueuedBytes: 64 * 1024 * 1024,
      timeoutMs: 10_000,
    }),
    wakeUp,
    box: db.box,
    bounds: { addressPolicy: LOOPBACK_POLICY, maxPendingMs: 7 * 86_400_000, payloadRetentionMs: 30 * 86_400_000 },
    userAttributeKeys: new Set(["costCenter"]),
    maxEventBytes: 262_144,
    quotas: new TenantQuotas({ eventsPerSecond: 0, maxPending: 0, nowMs: () => 0, onRefused: () => undefined }),
    onPublished: () => undefined,
    maxSubscriptionsPerTenant: 100,
    now: Date.now,
    randomBytes,
    newUuidV7: () => uuidV7(),
    ...changes,
  };
}

export const frame = () =>
  routerOptions({
    operatorKey: new Secret(OPERATOR_KEY),
    maxRequestBytes: MAX_REQUEST_BYTES,
    logger: createLogger("server", "silent"),
    nowMs: () => performance.now(),
  });

/** The service in process, with the production gate and interceptors; `db` may not be open yet. */
export function inProcess(deps: () => RpcDependencies, key = OPERATOR_KEY): Service {
  const bearer: Interceptor = (next) => (request) => {
    if (key !== "") request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
  let transport: ReturnType<typeof createRouterTransport> | undefined;
  const open = () => {
    transport ??= createRouterTransport(registerRoutes(deps(), { isServing: () => true, reflection: true }), {
      router: frame(),
      transport: { interceptors: [bearer] },
    });
    return transport;
  };
  return {
    get events() {
      return createClient(EventService, open());
    },
    get subscriptions() {
      return createClient(WebhookSubscriptionService, open());
    },
    get deliveries() {
      return createClient(DeliveryService, open());
    },
    get operations() {
      return createClient(OperationsService, open());
    },
  };
}
