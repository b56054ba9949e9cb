import { create } from "@bufbuild/protobuf";
import {
  type ResumeWebhookSubscriptionRequest,
  type ResumeWebhookSubscriptionResponse,
  ResumeWebhookSubscriptionResponseSchema,
} from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import { whileAvailable } from "../store/database.ts";
import { resumeSubscription } from "../store/subscription-changes.ts";
import { fromSubscription } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, toSubscriptionUuid } from "./request-checks.ts";

export function resumeWebhookSubscription(deps: RpcDependencies) {
  return async (request: ResumeWebhookSubscriptionRequest): Promise<ResumeWebhookSubscriptionResponse> => {
    checkRequest(request, { required: ["id"] });
    const uuid = toSubscriptionUuid(request.id);
    const { subscription, lane } = await whileAvailable(() => resumeSubscription(deps.orm, request.tenantId, uuid));
    deps.wakeUp.announce([lane]);
    return create(ResumeWebhookSubscriptionResponseSchema, { webhookSubscription: fromSubscription(subscription) });
  };
}
