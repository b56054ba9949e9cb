import { create, fromJson, type JsonObject, type JsonValue, type Message } from "@bufbuild/protobuf";
import { type Duration, durationFromMs, type Timestamp, timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type AttemptOutcome,
  AttemptPhasesSchema,
  DeliveryAttemptSchema,
  type DeliveryEndReason,
  DeliverySchema,
  type DeliveryState,
  type DeliveryAttempt as WireAttempt,
  type Delivery as WireDelivery,
} from "../../gen/nuncio/v1/delivery_pb.ts";
import { EventSchema, type Event as WireEvent, type EventType as WireEventType } from "../../gen/nuncio/v1/event_pb.ts";
import { ErasureSchema, type ErasureState, type Erasure as WireErasure } from "../../gen/nuncio/v1/event_service_pb.ts";
import {
  OperationalEventSchema,
  type OperationalEventType,
  type OperationalEvent as WireOperationalEvent,
} from "../../gen/nuncio/v1/operational_event_pb.ts";
import { RedriveSchema, type RedriveState, type Redrive as WireRedrive } from "../../gen/nuncio/v1/redrive_pb.ts";
import { type Email, type PhoneNumber, UserSchema, type User as WireUser } from "../../gen/nuncio/v1/user_pb.ts";
import {
  type SubscriptionState,
  WebhookSubscriptionSchema,
  type ContentType as WireContentType,
  type SubscriptionOrdering as WireOrdering,
  type WebhookSubscription as WireSubscription,
} from "../../gen/nuncio/v1/webhook_subscription_pb.ts";
import { OUTCOME_KINDS } from "../core/attempt.ts";
import { toCode } from "../core/codes.ts";
import { type DeliveryState as CoreDeliveryState, DELIVERY_STATES, toEndReasonCode } from "../core/delivery.ts";
import { ERASURE_STATES } from "../core/erasure.ts";
import type { Fault } from "../core/errors.ts";
import { type Actor, EVENT_TYPES, type EventDraft, type EventType, toEventTypeCode } from "../core/event.ts";
import { formatErasureId, formatRedriveId, formatSubscriptionId } from "../core/ids.ts";
import { type Instant, toNextEpochMs } from "../core/instant.ts";
import {
  type OperationalEventType as CoreOperationalEventType,
  OPERATIONAL_EVENT_TYPES,
  toOperationalEventTypeCode,
} from "../core/operational-event.ts";
import { REDRIVE_STATES, type RedriveSpec } from "../core/redrive.ts";
import {
  CONTENT_TYPES,
  DEFAULT_ORDERING,
  SUBSCRIPTION_ORDERINGS,
  SUBSCRIPTION_STATES,
  type Subscription,
  type SubscriptionSpec,
} from "../core/subscription.ts";
import { type ContactPoint, USER_STATUSES, type User } from "../core/user.ts";
import type { Delivery, DeliveryAttempt } from "../store/deliveries.ts";
import type { Erasure } from "../store/erasures.ts";
import type { StoredEvent } from "../store/events.ts";
import type { OperationalEvent } from "../store/operational-events.ts";
import type { Redrive } from "../store/redrives.ts";

// Between the proto's messages and our own types; protobuf stops here. The numbers of enums are places in our lists plus
// one, which `test/rpc/convert.test.ts` holds against the proto.

/** Members that are undefined are left out: absent means not sent. */
type Defined<T> = { [K in keyof T as undefined extends T[K] ? never : K]: T[K] } & {
  [K in keyof T as undefined extends T[K] ? K : never]?: Exclude<T[K], undefined>;
};

function defined<T extends object>(members: T): Defined<T> {
  const present: Record<string, unknown> = {};
  for (const key in members) if (members[key] !== undefined) present[key] = members[key];
  return present as Defined<T>;
}

/** What the message says, faults of form included: enum numbers and fields that this version does not know. */
export function toEventDraft(event: WireEvent, path: string, faults: Fault[]): EventDraft {
  refuseUnknownFields(event, path, faults);
  return defined({
    id: event.id === "" ? undefined : event.id,
    tenantId: event.tenantId,
    type: toMember(EVENT_TYPES, event.type, `${path}.type`, faults),
    occurTime: event.occurTime && toInstant(event.occurTime),
    user: event.user && toUser(event.user, `${path}.user`, faults),
    changed: event.changed,
    previous: event.previous && toUser(event.previous, `${path}.previous`, faults),
    actor: event.actor && toActor(event.actor, `${path}.actor`, faults),
    reason: event.reason,
  });
}

