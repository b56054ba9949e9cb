import type { ConnectRouter, ConnectRouterOptions } from "@connectrpc/connect";
import { file_grpc_health_v1_health, Health } from "../../gen/grpc/health/v1/health_pb.ts";
import { file_grpc_reflection_v1_reflection, ServerReflection } from "../../gen/grpc/reflection/v1/reflection_pb.ts";
import { DeliveryService, file_nuncio_v1_delivery_service } from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { file_nuncio_v1_error_reason } from "../../gen/nuncio/v1/error_reason_pb.ts";
import type { Event } from "../../gen/nuncio/v1/event_pb.ts";
import {
  type BatchPublishRequest,
  EventService,
  file_nuncio_v1_event_service,
  type PublishRequest,
} from "../../gen/nuncio/v1/event_service_pb.ts";
import { file_nuncio_v1_operations_service, OperationsService } from "../../gen/nuncio/v1/operations_service_pb.ts";
import {
  type CreateWebhookSubscriptionRequest,
  file_nuncio_v1_webhook_subscription_service,
  type UpdateWebhookSubscriptionRequest,
  WebhookSubscriptionService,
} from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import type { Fault } from "../core/errors.ts";
import type { Secret } from "../core/secret.ts";
import type { Logger } from "../logger.ts";
import { batchPublish } from "./batch-publish.ts";
import { cancelDelivery } from "./cancel-delivery.ts";
import { cancelRedrive } from "./cancel-redrive.ts";
import { completeErrors } from "./complete-errors.ts";
import { createRedrive } from "./create-redrive.ts";
import { createWebhookSubscription, findCreateFaults } from "./create-webhook-subscription.ts";
import { deleteWebhookSubscription } from "./delete-webhook-subscription.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { eraseUser } from "./erase-user.ts";
import { getDelivery } from "./get-delivery.ts";
import { getErasure } from "./get-erasure.ts";
import { getEvent } from "./get-event.ts";
import { getRedrive } from "./get-redrive.ts";
import { getWebhookSubscription } from "./get-webhook-subscription.ts";
import { healthService } from "./health.ts";
import { createGate } from "./interceptors/authenticate.ts";
import { type CallEnd, logCalls } from "./interceptors/log-calls.ts";
import { type StartCall, traceCalls } from "./interceptors/trace-calls.ts";
import { translateErrors } from "./interceptors/translate-errors.ts";
import type { Judges } from "./judges.ts";
import { listDeliveries } from "./list-deliveries.ts";
import { listEvents } from "./list-events.ts";
import { listOperationalEvents } from "./list-operational-events.ts";
import { listWebhookSubscriptions } from "./list-webhook-subscriptions.ts";
import { pauseWebhookSubscription } from "./pause-webhook-subscription.ts";
import { publish, readEvent } from "./publish.ts";
import { redriveDelivery } from "./redrive-delivery.ts";
import { reflectionService } from "./reflection.ts";
import { resumeWebhookSubscription } from "./resume-webhook-subscription.ts";
import { rotateWebhookSubscriptionSecret } from "./rotate-webhook-subscription-secret.ts";
import { testWebhookSubscription } from "./test-webhook-subscription.ts";
import { ERROR_DETAILS } from "./unreadable-events.ts";
import { findUpdateFaults, updateWebhookSubscription } from "./update-webhook-subscription.ts";

