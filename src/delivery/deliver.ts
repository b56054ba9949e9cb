import { formatDeliveryId } from "../core/ids.ts";
import { parseRetryAfter } from "../core/retry-after.ts";
import { decide } from "../core/retry-policy.ts";
import type { ClaimedDelivery } from "../store/outbox/claim.ts";
import type { AttemptRecord } from "../store/outbox/record.ts";
import { toRequestHeaders } from "./request-headers.ts";
import { type SendDependencies, send } from "./send.ts";
import { keysAt, type ReadyTarget } from "./targets.ts";

export type DeliverDependencies = SendDependencies & {
  readonly random: () => number;
  readonly schedule: readonly number[];
  readonly maxResponseBytes: number;
};

/** A claimed delivery whose payload is there, and when its claim was sent, by our own monotonic clock. */
export type Sendable = ClaimedDelivery & {
  readonly event: NonNullable<ClaimedDelivery["event"]>;
  readonly claimSentAtMs: number;
};

/** What is to be written down, and for how long the receiver asked for silence. */
export type Attempted = { readonly record: AttemptRecord; readonly holdMs: number | undefined };

/**
 * One attempt: signs the stored bytes, sends them, decides what follows. Nothing is written here and no transaction is
 * open; if we crash anywhere in it, the lease ends and the delivery is made again with the same id.
 */
export async function deliver(
  deps: DeliverDependencies,
  delivery: Sendable,
  target: ReadyTarget,
  timeoutMs: number,
): Promise<Attempted> {
  const startedAtMs = databaseTimeMs(deps, delivery);
  const body = Buffer.from(delivery.event.body);
  const headers = toRequestHeaders(keysAt(target, startedAtMs), {
    eventId: delivery.event.id,
    deliveryId: formatDeliveryId(delivery.eventKey, target.subscriptionUuid),
    attempt: delivery.attempt,
    redrive: delivery.redrive,
    timestamp: Math.floor(startedAtMs / 1000),
    body,
    traceparent: delivery.event.traceparent,
    contentType: target.contentType,
    headers: target.headers,
  });

  const { maxResponseBytes } = deps;
  const { outcome, phases, durationMs, retryAfter } = await send(deps, {
    destination: target.destination,
    headers,
    body,
    timeoutMs,
    maxResponseBytes,
  });

  const endedAtMs = databaseTimeMs(deps, delivery);
  const decision = decide(outcome, {
    failures: delivery.failures,
    schedule: target.retryDelaysMs ?? deps.schedule,
    random: deps.random(),
    remainingMs: delivery.expiresAtMs - endedAtMs,
  });
  const record = {
    subscriptionKey: delivery.subscriptionKey,
    eventKey: delivery.eventKey,
    leaseToken: delivery.leaseToken,
    userKey: delivery.userKey,
    tenantKey: target.tenantKey,
    number: delivery.attempt,
    startedAtMs,
    durationMs,
    phases,
    outcome,
    decision,
  };
  return { record, holdMs: parseRetryAfter(outcome.httpStatus, retryAfter, endedAtMs) };
}

/** The database's clock: what it said at the claim, and the monotonic time since. A wrong clock of ours cannot matter. */
export function databaseTimeMs({ nowMs }: Pick<SendDependencies, "nowMs">, delivery: Sendable): number {
  return delivery.claimedAtMs + (nowMs() - delivery.claimSentAtMs);
}
