import { create } from "@bufbuild/protobuf";
import {
  type RotateWebhookSubscriptionSecretRequest,
  type RotateWebhookSubscriptionSecretResponse,
  RotateWebhookSubscriptionSecretResponseSchema,
} from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import type { Fault } from "../core/errors.ts";
import { Secret } from "../core/secret.ts";
import { formatSigningSecret, SIGNING_SECRET_BYTES } from "../core/signature.ts";
import { whileAvailable } from "../store/database.ts";
import { rotateSecret } from "../store/subscription-changes.ts";
import { fromSubscription, toMs } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, toSubscriptionUuid } from "./request-checks.ts";

const DEFAULT_GRACE_MS = 86_400_000;
const LONGEST_GRACE_MS = 7 * 86_400_000;

export function rotateWebhookSubscriptionSecret(deps: RpcDependencies) {
  return async (request: RotateWebhookSubscriptionSecretRequest): Promise<RotateWebhookSubscriptionSecretResponse> => {
    const graceMs = request.gracePeriod === undefined ? DEFAULT_GRACE_MS : toMs(request.gracePeriod);
    const faults: Fault[] = [];
    if (graceMs < 0 || graceMs > LONGEST_GRACE_MS) {
      faults.push({ path: "grace_period", description: "must be 0–7 days" });
    }
    checkRequest(request, { required: ["id"], faults });
    const uuid = toSubscriptionUuid(request.id);
    const secret = new Secret(formatSigningSecret(deps.randomBytes(SIGNING_SECRET_BYTES)));
    const { subscription, lane } = await whileAvailable(() =>
      rotateSecret(deps.orm, deps.box, request.tenantId, uuid, { secret, graceMs }),
    );
    // A claim that came meanwhile has left the lane out, and may think that nothing is due in it.
    deps.wakeUp.announce([lane]);
    return create(RotateWebhookSubscriptionSecretResponseSchema, {
      webhookSubscription: fromSubscription(subscription),
      signingSecret: secret.reveal(),
    });
  };
}
