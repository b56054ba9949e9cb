import { fromCode, toCode } from "./codes.ts";
import type { Fault } from "./errors.ts";
import { type Instant, isValidInstant } from "./instant.ts";
import { checkTenantId, checkText } from "./text.ts";
import { checkChangedPaths, checkPrevious, checkUser, toSnake, type User, type UserStatus } from "./user.ts";

/** Wire names, append-only; a type's number in the proto and in the database is its place in this list plus one. */
export const EVENT_TYPES = [
  "user.created",
  "user.updated",
  "user.deactivated",
  "user.reactivated",
  "user.deleted",
] as const;

export type EventType = (typeof EVENT_TYPES)[number];

export type Actor = { readonly type: string; readonly id?: string };

/** An event as its publisher sent it, before defaults and before it was checked. Absent means not sent. */
export type EventDraft = {
  readonly id?: string;
  readonly tenantId: string;
  readonly type?: EventType;
  readonly occurTime?: Instant;
  readonly user?: User;
  readonly changed: readonly string[];
  readonly previous?: User;
  readonly actor?: Actor;
  readonly reason?: string;
};

/** An event that passed `checkEvent` and has its id. */
export type AcceptedEvent = EventDraft & {
  readonly id: string;
  readonly type: EventType;
  readonly user: User;
  readonly occurTime: Instant;
};

export function toEventTypeCode(type: EventType): number {
  return toCode(EVENT_TYPES, type);
}

export function fromEventTypeCode(code: number): EventType {
  return fromCode(EVENT_TYPES, code);
}

const EVENT_ID_PATTERN = /^[A-Za-z0-9_:-]{1,64}$/;
const ACTOR_TYPE_PATTERN = /^[A-Za-z0-9_.-]{1,64}$/;
const PRINTABLE_ASCII = /^[\x21-\x7e]{1,128}$/;

/** Which status an event of a type may carry; `user.deleted` carries none. */
const STATUS_BY_TYPE: Readonly<Record<EventType, readonly UserStatus[]>> = {
  "user.created": ["ACTIVE", "SUSPENDED"],
  "user.updated": ["ACTIVE", "SUSPENDED"],
  "user.deactivated": ["DEACTIVATED"],
  "user.reactivated": ["ACTIVE"],
  "user.deleted": [],
};

/** Every fault of the event, none if it may be published. `path` is where the event stands in its request. */
export function checkEvent(draft: EventDraft, attributeKeys: ReadonlySet<string>, path = "event"): Fault[] {
  const faults: Fault[] = [];
  const fault = (field: string, description: string) => faults.push({ path: `${path}.${field}`, description });

  if (draft.id !== undefined && !EVENT_ID_PATTERN.test(draft.id)) fault("id", "must be 1–64 of A-Za-z0-9_:-");
  checkTenantId(draft.tenantId, `${path}.tenant_id`, faults);
  if (draft.type === undefined) fault("type", "is required");
  if (draft.occurTime !== undefined && !isValidInstant(draft.occurTime)) {
    fault("occur_time", "must lie in the years 1–9999");
  }
  if (draft.reason !== undefined) checkText(draft.reason, 1024, `${path}.reason`, faults);
  if (draft.actor !== undefined) {
    if (!ACTOR_TYPE_PATTERN.test(draft.actor.type)) fault("actor.type", "must be 1–64 of A-Za-z0-9_.-");
    if (draft.actor.id !== undefined && !PRINTABLE_ASCII.test(draft.actor.id)) {
      fault("actor.id", "must be 1–128 printable ASCII characters");
    }
  }

  if (draft.user === undefined) fault("user", "is required");
  else {
    checkUser(draft.user, attributeKeys, `${path}.user`, faults);
    if (!PRINTABLE_ASCII.test(draft.user.id)) fault("user.id", "must be 1–128 printable ASCII characters");
  }
  if (draft.type !== undefined && draft.user !== undefined) checkTypeAgainstUser(draft.type, draft.user, path, faults);

  if (draft.type === "user.updated" && draft.changed.length === 0) fault("changed", "is required for user.updated");
  if (draft.type === "user.deleted") {
    if (draft.changed.length > 0) fault("changed", "must be empty for user.deleted");
    if (draft.previous !== undefined) fault("previous", "must be unset for user.deleted");
  } else {
    checkChangedPaths(draft.changed, attributeKeys, `${path}.changed`, faults);
    if (draft.previous !== undefined) {
      checkUser(draft.previous, attributeKeys, `${path}.previous`, faults);
      checkPrevious(draft.previous, draft.changed, `${path}.previous`, faults);
    }
  }
  return faults;
}

function checkTypeAgainstUser(type: EventType, user: User, path: string, faults: Fault[]): void {
  const allowed = STATUS_BY_TYPE[type];
  if (type === "user.deleted") {
    for (const key of Object.keys(user)) {
      if (key === "id" || key === "externalId") continue;
      faults.push({ path: `${path}.user.${toSnake(key)}`, description: "must be unset for user.deleted" });
    }
  } else if (user.status === undefined) {
    faults.push({ path: `${path}.user.status`, description: `is required for ${type}` });
  } else if (!allowed.includes(user.status)) {
    faults.push({
      path: `${path}.user.status`,
      description: `contradicts ${type}, which needs ${allowed.join(" or ")}`,
    });
  }
}
