import type { AcceptedEvent } from "./event.ts";
import { type Instant, toRfc3339Millis } from "./instant.ts";
import { USER_FIELDS, type User } from "./user.ts";

/** What precedes the sequence in every body. The database function `nuncio.append_events` writes the same text. */
export const BODY_HEAD = '{"specversion":"1.0","usersequence":"';

/** The digits of `usersequence`: zero-padded, so that text order is number order. */
export const SEQUENCE_DIGITS = 20;

/**
 * Everything of the body that follows the sequence's digits: a CloudEvents 1.0 object (DESIGN section 3). Its bytes are
 * stored, signed and sent as they are for as long as the event lives, so this order of members never changes.
 */
export function renderBodyTail(event: AcceptedEvent): string {
  const changed = event.changed.length > 0;
  const attributes = {
    id: event.id,
    source: `/tenants/${event.tenantId}`,
    type: event.type,
    subject: `users/${encodeURIComponent(event.user.id)}`,
    time: toRfc3339Millis(event.occurTime),
    datacontenttype: "application/json",
    dataschema: `urn:nuncio:schema:${event.type}:1`,
    tenantid: event.tenantId,
    data: {
      user: toWireUser(event.user),
      changed: changed ? event.changed : undefined,
      previous: changed ? toWirePrevious(event.previous, event.changed) : undefined,
      actor: event.actor && { type: event.actor.type, id: event.actor.id },
      reason: event.reason,
    },
  };
  return `",${JSON.stringify(attributes).slice(1)}`;
}

/** The whole body, as the database stores it. */
export function spliceSequence(sequence: bigint, tail: string): string {
  return BODY_HEAD + String(sequence).padStart(SEQUENCE_DIGITS, "0") + tail;
}

/** Bytes of the body once the sequence is in it. */
export function bodyByteLength(tail: string): number {
  return BODY_HEAD.length + SEQUENCE_DIGITS + Buffer.byteLength(tail);
}

type WireValue = string | number | boolean | null | readonly WireValue[] | { [key: string]: WireValue };

function toWireUser(user: User): { [key: string]: WireValue } {
  const wire: { [key: string]: WireValue } = {};
  for (const field in USER_FIELDS) {
    const value = toWireValue(user[field as keyof User]);
    if (value !== undefined) wire[field] = value;
  }
  return wire;
}

function toWireValue(value: User[keyof User]): WireValue | undefined {
  if (value === undefined || typeof value === "string" || Array.isArray(value)) return value;
  if ("nanos" in value && typeof value.nanos === "number") return toRfc3339Millis(value as Instant);
  return value as { [key: string]: WireValue };
}

/** Every changed path with what stood there, `null` where nothing did; in the order of the wire, not of `changed`. */
function toWirePrevious(previous: User | undefined, changed: readonly string[]): { [key: string]: WireValue } {
  const wire: { [key: string]: WireValue } = {};
  const named = new Set(changed);
  const before = toWireUser(previous ?? { id: "" });
  for (const field in USER_FIELDS) {
    if (named.has(field)) wire[field] = before[field] ?? null;
    const members = changed.filter((path) => path.startsWith(`${field}.`)).map((path) => path.slice(field.length + 1));
    if (members.length === 0) continue;
    const order = USER_FIELDS[field as keyof User] ?? [];
    members.sort((a, b) => order.indexOf(a) - order.indexOf(b) || (a < b ? -1 : 1));
    const holder = (before[field] ?? {}) as { [key: string]: WireValue };
    wire[field] = Object.fromEntries(members.map((member) => [member, holder[member] ?? null]));
  }
  return wire;
}

/**
 * What is left of a body once its user is erased: ids, type, sequence and times. The members that stay keep their order
 * and their bytes.
 */
export function eraseBody(body: string): string {
  const { data, ...attributes } = JSON.parse(body) as { data: { user: { id: string; externalId?: string } } };
  const { id, externalId } = data.user;
  return JSON.stringify({ ...attributes, data: { user: { id, externalId } } });
}
