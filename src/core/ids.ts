/** A UUID in its usual spelling, lower case. */
export type Uuid = string & { readonly __brand: "Uuid" };

/** `sub_` and the UUIDv7 of the subscription, on the wire. */
export type SubscriptionId = string & { readonly __brand: "SubscriptionId" };

/** `dlv_` and 52 characters that encode the event's key and the subscription's UUID, on the wire. */
export type DeliveryId = string & { readonly __brand: "DeliveryId" };

const UUID_PATTERN = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

export function toUuid(text: string): Uuid {
  if (!UUID_PATTERN.test(text)) throw new Error(`not a lower-case UUID: ${JSON.stringify(text)}`);
  return text as Uuid;
}

export function isUuid(text: string): text is Uuid {
  return UUID_PATTERN.test(text);
}

export function formatSubscriptionId(uuid: Uuid): SubscriptionId {
  return `sub_${uuid}` as SubscriptionId;
}

/** The UUID inside, or undefined if this is no subscription id. */
export function parseSubscriptionId(text: string): Uuid | undefined {
  const uuid = text.startsWith("sub_") ? text.slice(4) : "";
  return UUID_PATTERN.test(uuid) ? (uuid as Uuid) : undefined;
}

/** `ope_` and a UUIDv7, on the wire. */
export function formatOperationalEventId(uuid: Uuid): string {
  return `ope_${uuid}`;
}

/** `rdr_` and a UUIDv7, on the wire. */
export function formatRedriveId(uuid: Uuid): string {
  return `rdr_${uuid}`;
}

/** The UUID inside, or undefined if this is no redrive's id. */
export function parseRedriveId(text: string): Uuid | undefined {
  const uuid = text.startsWith("rdr_") ? text.slice(4) : "";
  return UUID_PATTERN.test(uuid) ? (uuid as Uuid) : undefined;
}

/** `era_` and a UUIDv7, on the wire. */
export function formatErasureId(uuid: Uuid): string {
  return `era_${uuid}`;
}

/** The UUID inside, or undefined if this is no erasure's id. */
export function parseErasureId(text: string): Uuid | undefined {
  const uuid = text.startsWith("era_") ? text.slice(4) : "";
  return UUID_PATTERN.test(uuid) ? (uuid as Uuid) : undefined;
}

/**
 * One id per (event, subscription), the same in every process and after a redrive, with nothing stored for it. It holds
 * the subscription's UUID and not its small key, which would tell how many subscriptions there are.
 */
export function formatDeliveryId(eventKey: Uuid, subscription: Uuid): DeliveryId {
  return `dlv_${toBase32(uuidBytes(eventKey) + uuidBytes(subscription))}` as DeliveryId;
}

/** What a delivery id stands for, or undefined if this is none (also when another spelling of one is given). */
export function parseDeliveryId(text: string): { eventKey: Uuid; subscription: Uuid } | undefined {
  if (!/^dlv_[a-z2-7]{52}$/.test(text)) return undefined;
  const hex = fromBase32(text.slice(4)).slice(0, 64);
  const ids = { eventKey: hexToUuid(hex.slice(0, 32)), subscription: hexToUuid(hex.slice(32)) };
  return formatDeliveryId(ids.eventKey, ids.subscription) === text ? ids : undefined;
}

/** The milliseconds since 1970 that a UUIDv7 begins with. */
export function uuidV7EpochMs(uuid: Uuid): number {
  return Number.parseInt(uuid.slice(0, 8) + uuid.slice(9, 13), 16);
}

/** The least UUID of a millisecond: the bound between what came before it and what came in or after it. */
export function leastUuidAt(epochMs: number): Uuid {
  return hexToUuid(
    Math.max(0, Math.min(epochMs, 2 ** 48 - 1))
      .toString(16)
      .padStart(12, "0")
      .padEnd(32, "0"),
  );
}

function uuidBytes(uuid: Uuid): string {
  return uuid.replaceAll("-", "");
}

function hexToUuid(hex: string): Uuid {
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}` as Uuid;
}

const BASE32 = "abcdefghijklmnopqrstuvwxyz234567";

/** RFC 4648 base32, lower case, unpadded: selectable with a double click, and safe in URLs and file names. */
function toBase32(hex: string): string {
  const bytes = Buffer.from(hex, "hex");
  let text = "";
  let buffered = 0;
  let bits = 0;
  for (const byte of bytes) {
    buffered = ((buffered & 31) << 8) | byte;
    bits += 8;
    while (bits >= 5) {
      bits -= 5;
      text += BASE32[(buffered >> bits) & 31];
    }
  }
  return bits === 0 ? text : text + BASE32[(buffered << (5 - bits)) & 31];
}

function fromBase32(text: string): string {
  let hex = "";
  let buffered = 0;
  let bits = 0;
  for (const letter of text) {
    buffered = ((buffered << 5) | BASE32.indexOf(letter)) & 0x1ff;
    bits += 5;
    while (bits >= 4) {
      bits -= 4;
      hex += ((buffered >> bits) & 15).toString(16);
    }
  }
  return hex;
}