function toActor(actor: NonNullable<WireEvent["actor"]>, path: string, faults: Fault[]): Actor {
  refuseUnknownFields(actor, path, faults);
  return defined({ type: actor.type, id: actor.id });
}

function toUser(user: WireUser, path: string, faults: Fault[]): User {
  refuseUnknownFields(user, path, faults);
  if (user.name) refuseUnknownFields(user.name, `${path}.name`, faults);
  if (user.organization) refuseUnknownFields(user.organization, `${path}.organization`, faults);
  const attributes = Object.entries(user.attributes).sort(([a], [b]) => (a < b ? -1 : 1));
  return defined({
    id: user.id,
    externalId: user.externalId,
    userName: user.userName,
    displayName: user.displayName,
    name:
      user.name &&
      defined({ formatted: user.name.formatted, givenName: user.name.givenName, familyName: user.name.familyName }),
    status: toMember(USER_STATUSES, user.status, `${path}.status`, faults),
    emails: toContactPoints(user.emails, `${path}.emails`, faults),
    phoneNumbers: toContactPoints(user.phoneNumbers, `${path}.phone_numbers`, faults),
    locale: user.locale,
    timezone: user.timezone,
    groupIds: user.groupIds.length > 0 ? user.groupIds : undefined,
    roleIds: user.roleIds.length > 0 ? user.roleIds : undefined,
    organization:
      user.organization &&
      defined({
        employeeNumber: user.organization.employeeNumber,
        department: user.organization.department,
        managerId: user.organization.managerId,
      }),
    attributes: attributes.length > 0 ? Object.fromEntries(attributes) : undefined,
    createTime: user.createTime && toInstant(user.createTime),
    updateTime: user.updateTime && toInstant(user.updateTime),
    deactivateTime: user.deactivateTime && toInstant(user.deactivateTime),
  });
}

function toContactPoints(
  points: readonly (Email | PhoneNumber)[],
  path: string,
  faults: Fault[],
): ContactPoint[] | undefined {
  if (points.length === 0) return undefined;
  return points.map((point, i) => {
    refuseUnknownFields(point, `${path}[${i}]`, faults);
    return defined({ value: point.value, type: point.type, primary: point.primary, verified: point.verified });
  });
}

function toInstant({ seconds, nanos }: Timestamp): Instant {
  return { seconds, nanos };
}

/** The event as it was accepted, from the bytes that are sent. */
export function fromStoredEvent(stored: StoredEvent): WireEvent {
  const body = JSON.parse(stored.body);
  const { user, changed = [], previous, actor, reason } = body.data;
  return create(EventSchema, {
    id: body.id,
    tenantId: body.tenantid,
    type: toEventTypeCode(body.type) as WireEventType,
    occurTime: timestampFromMs(Date.parse(body.time)),
    user: fromWireUser(user),
    changed,
    ...(previous === undefined ? {} : { previous: fromWireUser(previous) }),
    ...(actor === undefined ? {} : { actor }),
    ...(reason === undefined ? {} : { reason }),
    createTime: timestampFromMs(stored.createdAtMs),
    userSequence: stored.userSequence,
  });
}

/** The body's user is proto3 JSON but for its status, which is short, and `null`s, which mean "was unset". */
function fromWireUser(user: JsonObject): WireUser {
  const { status, attributes, ...rest } = user;
  const known = Object.entries((attributes as JsonObject | undefined) ?? {}).filter(([, value]) => value !== null);
  return fromJson(UserSchema, {
    ...rest,
    ...(typeof status === "string" ? { status: `USER_STATUS_${status}` } : {}),
    attributes: Object.fromEntries(known),
  } as JsonValue);
}

export function toSubscriptionSpec(subscription: WireSubscription, path: string, faults: Fault[]): SubscriptionSpec {
  refuseUnknownFields(subscription, path, faults);
  const { rateLimit, retryPolicy } = subscription;
  if (rateLimit) refuseUnknownFields(rateLimit, `${path}.rate_limit`, faults);
  if (retryPolicy) refuseUnknownFields(retryPolicy, `${path}.retry_policy`, faults);
  const member = <T extends string>(names: readonly T[], code: number, field: string) =>
    toMember(names, code, `${path}.${field}`, faults);
  return {
    url: subscription.url,
    eventTypes: toEventTypes(subscription.eventTypes, `${path}.event_types`, faults),
    description: subscription.description,
    ordering: member(SUBSCRIPTION_ORDERINGS, subscription.ordering, "ordering") ?? DEFAULT_ORDERING,
    contentType: member(CONTENT_TYPES, subscription.contentType, "content_type") ?? "JSON",
    headers: { ...subscription.headers },
    maxInFlight: subscription.maxInFlight,
    requestsPerSecond: rateLimit?.requestsPerSecond,
    retryDelaysMs: retryPolicy?.schedule.map(toMs),
  };
}

