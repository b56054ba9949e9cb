import { create } from "@bufbuild/protobuf";
import {
  type GetWebhookSubscriptionRequest,
  type GetWebhookSubscriptionResponse,
  GetWebhookSubscriptionResponseSchema,
} from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import { whileAvailable } from "../store/database.ts";
import { getSubscription } from "../store/subscriptions.ts";
import { fromSubscription } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, toSubscriptionUuid } from "./request-checks.ts";

export function getWebhookSubscription(deps: RpcDependencies) {
  return async (request: GetWebhookSubscriptionRequest): Promise<GetWebhookSubscriptionResponse> => {
    checkRequest(request, { required: ["id"] });
    const uuid = toSubscriptionUuid(request.id);
    const subscription = await whileAvailable(() => getSubscription(deps.orm, request.tenantId, uuid));
    return create(GetWebhookSubscriptionResponseSchema, { webhookSubscription: fromSubscription(subscription) });
  };
}
