import { randomBytes } from "node:crypto";
import { inspect } from "node:util";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { classifyFailure, classifyStatus } from "../../src/core/attempt.ts";
import { timeLimitWithin } from "../../src/core/delivery.ts";
import { openSecretBox, parseKeyring, SecretKeyError, seal, unseal } from "../../src/core/encryption.ts";
import { InvalidArgumentError } from "../../src/core/errors.ts";
import {
  formatDeliveryId,
  leastUuidAt,
  parseDeliveryId,
  parseSubscriptionId,
  toUuid,
  type Uuid,
  uuidV7EpochMs,
} from "../../src/core/ids.ts";
import { effectivePageSize, formatPageToken, parsePageToken } from "../../src/core/page-token.ts";
import { checkRequestHeaders } from "../../src/core/request-headers.ts";
import { decide } from "../../src/core/retry-policy.ts";
import { longestScheduleMs, parseDuration, parseSchedule } from "../../src/core/schedule.ts";
import { Secret } from "../../src/core/secret.ts";

const failure = { kind: "http_status", httpStatus: 500, detail: "", excerpt: "" } as const;

describe("the retry policy", () => {
  const schedule = parseSchedule("5s,1m,5m,30m,2h,5h,10h,14h,20h,24h") as number[];

  it("[B23] makes exactly one attempt more than the schedule has delays", () => {
    for (let failures = 0; failures < schedule.length; failures += 1) {
      const decision = decide(failure, { failures, schedule, random: 0, remainingMs: Number.POSITIVE_INFINITY });
      expect(decision).toEqual({ kind: "retry", delayMs: schedule[failures] });
    }
    const last = decide(failure, {
      failures: schedule.length,
      schedule,
      random: 0,
      remainingMs: Number.POSITIVE_INFINITY,
    });
    expect(last).toEqual({ kind: "dead_letter", reason: "RETRIES_EXHAUSTED" });
  });

  it("[B23] never retries early, and stretches a delay by a fifth at most", () => {
    fc.assert(
      fc.property(fc.nat(9), fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (failures, random) => {
        const decision = decide(failure, { failures, schedule, random, remainingMs: Number.POSITIVE_INFINITY });
        const delay = schedule[failures] as number;
        expect(decision.kind).toBe("retry");
        if (decision.kind === "retry") {
          expect(decision.delayMs).toBeGreaterThanOrEqual(delay);
          expect(decision.delayMs).toBeLessThanOrEqual(Math.ceil(delay * 1.2));
        }
      }),
    );
  });

  it("ends a delivery whose next attempt would come after its end", () => {
    const decision = decide(failure, { failures: 0, schedule, random: 0, remainingMs: 5_000 });
    expect(decision).toEqual({ kind: "dead_letter", reason: "EXPIRED" });
  });

  it("ends a delivered one, whatever else is true", () => {
    const decision = decide(
      { kind: "delivered", httpStatus: 204 },
      { failures: 99, schedule: [], random: 0.9, remainingMs: -1 },
    );
    expect(decision).toEqual({ kind: "delivered" });
  });

  it("reads durations and refuses what is none", () => {
    expect(parseDuration("250ms")).toBe(250);
    expect(parseDuration("7d")).toBe(604_800_000);
    for (const text of ["", "5", "s", "-1s", "1.5h", "1w"]) expect(parseDuration(text)).toBeUndefined();
    expect(parseSchedule("5s,,1m")).toBeUndefined();
    expect(longestScheduleMs(schedule)).toBeLessThan(parseDuration("7d") as number);
  });
});

describe("the lease", () => {
  it("[B54] has room for the whole request and five seconds to record it, or no request begins", () => {
    fc.assert(
      fc.property(fc.nat(60_000), fc.integer({ min: 1, max: 30_000 }), (remaining, timeout) => {
        const limit = timeLimitWithin(remaining, timeout);
        if (limit === undefined) expect(remaining).toBeLessThan(timeout + 5_000);
        else expect(limit).toBeLessThanOrEqual(Math.min(timeout, remaining - 5_000));
      }),
    );
  });

  it("[B54] that is just long enough by its setting loses what the claim took, and no more than a second", () => {
    expect(timeLimitWithin(20_000, 15_000)).toBe(15_000);
    expect(timeLimitWithin(19_993, 15_000)).toBe(14_993);
    expect(timeLimitWithin(18_999, 15_000)).toBeUndefined();
    expect(timeLimitWithin(5_150, 200)).toBeUndefined();
  });
});

