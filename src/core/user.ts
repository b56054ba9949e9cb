import type { Fault } from "./errors.ts";
import { type Instant, isValidInstant } from "./instant.ts";
import { looksSecret } from "./secret-words.ts";
import { checkText } from "./text.ts";

/** A status's number in the proto is its place in this list plus one. */
export const USER_STATUSES = ["ACTIVE", "SUSPENDED", "DEACTIVATED"] as const;
export type UserStatus = (typeof USER_STATUSES)[number];

export type ContactPoint = {
  readonly value: string;
  readonly type?: string;
  readonly primary: boolean;
  readonly verified: boolean;
};

/** The allow-list of what a receiver learns about a user. Absent means unset; a list that is present is not empty. */
export type User = {
  readonly id: string;
  readonly externalId?: string;
  readonly userName?: string;
  readonly displayName?: string;
  readonly name?: { readonly formatted?: string; readonly givenName?: string; readonly familyName?: string };
  readonly status?: UserStatus;
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
  readonly attributes?: Readonly<Record<string, string>>;
  readonly createTime?: Instant;
  readonly updateTime?: Instant;
  readonly deactivateTime?: Instant;
};

type ObjectField = "name" | "organization" | "attributes";

/** The members of `User` in the order of the wire, and those of its nested objects. `null`: a value without members. */
export const USER_FIELDS: Readonly<Record<keyof User, readonly string[] | null>> = {
  id: null,
  externalId: null,
  userName: null,
  displayName: null,
  name: ["formatted", "givenName", "familyName"],
  status: null,
  emails: null,
  phoneNumbers: null,
  locale: null,
  timezone: null,
  groupIds: null,
  roleIds: null,
  organization: ["employeeNumber", "department", "managerId"],
  attributes: [],
  createTime: null,
  updateTime: null,
  deactivateTime: null,
};

const TEXT_LIMITS = { externalId: 256, userName: 256, displayName: 1024, locale: 64, timezone: 64 } as const;
const NAME_LIMITS = { formatted: 1024, givenName: 256, familyName: 256 } as const;
const ORGANIZATION_LIMITS = { employeeNumber: 256, department: 256, managerId: 128 } as const;
const MAX_CONTACT_POINTS = 50;
const MAX_IDS = 1000;
const MAX_ATTRIBUTES = 64;
const MAX_CHANGED_PATHS = 64;

/** Collects the faults of everything but `id`, which `previous` does not have. Paths use the proto's names. */
export function checkUser(user: User, attributeKeys: ReadonlySet<string>, path: string, faults: Fault[]): void {
  checkTexts(user, TEXT_LIMITS, path, faults);
  if (user.name) checkTexts(user.name, NAME_LIMITS, `${path}.name`, faults);
  if (user.organization) checkTexts(user.organization, ORGANIZATION_LIMITS, `${path}.organization`, faults);
  if (user.emails) checkContactPoints(user.emails, 320, `${path}.emails`, faults);
  if (user.phoneNumbers) checkContactPoints(user.phoneNumbers, 64, `${path}.phone_numbers`, faults);
  if (user.groupIds) checkIds(user.groupIds, `${path}.group_ids`, faults);
  if (user.roleIds) checkIds(user.roleIds, `${path}.role_ids`, faults);
  if (user.attributes) checkAttributes(user.attributes, attributeKeys, `${path}.attributes`, faults);
  for (const key of ["createTime", "updateTime", "deactivateTime"] as const) {
    const time = user[key];
    if (time && !isValidInstant(time)) {
      faults.push({ path: `${path}.${toSnake(key)}`, description: "must lie in the years 1–9999" });
    }
  }
}

function checkTexts<T extends Record<string, number>>(
  holder: { readonly [K in keyof T]?: string },
  limits: T,
  path: string,
  faults: Fault[],
): void {
  for (const key in limits) {
    const text = holder[key];
    if (text !== undefined) checkText(text, limits[key] as number, `${path}.${toSnake(key)}`, faults);
  }
}

function checkContactPoints(points: readonly ContactPoint[], limit: number, path: string, faults: Fault[]): void {
  if (points.length > MAX_CONTACT_POINTS) {
    faults.push({ path, description: `must have at most ${MAX_CONTACT_POINTS} entries` });
    return;
  }
  let primaries = 0;
  points.forEach((point, i) => {
    if (point.value === "") faults.push({ path: `${path}[${i}].value`, description: "is required" });
    checkText(point.value, limit, `${path}[${i}].value`, faults);
    if (point.type !== undefined) checkText(point.type, 64, `${path}[${i}].type`, faults);
    if (point.primary) primaries += 1;
    if (point.primary && primaries === 2) {
      faults.push({ path: `${path}[${i}].primary`, description: "only one entry may be primary" });
    }
  });
}

