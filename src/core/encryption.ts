import { createCipheriv, createDecipheriv, createSecretKey, type KeyObject } from "node:crypto";
import { Secret } from "./secret.ts";

/** The keys of `NUNCIO_SECRET_KEYS`: the first encrypts, all decrypt. */
export type Keyring = { readonly current: string; readonly keys: ReadonlyMap<string, KeyObject> };

/** Our keys do not fit what is stored. Starting again does not help; other settings do. */
export class SecretKeyError extends Error {}

/** What is stored: the key's id in clear, and version ‖ nonce ‖ ciphertext ‖ tag. */
export type Sealed = { readonly keyId: string; readonly ciphertext: Buffer };

/** What a ciphertext belongs to; it decrypts nowhere else, so a row that is moved to another tenant is worthless. */
export type SealContext = {
  readonly purpose: "signing_secret" | "headers";
  readonly tenantId: string;
  readonly subscriptionId: string;
};

export const NONCE_BYTES = 12;
const KEY_BYTES = 32;
const TAG_BYTES = 16;
/** The first byte of every ciphertext: AES-256-GCM with a 96-bit random nonce. */
const VERSION = 1;

const KEY_ID_PATTERN = /^[A-Za-z0-9_-]{1,32}$/;

/** `kid:base64,kid:base64`, each key 32 bytes. Throws an Error that names the bad part, never the key. */
export function parseKeyring(text: string): Keyring {
  const keys = new Map<string, KeyObject>();
  for (const [i, part] of text.split(",").entries()) {
    const colon = part.indexOf(":");
    const keyId = part.slice(0, Math.max(colon, 0)).trim();
    const key = Buffer.from(part.slice(colon + 1).trim(), "base64");
    if (!KEY_ID_PATTERN.test(keyId)) throw new Error(`key ${i + 1} has no id of 1–32 of A-Za-z0-9_- before a colon`);
    if (key.length !== KEY_BYTES) throw new Error(`key ${keyId} is ${key.length} bytes of base64, it has to be 32`);
    if (keys.has(keyId)) throw new Error(`key id ${keyId} stands there twice`);
    keys.set(keyId, createSecretKey(key));
  }
  const [current] = keys.keys();
  return { current: current as string, keys };
}

/** Encrypts under the current key. `nonce`: 12 random bytes, never used twice. */
export function seal(keyring: Keyring, plaintext: Secret, context: SealContext, nonce: Buffer): Sealed {
  const key = keyring.keys.get(keyring.current) as KeyObject;
  const cipher = createCipheriv("aes-256-gcm", key, nonce).setAAD(toAdditionalData(context));
  const encrypted = Buffer.concat([cipher.update(plaintext.reveal(), "utf8"), cipher.final()]);
  return {
    keyId: keyring.current,
    ciphertext: Buffer.concat([Buffer.of(VERSION), nonce, encrypted, cipher.getAuthTag()]),
  };
}

/** Decrypts, or throws a SecretKeyError that says whether the key is unknown or the bytes do not belong here. */
export function unseal(keyring: Keyring, { keyId, ciphertext }: Sealed, context: SealContext): Secret {
  const key = keyring.keys.get(keyId);
  if (key === undefined)
    throw new SecretKeyError(`NUNCIO_SECRET_KEYS has no key "${keyId}", which stored secrets need`);
  if (ciphertext[0] !== VERSION || ciphertext.length < 1 + NONCE_BYTES + TAG_BYTES) {
    throw new Error("a stored secret has an unknown format");
  }
  const nonce = ciphertext.subarray(1, 1 + NONCE_BYTES);
  const tag = ciphertext.subarray(-TAG_BYTES);
  const decipher = createDecipheriv("aes-256-gcm", key, nonce, { authTagLength: TAG_BYTES })
    .setAAD(toAdditionalData(context))
    .setAuthTag(tag);
  const encrypted = ciphertext.subarray(1 + NONCE_BYTES, -TAG_BYTES);
  try {
    return new Secret(Buffer.concat([decipher.update(encrypted), decipher.final()]).toString("utf8"));
  } catch (cause) {
    throw new SecretKeyError(`key "${keyId}" of NUNCIO_SECRET_KEYS does not decrypt a stored secret`, { cause });
  }
}

/** JSON quotes its parts: no two contexts have the same bytes. */
function toAdditionalData({ purpose, tenantId, subscriptionId }: SealContext): Buffer {
  return Buffer.from(JSON.stringify([purpose, tenantId, subscriptionId]));
}

/** The keyring in use: seals under the current key with a nonce of its own, and opens whatever was sealed. */
export type SecretBox = {
  seal(plaintext: Secret, context: SealContext): Sealed;
  unseal(sealed: Sealed, context: SealContext): Secret;
  readonly currentKeyId: string;
};

export function openSecretBox(keyring: Keyring, randomBytes: (count: number) => Buffer): SecretBox {
  return {
    seal: (plaintext, context) => seal(keyring, plaintext, context, randomBytes(NONCE_BYTES)),
    unseal: (sealed, context) => unseal(keyring, sealed, context),
    currentKeyId: keyring.current,
  };
}
