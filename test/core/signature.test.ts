import { Webhook as StandardWebhook } from "standardwebhooks";
import Stripe from "stripe";
import { Webhook as SvixWebhook } from "svix";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Secret } from "../../src/core/secret.ts";
import {
  formatSigningSecret,
  type SignedContent,
  signIdentity,
  signStandard,
  toSigningKey,
} from "../../src/core/signature.ts";
import answers from "../vectors/signatures.json" with { type: "json" };

const OTHER_SECRET = formatSigningSecret(Buffer.alloc(32, 1));
const TEN_MINUTES_MS = 600_000;

describe("[B29] the known answers", () => {
  it.each(answers.vectors)("are what we sign: $name", ({ secrets, webhookSignature, identitySignature, ...signed }) => {
    const keys = secrets.map(toKey);
    const content = { ...signed, body: Buffer.from(signed.body) };

    expect(signStandard(keys, content)).toBe(webhookSignature);
    expect(signIdentity(keys, content)).toBe(identitySignature);
  });
});

const content: SignedContent = {
  id: "evt_1",
  timestamp: 1_795_428_000,
  body: Buffer.from('{"id":"evt_1","data":{"user":{"displayName":"Zoë 👩🏽‍🚀"}}}'),
};

type Library = {
  readonly name: string;
  /** Throws unless the content carries the signature of one of the secrets. */
  readonly verify: (signedWith: readonly string[], secret: string, received: SignedContent) => void;
};

const LIBRARIES: readonly Library[] = [
  {
    name: "standardwebhooks",
    verify: (signedWith, secret, received) =>
      new StandardWebhook(secret).verify(received.body, standardHeaders(signedWith)),
  },
  {
    name: "svix",
    verify: (signedWith, secret, received) =>
      new SvixWebhook(secret).verify(received.body, standardHeaders(signedWith)),
  },
  {
    name: "stripe",
    verify: (signedWith, secret, received) =>
      Stripe.webhooks.constructEvent(received.body, signIdentity(signedWith.map(toKey), content), secret),
  },
];

// The libraries read the clock themselves.
beforeEach(() => {
  vi.useFakeTimers({ toFake: ["Date"], now: content.timestamp * 1000 });
});
afterEach(() => {
  vi.useRealTimers();
});

describe.each(LIBRARIES)("[B29] the npm package $name", ({ verify }) => {
  const secret = formatSigningSecret(Buffer.alloc(32, 0xfb));

  it("verifies what we sign", () => {
    expect(() => verify([secret], secret, content)).not.toThrow();
  });

  it("verifies with either secret what two have signed", () => {
    expect(() => verify([secret, OTHER_SECRET], secret, content)).not.toThrow();
    expect(() => verify([OTHER_SECRET, secret], secret, content)).not.toThrow();
  });

  it("refuses each body in which one byte has changed", () => {
    for (let at = 0; at < content.body.length; at += 1) {
      const body = Buffer.from(content.body);
      body[at]! ^= 1;
      expect(() => verify([secret], secret, { ...content, body }), `byte ${at}`).toThrow(/signature/i);
    }
  });

  it("refuses what was signed with another secret", () => {
    expect(() => verify([OTHER_SECRET], secret, content)).toThrow(/signature/i);
  });

  it("refuses what was signed ten minutes ago", () => {
    vi.setSystemTime(content.timestamp * 1000 + TEN_MINUTES_MS);
    expect(() => verify([secret], secret, content)).toThrow(/timestamp/i);
  });
});

function toKey(secret: string) {
  return toSigningKey(new Secret(secret));
}

function standardHeaders(signedWith: readonly string[]): Record<string, string> {
  return {
    "webhook-id": content.id,
    "webhook-timestamp": String(content.timestamp),
    "webhook-signature": signStandard(signedWith.map(toKey), content),
  };
}
