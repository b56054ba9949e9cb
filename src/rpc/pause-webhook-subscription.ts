import { create } from "@bufbuild/protobuf";
import {
  type PauseWebhookSubscriptionRequest,
  type PauseWebhookSubscriptionResponse,
  PauseWebhookSubscriptionResponseSchema,
} from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import { whileAvailable } from "../store/database.ts";
import { pauseSubscription } from "../store/subscription-changes.ts";
import { fromSubscription } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, toSubscriptionUuid } from "./request-checks.ts";

export function pauseWebhookSubscription(deps: RpcDependencies) {
  return async (request: PauseWebhookSubscriptionRequest): Promise<PauseWebhookSubscriptionResponse> => {
    checkRequest(request, { required: ["id"] });
    const uuid = toSubscriptionUuid(request.id);
    const { subscription } = await whileAvailable(() => pauseSubscription(deps.orm, request.tenantId, uuid));
    return create(PauseWebhookSubscriptionResponseSchema, { webhookSubscription: fromSubscription(subscription) });
  };
}
