import type { DescMethod } from "@bufbuild/protobuf";
import type { DeliveryService } from "../../gen/nuncio/v1/delivery_service_pb.ts";
import type { EventService } from "../../gen/nuncio/v1/event_service_pb.ts";
import type { OperationsService } from "../../gen/nuncio/v1/operations_service_pb.ts";
import type { WebhookSubscriptionService } from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";

/** What a credential may do. */
export type Role =
  /** Publish events and read them. */
  | "publisher"
  /** Manage a tenant's subscriptions and see its deliveries. */
  | "tenant_admin";

/** Every role: what the bootstrap operator key has. */
export const ALL_ROLES: ReadonlySet<Role> = new Set(["publisher", "tenant_admin"]);

type Rules<Service extends { method: object }> = { readonly [Method in keyof Service["method"]]: readonly Role[] };

/**
 * Who may call what: any one of the roles is enough. One row per RPC; an RPC without a row does not compile, and nothing
 * that is missing here at run time is served.
 */
export const AUTHORIZATION: {
  readonly "nuncio.v1.EventService": Rules<typeof EventService>;
  readonly "nuncio.v1.WebhookSubscriptionService": Rules<typeof WebhookSubscriptionService>;
  readonly "nuncio.v1.DeliveryService": Rules<typeof DeliveryService>;
  readonly "nuncio.v1.OperationsService": Rules<typeof OperationsService>;
} = {
  "nuncio.v1.EventService": {
    publish: ["publisher"],
    batchPublish: ["publisher"],
    getEvent: ["publisher", "tenant_admin"],
    listEvents: ["publisher", "tenant_admin"],
    eraseUser: ["tenant_admin"],
    getErasure: ["tenant_admin"],
  },
  "nuncio.v1.WebhookSubscriptionService": {
    createWebhookSubscription: ["tenant_admin"],
    getWebhookSubscription: ["tenant_admin"],
    listWebhookSubscriptions: ["tenant_admin"],
    updateWebhookSubscription: ["tenant_admin"],
    rotateWebhookSubscriptionSecret: ["tenant_admin"],
    testWebhookSubscription: ["tenant_admin"],
    deleteWebhookSubscription: ["tenant_admin"],
    pauseWebhookSubscription: ["tenant_admin"],
    resumeWebhookSubscription: ["tenant_admin"],
  },
  "nuncio.v1.DeliveryService": {
    listDeliveries: ["tenant_admin"],
    getDelivery: ["tenant_admin"],
    redriveDelivery: ["tenant_admin"],
    cancelDelivery: ["tenant_admin"],
    createRedrive: ["tenant_admin"],
    getRedrive: ["tenant_admin"],
    cancelRedrive: ["tenant_admin"],
  },
  "nuncio.v1.OperationsService": {
    listOperationalEvents: ["tenant_admin"],
  },
};

/** Services that alone need no credential: they say nothing about anybody's data. */
const OPEN_SERVICES = new Set(["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]);

/** The roles of which one is needed; `"open"` without credential; undefined for what nobody may call. */
export function rolesFor(method: DescMethod): readonly Role[] | "open" | undefined {
  if (OPEN_SERVICES.has(method.parent.typeName)) return "open";
  const rules: Record<string, Record<string, readonly Role[]>> = AUTHORIZATION;
  return rules[method.parent.typeName]?.[method.localName];
}
