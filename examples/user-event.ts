import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { type Event, EventSchema, EventType } from "../gen/nuncio/v1/event_pb.ts";
import { type UserSchema, UserStatus } from "../gen/nuncio/v1/user_pb.ts";

// What the gateway knows about a person and says about them, in its own plain types, and the one place where they
// become the messages of the contract.

export type Status = "ACTIVE" | "SUSPENDED" | "DEACTIVATED";

export type ContactPoint = {
  readonly value: string;
  readonly type?: string;
  readonly primary: boolean;
  readonly verified: boolean;
};

/** What people may say about themselves. Absent means unset; "" means that they cleared it. */
export type Profile = {
  readonly externalId?: string;
  readonly userName?: string;
  readonly displayName?: string;
  readonly name?: { readonly formatted?: string; readonly givenName?: string; readonly familyName?: string };
  readonly emails?: readonly ContactPoint[];
  readonly phoneNumbers?: readonly ContactPoint[];
  readonly locale?: string;
  readonly timezone?: string;
  readonly groupIds?: readonly string[];
  readonly roleIds?: readonly string[];
  readonly organization?: {
    readonly employeeNumber?: string;
    readonly department?: string;
    readonly managerId?: string;
  };
};

/** Times are RFC 3339 with milliseconds. */
export type Person = Profile & {
  readonly id: string;
  readonly status: Status;
  readonly createTime: string;
  readonly updateTime: string;
  readonly deactivateTime?: string;
};

export type UserEventType = "user.created" | "user.updated" | "user.deactivated" | "user.reactivated" | "user.deleted";

export type UserEvent = {
  readonly id: string;
  readonly tenantId: string;
  readonly type: UserEventType;
  readonly occurTime: string;
  /** Whole; in `user.deleted` the id and the external id alone. */
  readonly user: Person | Pick<Person, "id" | "externalId">;
  /** Paths such as `displayName` or `name.givenName`. */
  readonly changed: readonly string[];
  /** What stood at the changed paths; one that was unset is absent here. */
  readonly previous: Partial<Omit<Person, "id">>;
  readonly actor: { readonly type: string; readonly id?: string };
  readonly reason?: string;
};

export const EVENT_TYPES: Readonly<Record<UserEventType, EventType>> = {
  "user.created": EventType.USER_CREATED,
  "user.updated": EventType.USER_UPDATED,
  "user.deactivated": EventType.USER_DEACTIVATED,
  "user.reactivated": EventType.USER_REACTIVATED,
  "user.deleted": EventType.USER_DELETED,
};

const STATUSES: Readonly<Record<Status, UserStatus>> = {
  ACTIVE: UserStatus.ACTIVE,
  SUSPENDED: UserStatus.SUSPENDED,
  DEACTIVATED: UserStatus.DEACTIVATED,
};

/** The event as Publish takes it. The same event always gives the same message, so a retry is recognised. */
export function toMessage(event: UserEvent): Event {
  return create(EventSchema, {
    id: event.id,
    tenantId: event.tenantId,
    type: EVENT_TYPES[event.type],
    occurTime: toTimestamp(event.occurTime),
    user: toUser(event.user),
    changed: [...event.changed],
    actor: event.actor,
    ...(event.changed.length > 0 ? { previous: toUser(event.previous) } : {}),
    ...(event.reason === undefined ? {} : { reason: event.reason }),
  });
}

function toUser(person: Partial<Person>): MessageInitShape<typeof UserSchema> {
  const { status, emails, phoneNumbers, groupIds, roleIds, createTime, updateTime, deactivateTime, ...texts } = person;
  return {
    ...texts,
    emails: [...(emails ?? [])],
    phoneNumbers: [...(phoneNumbers ?? [])],
    groupIds: [...(groupIds ?? [])],
    roleIds: [...(roleIds ?? [])],
    status: status === undefined ? UserStatus.UNSPECIFIED : STATUSES[status],
    ...(createTime === undefined ? {} : { createTime: toTimestamp(createTime) }),
    ...(updateTime === undefined ? {} : { updateTime: toTimestamp(updateTime) }),
    ...(deactivateTime === undefined ? {} : { deactivateTime: toTimestamp(deactivateTime) }),
  };
}

function toTimestamp(time: string) {
  return timestampFromDate(new Date(time));
}
