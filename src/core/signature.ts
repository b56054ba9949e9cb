import { createHmac, createSecretKey, type KeyObject } from "node:crypto";
import type { Secret } from "./secret.ts";

export const SIGNING_SECRET_PREFIX = "whsec_";
export const SIGNING_SECRET_BYTES = 32;

/** A signing secret made ready for use: decoding it once per secret, not once per request, halves what signing costs. */
export type SigningKey = { readonly standard: KeyObject; readonly identity: KeyObject };

/** `whsec_` and standard base64, from 32 random bytes. */
export function formatSigningSecret(random: Buffer): string {
  return SIGNING_SECRET_PREFIX + random.toString("base64");
}

export function toSigningKey(secret: Secret): SigningKey {
  const text = secret.reveal();
  return {
    // Standard Webhooks signs with the decoded bytes; Stripe's scheme with the text itself. Each library expects its own.
    standard: createSecretKey(Buffer.from(text.slice(SIGNING_SECRET_PREFIX.length), "base64")),
    identity: createSecretKey(Buffer.from(text, "utf8")),
  };
}

/** What one attempt signs: the webhook id, its time in Unix seconds, and the exact bytes that are sent. */
export type SignedContent = { readonly id: string; readonly timestamp: number; readonly body: Buffer };

/** `webhook-signature`: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md */
export function signStandard(keys: readonly SigningKey[], { id, timestamp, body }: SignedContent): string {
  return keys
    .map(
      (key) => `v1,${createHmac("sha256", key.standard).update(`${id}.${timestamp}.`).update(body).digest("base64")}`,
    )
    .join(" ");
}

/** `x-identity-signature`, in the scheme of Stripe: https://docs.stripe.com/webhooks#verify-manually */
export function signIdentity(keys: readonly SigningKey[], { timestamp, body }: SignedContent): string {
  const signatures = keys.map(
    (key) => `v1=${createHmac("sha256", key.identity).update(`${timestamp}.`).update(body).digest("hex")}`,
  );
  return [`t=${timestamp}`, ...signatures].join(",");
}