describe("an attempt", () => {
  it("[B19] is acknowledged by 2xx alone", () => {
    for (let status = 200; status < 600; status += 1) {
      const kind = status < 300 ? "delivered" : status < 400 ? "redirect" : "http_status";
      expect(classifyStatus(status, "").kind).toBe(kind);
    }
  });

  const table: [string, "connect" | "first_byte" | "body", string][] = [
    ["ECONNREFUSED", "connect", "connect_failed"],
    ["ECONNRESET", "connect", "connect_failed"],
    ["EHOSTUNREACH", "connect", "connect_failed"],
    ["UND_ERR_CONNECT_TIMEOUT", "connect", "connect_failed"],
    ["DEPTH_ZERO_SELF_SIGNED_CERT", "connect", "tls_failed"],
    ["ERR_TLS_CERT_ALTNAME_INVALID", "connect", "tls_failed"],
    ["ERR_SSL_WRONG_VERSION_NUMBER", "connect", "tls_failed"],
    ["CERT_HAS_EXPIRED", "connect", "tls_failed"],
    ["ECONNRESET", "first_byte", "connection_reset"],
    ["EPIPE", "first_byte", "connection_reset"],
    ["UND_ERR_SOCKET", "first_byte", "connection_reset"],
    ["HPE_INVALID_CONSTANT", "first_byte", "protocol_error"],
    ["UND_ERR_HEADERS_OVERFLOW", "first_byte", "protocol_error"],
    ["", "first_byte", "protocol_error"],
  ];
  for (const [code, phase, kind] of table) {
    it(`[B20] that meets ${code || "an error without code"} in ${phase} is ${kind}`, () => {
      expect(classifyFailure({ code, message: "" }, phase).kind).toBe(kind);
    });
  }
});

describe("ids", () => {
  const uuid = fc.uuid().map((text) => toUuid(text.toLowerCase()));

  it("give a delivery the same id everywhere, and it leads back to its parts", () => {
    fc.assert(
      fc.property(uuid, uuid, (eventKey, subscription) => {
        const id = formatDeliveryId(eventKey, subscription);
        expect(id).toMatch(/^dlv_[a-z2-7]{52}$/);
        expect(parseDeliveryId(id)).toEqual({ eventKey, subscription });
      }),
    );
  });

  it("are refused in any other spelling", () => {
    const id = formatDeliveryId(leastUuidAt(1), leastUuidAt(2));
    for (const text of [id.toUpperCase(), id.slice(0, -1), `${id}a`, id.replace("dlv_", ""), `${id.slice(0, -1)}b`]) {
      expect(parseDeliveryId(text)).toBeUndefined();
    }
    expect(parseSubscriptionId("sub_018F0000-0000-7000-8000-000000000001")).toBeUndefined();
  });

  it("bound a millisecond from below", () => {
    expect(leastUuidAt(0x018f_0000_0000)).toBe("018f0000-0000-0000-0000-000000000000");
    expect(uuidV7EpochMs("018f0000-0001-7abc-8000-000000000000" as Uuid)).toBe(0x018f_0000_0001);
  });
});

describe("a page token", () => {
  const place = leastUuidAt(7);

  it("[B17] leads back to its place in the same list only", () => {
    const token = formatPageToken(["deliveries", "acme", { state: 1 }], [place, place]);
    expect(parsePageToken(["deliveries", "acme", { state: 1 }], token, 2)).toEqual([place, place]);
    for (const list of [
      ["deliveries", "other", { state: 1 }],
      ["deliveries", "acme", {}],
      ["subscriptions", "acme"],
    ]) {
      expect(() => parsePageToken(list, token, 2)).toThrow(InvalidArgumentError);
    }
  });

  it("[B17] is refused when malformed, whatever it holds", () => {
    const good = formatPageToken(["x"], [place]);
    for (const token of ["x", "", "!!!!", `${good}A`, good.slice(0, -2), Buffer.alloc(64).toString("base64url")]) {
      expect(() => parsePageToken(["x"], token, 1)).toThrow(InvalidArgumentError);
    }
    fc.assert(
      fc.property(
        fc.string(),
        (token) => void expect(() => parsePageToken(["x"], token, 1)).toThrow(InvalidArgumentError),
      ),
    );
  });

  it("serves 50 unless asked otherwise and never more than 1,000", () => {
    expect([0, 1, 1000, 5000].map(effectivePageSize)).toEqual([50, 1, 1000, 1000]);
  });
});

