import { type Client, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { Health } from "../../gen/grpc/health/v1/health_pb.ts";
import { DeliveryService } from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { EventService } from "../../gen/nuncio/v1/event_service_pb.ts";
import { OperationsService } from "../../gen/nuncio/v1/operations_service_pb.ts";
import { WebhookSubscriptionService } from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";

export type Nuncio = {
  readonly address: string;
  readonly events: Client<typeof EventService>;
  readonly subscriptions: Client<typeof WebhookSubscriptionService>;
  readonly deliveries: Client<typeof DeliveryService>;
  readonly operations: Client<typeof OperationsService>;
  readonly health: Client<typeof Health>;
  close(): void;
};

/** For each call: longer than any takes, the 20 s of a test included. */
const CALL_TIMEOUT_MS = 30_000;

/** Clients for a Nuncio at `host:port` or a URL, which share one connection. Nothing is sent until one is used. */
export function connectToNuncio(address: string, bearerKey: string): Nuncio {
  const baseUrl = address.includes("://") ? address : `http://${address}`;
  const sessionManager = new Http2SessionManager(baseUrl);
  const authorize: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${bearerKey}`);
    return next(request);
  };
  const transport = createConnectTransport({
    baseUrl,
    httpVersion: "2",
    sessionManager,
    interceptors: [authorize],
    defaultTimeoutMs: CALL_TIMEOUT_MS,
  });
  return {
    address: baseUrl,
    events: createClient(EventService, transport),
    subscriptions: createClient(WebhookSubscriptionService, transport),
    deliveries: createClient(DeliveryService, transport),
    operations: createClient(OperationsService, transport),
    health: createClient(Health, transport),
    close: () => sessionManager.abort(),
  };
}
