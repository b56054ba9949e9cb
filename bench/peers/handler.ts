import { randomBytes } from "node:crypto";
import { v7 as uuidV7 } from "uuid";
import { createAnswerJudge, parseAllowedCidrs } from "../../src/core/address-policy.ts";
import { formatDeliveryId, type Uuid } from "../../src/core/ids.ts";
import { Secret } from "../../src/core/secret.ts";
import { formatSigningSecret, toSigningKey } from "../../src/core/signature.ts";
import { keepConnections } from "../../src/delivery/connections.ts";
import { toRequestHeaders } from "../../src/delivery/request-headers.ts";
import { createResolver, shareAnswers } from "../../src/delivery/resolver.ts";
import { send, toDestination } from "../../src/delivery/send.ts";
import { openPost, type Post } from "./post.ts";

/** What a job of a queue does with its event: `same` as our worker does, or a `bare` POST without anything about it. */
export type Handler = "same" | "bare";

const REQUEST_TIMEOUT_MS = 15_000;

export function openHandler(handler: Handler, url: string, atOnce: number): Post {
  return handler === "bare" ? openPost(url, atOnce) : openSigningPost(url);
}

/** Our worker's own modules between a claim and a record: a delivery id, both signatures, a checked address, a deadline. */
function openSigningPost(url: string): Post {
  const nowMs = () => performance.now();
  const connections = keepConnections(nowMs, REQUEST_TIMEOUT_MS);
  const judge = createAnswerJudge({ allowHttp: true, allowedCidrs: parseAllowedCidrs("127.0.0.0/8") });
  const deps = { resolve: shareAnswers(createResolver(REQUEST_TIMEOUT_MS), nowMs), connections, judge, nowMs };
  const keys = [toSigningKey(new Secret(formatSigningSecret(randomBytes(32))))];
  const destination = toDestination(new URL(url));
  const subscription = uuidV7() as Uuid;
  return {
    async post(body) {
      const eventKey = uuidV7() as Uuid;
      const headers = toRequestHeaders(keys, {
        eventId: `evt_${eventKey}`,
        deliveryId: formatDeliveryId(eventKey, subscription),
        attempt: 1,
        redrive: false,
        timestamp: Math.floor(Date.now() / 1_000),
        body,
        traceparent: null,
        contentType: "JSON",
        headers: {},
      });
      const request = { destination, headers, body, timeoutMs: REQUEST_TIMEOUT_MS, maxResponseBytes: 65_536 };
      const { outcome } = await send(deps, request);
      if (outcome.kind !== "delivered") throw new Error(`the receiver was not reached: ${JSON.stringify(outcome)}`);
    },
    close: () => connections.close(),
  };
}