function checkIds(ids: readonly string[], path: string, faults: Fault[]): void {
  if (ids.length > MAX_IDS) {
    faults.push({ path, description: `must have at most ${MAX_IDS} entries` });
    return;
  }
  ids.forEach((id, i) => {
    if (id === "") faults.push({ path: `${path}[${i}]`, description: "must not be empty" });
    checkText(id, 256, `${path}[${i}]`, faults);
  });
}

function checkAttributes(
  attributes: Readonly<Record<string, string>>,
  allowedKeys: ReadonlySet<string>,
  path: string,
  faults: Fault[],
): void {
  const entries = Object.entries(attributes);
  if (entries.length > MAX_ATTRIBUTES) {
    faults.push({ path, description: `must have at most ${MAX_ATTRIBUTES} entries` });
    return;
  }
  for (const [key, value] of entries) {
    const at = `${path}[${JSON.stringify(key.slice(0, 64))}]`;
    const refusal = refuseAttributeKey(key, allowedKeys);
    if (refusal) faults.push({ path: at, description: refusal });
    checkText(value, 1024, at, faults);
  }
}

function refuseAttributeKey(key: string, allowedKeys: ReadonlySet<string>): string | undefined {
  if (looksSecret(key)) return "looks like a secret, which an event never carries";
  if (!allowedKeys.has(key)) return "is not one of the server's NUNCIO_USER_ATTRIBUTE_KEYS";
  return undefined;
}

/** Each path names a member of `User` (not its id) once, and no path lies inside another. */
export function checkChangedPaths(
  changed: readonly string[],
  attributeKeys: ReadonlySet<string>,
  path: string,
  faults: Fault[],
): void {
  if (changed.length > MAX_CHANGED_PATHS) {
    faults.push({ path, description: `must have at most ${MAX_CHANGED_PATHS} paths` });
    return;
  }
  const seen = new Set<string>();
  changed.forEach((changedPath, i) => {
    const at = `${path}[${i}]`;
    const refusal = refuseChangedPath(changedPath, attributeKeys);
    if (refusal) faults.push({ path: at, description: refusal });
    else if (seen.has(changedPath)) faults.push({ path: at, description: "is named twice" });
    else if (changedPath.includes(".") && changed.includes(changedPath.slice(0, changedPath.indexOf(".")))) {
      faults.push({ path: at, description: "lies inside another changed path" });
    }
    seen.add(changedPath);
  });
}

function refuseChangedPath(changedPath: string, attributeKeys: ReadonlySet<string>): string | undefined {
  const dot = changedPath.indexOf(".");
  const field = dot < 0 ? changedPath : changedPath.slice(0, dot);
  const unknown = "is not a lowerCamelCase path into User";
  if (field === "id" || !Object.hasOwn(USER_FIELDS, field)) return unknown;
  if (dot < 0) return undefined;
  const member = changedPath.slice(dot + 1);
  if (field === "attributes") return refuseAttributeKey(member, attributeKeys);
  return USER_FIELDS[field as keyof User]?.includes(member) ? undefined : unknown;
}

/** `previous` holds changed paths and nothing else, so that it cannot carry more about a user than what changed. */
export function checkPrevious(previous: User, changed: readonly string[], path: string, faults: Fault[]): void {
  const named = new Set(changed);
  const refuse = (at: string) => faults.push({ path: at, description: "is not named in changed" });
  if (previous.id !== "") faults.push({ path: `${path}.id`, description: "must be empty" });
  for (const key of Object.keys(previous) as (keyof User)[]) {
    if (key === "id" || named.has(key)) continue;
    if (!USER_FIELDS[key]) {
      refuse(`${path}.${toSnake(key)}`);
      continue;
    }
    for (const member of Object.keys(previous[key as ObjectField] ?? {})) {
      if (named.has(`${key}.${member}`)) continue;
      refuse(
        key === "attributes" ? `${path}.attributes[${JSON.stringify(member)}]` : `${path}.${key}.${toSnake(member)}`,
      );
    }
  }
}

/** `displayName` → `display_name`. */
export function toSnake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
