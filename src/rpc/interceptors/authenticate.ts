import { createHash, timingSafeEqual } from "node:crypto";
import { createContextKey, type HandlerContext } from "@connectrpc/connect";
import { PermissionDeniedError, UnauthenticatedError } from "../../core/errors.ts";
import type { Secret } from "../../core/secret.ts";
import { ALL_ROLES, type Role, rolesFor } from "../authorization.ts";
import { toConnectError } from "./translate-errors.ts";

/** Who is calling. */
export type Principal = { readonly id: string; readonly roles: ReadonlySet<Role> };

export const PRINCIPAL = createContextKey<Principal | undefined>(undefined, { description: "who is calling" });

/**
 * Lets a call pass whose credential has a role that the RPC needs. Runs before the body of the request is read: who may
 * not call costs neither memory nor parsing.
 */
export function createGate(operatorKey: Secret): (context: HandlerContext) => void {
  const expected = digest(operatorKey.reveal());
  return (context) => {
    const roles = rolesFor(context.method);
    if (roles === "open") return;
    const principal = identify(context.requestHeader.get("authorization"), expected);
    if (principal === undefined) {
      throw toConnectError(
        new UnauthenticatedError("INVALID_CREDENTIAL", "send a known key as `authorization: Bearer <key>`"),
      );
    }
    if (!roles?.some((role) => principal.roles.has(role))) {
      throw toConnectError(
        new PermissionDeniedError("ROLE_MISSING", `this key has none of the roles ${roles?.join(", ")}`),
      );
    }
    context.values.set(PRINCIPAL, principal);
  };
}

/** Compares digests in constant time: neither the key's length nor a common beginning can be measured. */
function identify(authorization: string | null, expected: Buffer): Principal | undefined {
  const key = /^Bearer +(\S+)$/i.exec(authorization ?? "")?.[1];
  if (key === undefined || !timingSafeEqual(digest(key), expected)) return undefined;
  return { id: "bootstrap_operator", roles: ALL_ROLES };
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
