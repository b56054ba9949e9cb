import { hash } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import canonicalize from "canonicalize";
import {
  type CreateWebhookSubscriptionRequest,
  type CreateWebhookSubscriptionResponse,
  CreateWebhookSubscriptionResponseSchema,
} from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import type { Fault } from "../core/errors.ts";
import { toUuid, type Uuid } from "../core/ids.ts";
import { Secret } from "../core/secret.ts";
import { formatSigningSecret, SIGNING_SECRET_BYTES } from "../core/signature.ts";
import { checkSubscription, type SubscriptionSpec } from "../core/subscription.ts";
import { whileAvailable } from "../store/database.ts";
import { createSubscription } from "../store/subscriptions.ts";
import { fromSubscription, toSubscriptionSpec } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, checkRequestId } from "./request-checks.ts";

export function createWebhookSubscription(deps: RpcDependencies) {
  return async (request: CreateWebhookSubscriptionRequest): Promise<CreateWebhookSubscriptionResponse> => {
    const spec = readSpec(deps, request);
    const made = await whileAvailable(() =>
      createSubscription(deps.orm, deps.box, request.tenantId, {
        spec,
        subscriptionUuid: toUuid(deps.newUuidV7()) as Uuid,
        signingSecret: new Secret(formatSigningSecret(deps.randomBytes(SIGNING_SECRET_BYTES))),
        request: request.requestId === "" ? undefined : { id: request.requestId, contentHash: hashSpec(spec) },
        maxPerTenant: deps.maxSubscriptionsPerTenant,
      }),
    );
    return create(CreateWebhookSubscriptionResponseSchema, {
      webhookSubscription: fromSubscription(made.subscription),
      signingSecret: made.signingSecret.reveal(),
    });
  };
}

function readSpec(deps: RpcDependencies, request: CreateWebhookSubscriptionRequest): SubscriptionSpec {
  const spec = request.webhookSubscription && toSubscriptionSpec(request.webhookSubscription, PATH, []);
  checkRequest(request, { faults: findCreateFaults(deps, request) });
  return spec as SubscriptionSpec;
}

const PATH = "webhook_subscription";

/** All that is wrong with the subscription and the request id. */
export function findCreateFaults(
  deps: Pick<RpcDependencies, "bounds">,
  request: CreateWebhookSubscriptionRequest,
): Fault[] {
  const faults: Fault[] = [];
  const wire = request.webhookSubscription;
  if (wire === undefined) faults.push({ path: PATH, description: "is required" });
  else checkSubscription(toSubscriptionSpec(wire, PATH, faults), deps.bounds, PATH, faults);
  checkRequestId(request.requestId, faults);
  return faults;
}

/** What the caller chose, header values included: a secret in a header is kept as part of a hash only. */
function hashSpec(spec: SubscriptionSpec): Buffer {
  return hash("sha256", canonicalize(spec) as string, "buffer");
}