describe("a subscription's own headers", () => {
  const faultsOf = (headers: Record<string, string>) => {
    const faults: { path: string; description: string }[] = [];
    checkRequestHeaders(headers, "headers", faults);
    return faults.map(({ path }) => path);
  };

  it("pass when they are plain", () => {
    expect(faultsOf({ Authorization: "Bearer a b", "x-team": "7" })).toEqual([]);
  });

  const refused = [
    "webhook-id",
    "Webhook-Signature",
    "X-Identity-Signature",
    "svix-id",
    "content-type",
    "Content-Length",
    "host",
    "Connection",
    "transfer-encoding",
    "TE",
    "trailer",
    "upgrade",
    "keep-alive",
    "proxy-authorization",
    "traceparent",
    "expect",
    "na me",
    "na:me",
    "",
    "nämé",
    "x\r\ny",
  ];
  for (const name of refused) {
    it(`[B31] cannot have the name ${JSON.stringify(name)}`, () => expect(faultsOf({ [name]: "v" })).toHaveLength(1));
  }

  it("[B31] cannot inject a line or a control character by their value", () => {
    for (const value of ["a\r\nx: y", "a\nb", "a\0b", "\tb", "ü", "", " a", "a ", "x".repeat(1025)]) {
      expect(faultsOf({ "x-a": value })).toEqual(['headers["x-a"]']);
    }
  });

  it("are named once and are twenty at most", () => {
    expect(faultsOf({ "x-a": "1", "X-A": "2" })).toHaveLength(1);
    expect(faultsOf(Object.fromEntries(Array.from({ length: 21 }, (_, i) => [`x-${i}`, "v"])))).toEqual(["headers"]);
  });
});

describe("secrets", () => {
  const key = (byte: number) => Buffer.alloc(32, byte).toString("base64");
  const context = { purpose: "signing_secret", tenantId: "acme", subscriptionId: "s" } as const;
  const old = parseKeyring(`k1:${key(1)}`);
  const rotated = parseKeyring(`k2:${key(2)},k1:${key(1)}`);
  const nonce = Buffer.alloc(12, 3);

  it("print as [redacted] wherever they turn up", () => {
    const secret = new Secret("whsec_x");
    expect([`${secret}`, JSON.stringify({ secret }), inspect({ secret })].join()).not.toContain("whsec");
  });

  it("[B32] open under any key of the ring, and are sealed under the first", () => {
    const sealed = seal(old, new Secret("whsec_x"), context, nonce);
    expect(unseal(rotated, sealed, context).reveal()).toBe("whsec_x");
    expect(openSecretBox(rotated, randomBytes).seal(new Secret("a"), context).keyId).toBe("k2");
    expect(sealed.ciphertext.toString("latin1")).not.toContain("whsec");
  });

  it("[B32] open nowhere else: not under another key, not for another owner, not with a changed bit", () => {
    const sealed = seal(old, new Secret("whsec_x"), context, nonce);
    const wrong = parseKeyring(`k1:${key(9)}`);
    expect(() => unseal(wrong, sealed, context)).toThrow(SecretKeyError);
    expect(() => unseal(parseKeyring(`k9:${key(1)}`), sealed, context)).toThrow(/has no key "k1"/);
    for (const other of [{ tenantId: "b" }, { subscriptionId: "t" }, { purpose: "headers" as const }]) {
      expect(() => unseal(old, sealed, { ...context, ...other })).toThrow(SecretKeyError);
    }
    for (let i = 1; i < sealed.ciphertext.length; i += 1) {
      const broken = Buffer.from(sealed.ciphertext);
      broken[i] = (broken[i] as number) ^ 1;
      expect(() => unseal(old, { ...sealed, ciphertext: broken }, context)).toThrow(SecretKeyError);
    }
  });

  it("name the bad part of a keyring and never show a key", () => {
    const bad = ["", "k1", `:${key(1)}`, `k1:${Buffer.alloc(31).toString("base64")}`, `k1:${key(1)},k1:${key(2)}`];
    for (const text of bad) {
      expect(() => parseKeyring(text)).toThrow(/key/);
      try {
        parseKeyring(text);
      } catch (error) {
        expect(String(error)).not.toContain(key(1));
      }
    }
  });
});
