import type { Fault } from "./errors.ts";

const TOKEN = /^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$/;
const VISIBLE_VALUE = /^[\x21-\x7e]([\x20-\x7e]{0,1022}[\x21-\x7e])?$/;
const MAX_HEADERS = 20;

/** What the sender writes itself, what belongs to one hop (RFC 9110 section 7.6.1), and what frames a message. */
const RESERVED = new Set([
  "connection",
  "content-encoding",
  "content-length",
  "content-type",
  "date",
  "expect",
  "host",
  "http2-settings",
  "keep-alive",
  "proxy-authenticate",
  "proxy-authorization",
  "proxy-connection",
  "te",
  "traceparent",
  "tracestate",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "user-agent",
  "via",
]);
const RESERVED_PREFIXES = ["webhook-", "x-identity-", "svix-"];

/** Faults of a subscription's own headers: nothing in them may shadow ours, frame a message or begin a new line. */
export function checkRequestHeaders(headers: Readonly<Record<string, string>>, path: string, faults: Fault[]): void {
  const names = Object.keys(headers);
  if (names.length > MAX_HEADERS) {
    faults.push({ path, description: `must have at most ${MAX_HEADERS} entries` });
    return;
  }
  const seen = new Set<string>();
  for (const name of names) {
    const at = `${path}[${JSON.stringify(name.slice(0, 64))}]`;
    const lower = name.toLowerCase();
    if (!TOKEN.test(name)) faults.push({ path: at, description: "is no header name of at most 64 characters" });
    else if (RESERVED.has(lower) || RESERVED_PREFIXES.some((prefix) => lower.startsWith(prefix))) {
      faults.push({ path: at, description: "is a header that a subscription cannot set" });
    } else if (seen.has(lower)) faults.push({ path: at, description: "is named twice" });
    seen.add(lower);
    if (!VISIBLE_VALUE.test(headers[name] ?? "")) {
      faults.push({ path: at, description: "must have a value of 1–1,024 visible ASCII characters" });
    }
  }
}
