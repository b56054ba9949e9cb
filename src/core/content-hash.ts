import { hash } from "node:crypto";
import canonicalize from "canonicalize";
import type { EventDraft } from "./event.ts";
import { type Instant, toCanonicalText } from "./instant.ts";

/**
 * SHA-256 over the RFC 8785 form of the event as it was sent, before defaults. The same content gives the same hash
 * whatever the protocol, the order of keys or the version of a protobuf library; the form is ours for that reason.
 */
export function hashContent(draft: EventDraft): Buffer {
  return hash("sha256", canonicalize(toHashable(draft)) as string, "buffer");
}

type Hashable = string | number | boolean | readonly Hashable[] | { readonly [key: string]: Hashable };

/** Times become text with every digit: RFC 8785 numbers are doubles, and a bigint is not JSON. */
function toHashable(value: unknown): Hashable {
  if (Array.isArray(value)) return value.map(toHashable);
  if (typeof value !== "object" || value === null) return value as Hashable;
  if ("seconds" in value && typeof value.seconds === "bigint") return toCanonicalText(value as Instant);
  const members = Object.entries(value).filter(([, member]) => member !== undefined);
  return Object.fromEntries(members.map(([key, member]) => [key, toHashable(member)]));
}
