import { create } from "@bufbuild/protobuf";
import {
  type DeleteWebhookSubscriptionRequest,
  type DeleteWebhookSubscriptionResponse,
  DeleteWebhookSubscriptionResponseSchema,
} from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import { whileAvailable } from "../store/database.ts";
import { deleteSubscription } from "../store/subscription-changes.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, toSubscriptionUuid } from "./request-checks.ts";

export function deleteWebhookSubscription(deps: RpcDependencies) {
  return async (request: DeleteWebhookSubscriptionRequest): Promise<DeleteWebhookSubscriptionResponse> => {
    checkRequest(request, { required: ["id"] });
    const uuid = toSubscriptionUuid(request.id);
    await whileAvailable(() => deleteSubscription(deps.orm, request.tenantId, uuid));
    return create(DeleteWebhookSubscriptionResponseSchema);
  };
}