/** A part of a millisecond counts as a whole one: a delay is never shortened. */
export function toMs({ seconds, nanos }: Duration): number {
  return Number(seconds) * 1_000 + Math.ceil(nanos / 1_000_000);
}

/** Header values are input only: their names come back with empty values. */
export function fromSubscription(subscription: Subscription): WireSubscription {
  const { maxInFlight, requestsPerSecond, retryDelaysMs, lastSuccessAt, lastFailure } = subscription;
  const { replacedSecretExpiresAt } = subscription;
  const init = defined({
    id: subscription.id,
    tenantId: subscription.tenantId,
    url: subscription.url,
    eventTypes: subscription.eventTypes.map(toEventTypeCode) as WireEventType[],
    description: subscription.description,
    state: toCode(SUBSCRIPTION_STATES, subscription.state) as SubscriptionState,
    stateReason: subscription.stateReason,
    ordering: toCode(SUBSCRIPTION_ORDERINGS, subscription.ordering) as WireOrdering,
    contentType: toCode(CONTENT_TYPES, subscription.contentType) as WireContentType,
    headers: Object.fromEntries(subscription.headerNames.map((name) => [name, ""])),
    createTime: timestampFromMs(subscription.createdAt.getTime()),
    updateTime: timestampFromMs(subscription.updatedAt.getTime()),
    rateLimit: requestsPerSecond === undefined ? undefined : { requestsPerSecond },
    maxInFlight,
    lastSuccessTime: lastSuccessAt && timestampFromMs(lastSuccessAt.getTime()),
    lastFailure: lastFailure && { time: timestampFromMs(lastFailure.at.getTime()), detail: lastFailure.detail },
    consecutiveFailures: subscription.consecutiveFailures,
    retryPolicy: retryDelaysMs && { schedule: retryDelaysMs.map((ms) => durationFromMs(ms)) },
    replacedSecretExpireTime: replacedSecretExpiresAt && timestampFromMs(replacedSecretExpiresAt.getTime()),
  });
  return create(WebhookSubscriptionSchema, init);
}

/** A list of filters: each a known type, `UNSPECIFIED` and unknown numbers refused. */
export function toEventTypes(types: readonly number[], path: string, faults: Fault[]): EventType[] {
  return types.flatMap((code, i) => toListed(EVENT_TYPES, code, `${path}[${i}]`, faults));
}

export function toDeliveryStates(states: readonly number[], path: string, faults: Fault[]): CoreDeliveryState[] {
  return states.flatMap((code, i) => toListed(DELIVERY_STATES, code, `${path}[${i}]`, faults));
}

export function toOperationalEventTypes(
  types: readonly number[],
  path: string,
  faults: Fault[],
): CoreOperationalEventType[] {
  return types.flatMap((code, i) => toListed(OPERATIONAL_EVENT_TYPES, code, `${path}[${i}]`, faults));
}

export function fromOperationalEvent(event: OperationalEvent): WireOperationalEvent {
  return create(OperationalEventSchema, {
    id: event.id,
    tenantId: event.tenantId,
    subscriptionId: event.subscriptionId,
    type: toOperationalEventTypeCode(event.type) as OperationalEventType,
    reason: event.reason,
    count: event.count,
    firstTime: timestampFromMs(event.firstAt.getTime()),
    lastTime: timestampFromMs(event.lastAt.getTime()),
  });
}

export function fromDelivery(delivery: Delivery, attempts: readonly DeliveryAttempt[] = []): WireDelivery {
  const time = (epochMs: number | undefined) => (epochMs === undefined ? undefined : timestampFromMs(epochMs));
  return Object.assign(
    create(DeliverySchema),
    defined({
      id: delivery.id,
      tenantId: delivery.tenantId,
      eventId: delivery.eventId,
      eventType: toEventTypeCode(delivery.eventType) as WireEventType,
      subscriptionId: formatSubscriptionId(delivery.subscription),
      userId: delivery.userId,
      userSequence: delivery.userSequence,
      state: toCode(DELIVERY_STATES, delivery.state) as DeliveryState,
      endReason: delivery.endReason && (toEndReasonCode(delivery.endReason) as DeliveryEndReason),
      attemptCount: delivery.attemptCount,
      nextAttemptTime: time(delivery.nextAttemptAtMs),
      expireTime: time(delivery.expiresAtMs),
      createTime: time(delivery.createdAtMs),
      endTime: time(delivery.endedAtMs),
      attempts: attempts.map(fromAttempt),
    }),
  );
}