/** Every RPC, registered once for every protocol. */
export function registerRoutes(
  deps: RpcDependencies,
  { isServing, reflection }: { isServing: () => boolean; reflection: boolean },
): (router: ConnectRouter) => void {
  return (router) => {
    router.service(EventService, {
      publish: publish(deps),
      batchPublish: batchPublish(deps),
      getEvent: getEvent(deps),
      listEvents: listEvents(deps),
      eraseUser: eraseUser(deps),
      getErasure: getErasure(deps),
    });
    router.service(WebhookSubscriptionService, {
      createWebhookSubscription: createWebhookSubscription(deps),
      getWebhookSubscription: getWebhookSubscription(deps),
      listWebhookSubscriptions: listWebhookSubscriptions(deps),
      updateWebhookSubscription: updateWebhookSubscription(deps),
      rotateWebhookSubscriptionSecret: rotateWebhookSubscriptionSecret(deps),
      testWebhookSubscription: testWebhookSubscription(deps),
      deleteWebhookSubscription: deleteWebhookSubscription(deps),
      pauseWebhookSubscription: pauseWebhookSubscription(deps),
      resumeWebhookSubscription: resumeWebhookSubscription(deps),
    });
    router.service(DeliveryService, {
      listDeliveries: listDeliveries(deps),
      getDelivery: getDelivery(deps),
      redriveDelivery: redriveDelivery(deps),
      cancelDelivery: cancelDelivery(deps),
      createRedrive: createRedrive(deps),
      getRedrive: getRedrive(deps),
      cancelRedrive: cancelRedrive(deps),
    });
    router.service(OperationsService, { listOperationalEvents: listOperationalEvents(deps) });
    router.service(Health, healthService(isServing, SERVICES));
    if (reflection) router.service(ServerReflection, reflectionService(FILES));
    completeErrors(router, judges(deps));
  };
}

/** Requests of which all faults come back at once, also when already their form is faulty. */
function judges(deps: RpcDependencies): Judges {
  const inEvent = (event: Event | undefined, path: string) => {
    const faults: Fault[] = [];
    readEvent(deps, event, path, faults);
    return faults;
  };
  return new Map([
    [
      "/nuncio.v1.EventService/Publish",
      { reason: "INVALID_EVENT", judge: (message) => inEvent((message as PublishRequest).event, "event") },
    ],
    [
      "/nuncio.v1.EventService/BatchPublish",
      {
        reason: "INVALID_REQUEST",
        judge: (message) =>
          (message as BatchPublishRequest).events.flatMap((event, i) => inEvent(event, `events[${i}]`)),
      },
    ],
    [
      "/nuncio.v1.WebhookSubscriptionService/CreateWebhookSubscription",
      {
        reason: "INVALID_REQUEST",
        judge: (message) => findCreateFaults(deps, message as CreateWebhookSubscriptionRequest),
      },
    ],
    [
      "/nuncio.v1.WebhookSubscriptionService/UpdateWebhookSubscription",
      {
        reason: "INVALID_REQUEST",
        judge: (message) => findUpdateFaults(deps, message as UpdateWebhookSubscriptionRequest),
      },
    ],
  ]);
}

const SERVICES = [EventService, WebhookSubscriptionService, DeliveryService, OperationsService].map(
  (service) => service.typeName,
);

const FILES = [
  file_nuncio_v1_event_service,
  file_nuncio_v1_webhook_subscription_service,
  file_nuncio_v1_delivery_service,
  file_nuncio_v1_operations_service,
  file_nuncio_v1_error_reason,
  file_grpc_health_v1_health,
  file_grpc_reflection_v1_reflection,
];

/** The frame around every call: who may call, how much may be sent, what an error looks like. */
export function routerOptions(options: {
  readonly operatorKey: Secret;
  readonly maxRequestBytes: number;
  readonly logger: Logger;
  readonly nowMs: () => number;
  readonly onCall?: (end: CallEnd) => void;
  /** Undefined: no traces. */
  readonly startCall?: StartCall | undefined;
  readonly shutdownSignal?: AbortSignal;
}): ConnectRouterOptions {
  const { operatorKey, maxRequestBytes, logger, nowMs, onCall = () => undefined, startCall, shutdownSignal } = options;
  return {
    readMaxBytes: maxRequestBytes,
    // The registry is for the details of a failure in a batch, which are `Any`s.
    jsonOptions: { ignoreUnknownFields: false, registry: ERROR_DETAILS },
    requestGate: createGate(operatorKey),
    interceptors: [
      logCalls(logger, nowMs, onCall),
      ...(startCall ? [traceCalls(startCall)] : []),
      translateErrors(logger),
    ],
    ...(shutdownSignal ? { shutdownSignal } : {}),
  };
}
