import { hash } from "node:crypto";
import { InvalidArgumentError } from "./errors.ts";
import { isUuid, type Uuid } from "./ids.ts";

const TOKEN_BYTES_OF_BINDING = 12;

/** Which way a page is turned, in a list that has its newest first. */
export type Direction = "older" | "newer";

/**
 * An opaque place in a list: beyond which key the next page begins, bound to what was listed. The binding is no
 * authority (the tenant is checked anyway); it keeps a token from being read in another list, where it means nothing.
 */
export function formatPageToken(list: unknown, after: readonly Uuid[], direction: Direction = "older"): string {
  return Buffer.concat([bindingOf(list, direction), Buffer.from(JSON.stringify(after))]).toString("base64url");
}

/** The key that the page before ended with; INVALID_PAGE_TOKEN if this is no token of this very list and direction. */
export function parsePageToken(list: unknown, token: string, parts: number, direction: Direction = "older"): Uuid[] {
  const bytes = Buffer.from(token, "base64url");
  const after = parseUuids(bytes.subarray(TOKEN_BYTES_OF_BINDING).toString());
  const bound = isBound(list, bytes, direction);
  if (!bound || after?.length !== parts || bytes.toString("base64url") !== token) {
    throw new InvalidArgumentError("INVALID_PAGE_TOKEN", "page_token: is malformed, or belongs to another list", {
      faults: [{ path: "page_token", description: "is malformed, or belongs to another list; begin again without it" }],
    });
  }
  return after;
}

/** Which way a token of a list that can be turned both ways leads; whether it is one at all is for `parsePageToken`. */
export function directionOf(list: unknown, token: string): Direction {
  return isBound(list, Buffer.from(token, "base64url"), "newer") ? "newer" : "older";
}

function isBound(list: unknown, token: Buffer, direction: Direction): boolean {
  return token.subarray(0, TOKEN_BYTES_OF_BINDING).equals(bindingOf(list, direction));
}

function bindingOf(list: unknown, direction: Direction): Buffer {
  const bound = direction === "older" ? list : [direction, list];
  return hash("sha256", JSON.stringify(bound), "buffer").subarray(0, TOKEN_BYTES_OF_BINDING);
}

function parseUuids(text: string): Uuid[] | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return Array.isArray(value) && value.every((part) => typeof part === "string" && isUuid(part)) ? value : undefined;
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}

/** Page sizes: 50 unless said otherwise, never more than 1,000. */
export const DEFAULT_PAGE_SIZE = 50;
export const MAX_PAGE_SIZE = 1000;

export function effectivePageSize(requested: number): number {
  return requested === 0 ? DEFAULT_PAGE_SIZE : Math.min(requested, MAX_PAGE_SIZE);
}