export function fromAttempt(attempt: DeliveryAttempt): WireAttempt {
  const { dns, connect, first_byte: firstByte, body } = attempt.phases;
  return Object.assign(
    create(DeliveryAttemptSchema),
    defined({
      number: attempt.number,
      startTime: timestampFromMs(attempt.startedAtMs),
      duration: durationFromMs(attempt.durationMs),
      phases: Object.assign(
        create(AttemptPhasesSchema),
        defined({
          dns: toDuration(dns),
          connect: toDuration(connect),
          firstByte: toDuration(firstByte),
          body: toDuration(body),
        }),
      ),
      outcome: toCode(OUTCOME_KINDS, attempt.outcome) as AttemptOutcome,
      httpStatus: attempt.httpStatus,
      errorDetail: attempt.errorDetail,
      responseExcerpt: attempt.responseExcerpt,
      stale: attempt.stale,
    }),
  );
}

export function fromErasure(erasure: Erasure): WireErasure {
  return create(
    ErasureSchema,
    defined({
      id: formatErasureId(erasure.uuid),
      tenantId: erasure.tenantId,
      userId: erasure.userId,
      state: toCode(ERASURE_STATES, erasure.state) as ErasureState,
      erasedCount: BigInt(erasure.erasedCount),
      cancelledCount: BigInt(erasure.cancelledCount),
      createTime: timestampFromMs(erasure.createdAt.getTime()),
      endTime: erasure.endedAt && timestampFromMs(erasure.endedAt.getTime()),
    }),
  );
}

export function toRedriveSpec(redrive: WireRedrive, path: string, faults: Fault[]): Omit<RedriveSpec, "subscription"> {
  refuseUnknownFields(redrive, path, faults);
  return {
    createdFromMs: redrive.createTimeAfter && toNextEpochMs(redrive.createTimeAfter),
    createdBeforeMs: redrive.createTimeBefore && toNextEpochMs(redrive.createTimeBefore),
    states: toDeliveryStates(redrive.states, `${path}.states`, faults),
    eventTypes: toEventTypes(redrive.eventTypes, `${path}.event_types`, faults),
    includeMissed: redrive.includeMissed,
    includeOvertaken: redrive.includeOvertaken,
  };
}

export function fromRedrive(redrive: Redrive): WireRedrive {
  const time = (epochMs: number | undefined) => (epochMs === undefined ? undefined : timestampFromMs(epochMs));
  return create(
    RedriveSchema,
    defined({
      id: formatRedriveId(redrive.uuid),
      tenantId: redrive.tenantId,
      subscriptionId: formatSubscriptionId(redrive.subscription),
      createTimeAfter: time(redrive.createdFromMs),
      createTimeBefore: time(redrive.createdBeforeMs),
      states: redrive.states.map((state) => toCode(DELIVERY_STATES, state)) as DeliveryState[],
      eventTypes: redrive.eventTypes.map(toEventTypeCode) as WireEventType[],
      includeMissed: redrive.includeMissed,
      includeOvertaken: redrive.includeOvertaken,
      state: toCode(REDRIVE_STATES, redrive.state) as RedriveState,
      scannedCount: BigInt(redrive.scannedCount),
      redrivenCount: BigInt(redrive.redrivenCount),
      overtakenCount: BigInt(redrive.overtakenCount),
      scannedUntilTime: time(redrive.scannedUntilMs),
      createTime: time(redrive.createdAt.getTime()),
      endTime: time(redrive.endedAt?.getTime()),
    }),
  );
}

function toDuration(ms: number | undefined): Duration | undefined {
  return ms === undefined ? undefined : durationFromMs(ms);
}

/** The member for a number, undefined for `UNSPECIFIED`; a number that stands for nothing is a fault. */
function toMember<T extends string>(names: readonly T[], code: number, path: string, faults: Fault[]): T | undefined {
  if (code === 0) return undefined;
  const name = names[code - 1];
  if (name === undefined) faults.push({ path, description: `has the unknown value ${code}` });
  return name;
}

function toListed<T extends string>(names: readonly T[], code: number, path: string, faults: Fault[]): T[] {
  if (code === 0) faults.push({ path, description: "must not be UNSPECIFIED" });
  const name = toMember(names, code, path, faults);
  return name === undefined ? [] : [name];
}

/** Binary messages keep what this version's schema does not have; dropping it silently would lose what was meant. */
export function refuseUnknownFields(message: Message, path: string, faults: Fault[]): void {
  for (const { no } of message.$unknown ?? []) {
    faults.push({ path: path === "" ? `#${no}` : `${path}.#${no}`, description: "is an unknown field" });
  }
}
