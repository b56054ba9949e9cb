import { setTimeout as delay } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import {
  type TestWebhookSubscriptionRequest,
  type TestWebhookSubscriptionResponse,
  TestWebhookSubscriptionResponseSchema,
} from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import { UnavailableError } from "../core/errors.ts";
import { toUuid, type Uuid } from "../core/ids.ts";
import { whileAvailable } from "../store/database.ts";
import type { DeliveryAttempt } from "../store/deliveries.ts";
import { findTestAnswer, LONGEST_TEST_MS, removeTest, requestTest } from "../store/subscription-tests.ts";
import { getSubscription } from "../store/subscriptions.ts";
import { fromAttempt } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, toSubscriptionUuid } from "./request-checks.ts";

const FIRST_LOOK_MS = 10;
const LONGEST_LOOK_MS = 250;

export function testWebhookSubscription(deps: RpcDependencies) {
  return async (
    request: TestWebhookSubscriptionRequest,
    { signal }: Pick<HandlerContext, "signal">,
  ): Promise<TestWebhookSubscriptionResponse> => {
    checkRequest(request, { required: ["id"] });
    const uuid = toSubscriptionUuid(request.id);
    const testUuid = toUuid(deps.newUuidV7()) as Uuid;
    await whileAvailable(() => requestTest(deps.orm, request.tenantId, uuid, testUuid));
    try {
      const attempt = await awaitAnswer(deps, testUuid, signal);
      if (attempt) return create(TestWebhookSubscriptionResponseSchema, { attempt: fromAttempt(attempt) });
      // Deleted meanwhile, no worker sends to it: NOT_FOUND then.
      await whileAvailable(() => getSubscription(deps.orm, request.tenantId, uuid));
      const message = "no worker has made the test in time; is one running?";
      throw new UnavailableError("NO_WORKER", message, { retryAfterMs: LONGEST_TEST_MS });
    } finally {
      await whileAvailable(() => removeTest(deps.orm, testUuid));
    }
  };
}

/** Looks for the worker's answer ever less often; undefined when it does not come in time. */
async function awaitAnswer(
  { orm, now }: Pick<RpcDependencies, "orm" | "now">,
  testUuid: Uuid,
  signal: AbortSignal,
): Promise<DeliveryAttempt | undefined> {
  const giveUpAt = now() + LONGEST_TEST_MS;
  for (let pauseMs = FIRST_LOOK_MS; now() < giveUpAt; pauseMs = Math.min(pauseMs * 1.5, LONGEST_LOOK_MS)) {
    await delay(pauseMs, undefined, { signal });
    const answer = await whileAvailable(() => findTestAnswer(orm, testUuid));
    if (answer) return answer;
  }
  return undefined;
}
