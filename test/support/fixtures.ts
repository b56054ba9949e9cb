import { randomBytes } from "node:crypto";
import { v7 as uuidV7 } from "uuid";
import { hashContent } from "../../src/core/content-hash.ts";
import { type AcceptedEvent, type EventDraft, toEventTypeCode } from "../../src/core/event.ts";
import { renderBodyTail } from "../../src/core/event-body.ts";
import { parseSubscriptionId, type Uuid } from "../../src/core/ids.ts";
import { Secret } from "../../src/core/secret.ts";
import { formatSigningSecret } from "../../src/core/signature.ts";
import type { Subscription, SubscriptionSpec } from "../../src/core/subscription.ts";
import type { AppendRow } from "../../src/store/outbox/append.ts";
import type { ClaimedDelivery } from "../../src/store/outbox/claim.ts";
import type { AttemptRecord } from "../../src/store/outbox/record.ts";
import { createSubscription } from "../../src/store/subscriptions.ts";
import type { TestDatabase } from "./database.ts";

let tenants = 0;

/** A tenant that no other test of the file uses. */
export function newTenant(): string {
  tenants += 1;
  return `tenant_${tenants}`;
}

export function draftEvent(tenantId: string, overrides: Partial<EventDraft> = {}): AcceptedEvent {
  return {
    id: `evt_${uuidV7()}`,
    tenantId,
    type: "user.created",
    occurTime: { seconds: 1_795_428_000n, nanos: 0 },
    user: { id: "u_1", displayName: "Zoë", status: "ACTIVE" },
    changed: [],
    ...overrides,
  } as AcceptedEvent;
}

export function toRow(event: AcceptedEvent): AppendRow {
  return {
    tenantId: event.tenantId,
    eventId: event.id,
    eventTypeCode: toEventTypeCode(event.type),
    userId: event.user.id,
    contentHash: hashContent(event),
    traceparent: undefined,
    bodyTail: renderBodyTail(event),
  };
}

/** A stored subscription, its lane, and its secret. */
export async function addSubscription(
  db: TestDatabase,
  tenantId: string,
  spec: Partial<SubscriptionSpec> = {},
): Promise<{ subscription: Subscription; uuid: Uuid; lane: number; secret: string }> {
  const secret = formatSigningSecret(randomBytes(32));
  const { subscription } = await createSubscription(db.server.orm, db.box, tenantId, {
    spec: {
      url: "http://127.0.0.1:9/",
      eventTypes: [],
      description: "",
      ordering: "NONE",
      contentType: "JSON",
      headers: {},
      ...spec,
    },
    subscriptionUuid: uuidV7() as Uuid,
    signingSecret: new Secret(secret),
    request: undefined,
    maxPerTenant: 100,
  });
  const uuid = parseSubscriptionId(subscription.id) as Uuid;
  const [row] =
    await db.admin`SELECT subscription_key FROM nuncio.webhook_subscriptions WHERE subscription_uuid = ${uuid}`;
  return { subscription, uuid, lane: row?.subscription_key, secret };
}

/** What a worker records of a claimed delivery that its receiver took at once. */
export function recordOf(claimed: ClaimedDelivery, changes: Partial<AttemptRecord> = {}): AttemptRecord {
  return {
    subscriptionKey: claimed.subscriptionKey,
    eventKey: claimed.eventKey,
    leaseToken: claimed.leaseToken,
    userKey: claimed.userKey,
    tenantKey: 1,
    number: claimed.attempt,
    startedAtMs: claimed.claimedAtMs,
    durationMs: 12.3,
    phases: { dns: 0.2, connect: 1 },
    outcome: { kind: "delivered", httpStatus: 200 },
    decision: { kind: "delivered" },
    ...changes,
  };
}
