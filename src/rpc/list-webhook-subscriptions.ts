import { create } from "@bufbuild/protobuf";
import {
  type ListWebhookSubscriptionsRequest,
  type ListWebhookSubscriptionsResponse,
  ListWebhookSubscriptionsResponseSchema,
} from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import type { Fault } from "../core/errors.ts";
import { effectivePageSize, formatPageToken, parsePageToken } from "../core/page-token.ts";
import { whileAvailable } from "../store/database.ts";
import { listSubscriptions } from "../store/subscriptions.ts";
import { fromSubscription } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkPageSize, checkRequest, toSubscriptionUuid } from "./request-checks.ts";

export function listWebhookSubscriptions(deps: RpcDependencies) {
  return async (request: ListWebhookSubscriptionsRequest): Promise<ListWebhookSubscriptionsResponse> => {
    const faults: Fault[] = [];
    checkPageSize(request.pageSize, faults);
    checkRequest(request, { faults });
    const list = ["subscriptions", request.tenantId];
    const after = request.pageToken === "" ? undefined : parsePageToken(list, request.pageToken, 1)[0];
    const limit = effectivePageSize(request.pageSize);

    // One more than asked for tells whether there is another page.
    const found = await whileAvailable(() =>
      listSubscriptions(deps.orm, request.tenantId, { after, limit: limit + 1 }),
    );
    const page = found.slice(0, limit);
    const last = page.at(-1);
    return create(ListWebhookSubscriptionsResponseSchema, {
      webhookSubscriptions: page.map(fromSubscription),
      nextPageToken: found.length > limit && last ? formatPageToken(list, [toSubscriptionUuid(last.id)]) : "",
    });
  };
}
