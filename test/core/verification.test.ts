import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Secret } from "../../src/core/secret.ts";
import { formatSigningSecret, signIdentity, signStandard, toSigningKey } from "../../src/core/signature.ts";
import { type ReceivedRequest, TOLERANCE_SECONDS, verifyRequest } from "../../src/core/verification.ts";

const NOW = 1_795_428_000;
const SECRET = new Secret(formatSigningSecret(Buffer.alloc(32, 7)));
const OLD_SECRET = new Secret(formatSigningSecret(Buffer.alloc(32, 8)));
const BODY = Buffer.from('{"id":"evt_1","data":{"user":{"displayName":"Zoë"}}}');

/** What a worker would send at that time. */
function request({ secrets = [SECRET], timestamp = NOW, body = BODY } = {}): ReceivedRequest {
  const keys = secrets.map(toSigningKey);
  const content = { id: "evt_1", timestamp, body };
  return {
    body,
    headers: {
      "webhook-id": "evt_1",
      "webhook-timestamp": String(timestamp),
      "webhook-signature": signStandard(keys, content),
      "x-identity-signature": signIdentity(keys, content),
    },
  };
}

function change(from: ReceivedRequest, headers: Record<string, string | undefined>): ReceivedRequest {
  return { ...from, headers: { ...from.headers, ...headers } };
}

const faultsOf = (received: ReceivedRequest, secrets = [SECRET], now: number | undefined = NOW) =>
  verifyRequest(received, secrets, now).map(({ fault }) => fault);

describe("verifying a request", () => {
  it("finds what a worker sends good, with either secret of a rotation on either side", () => {
    expect(faultsOf(request())).toEqual([undefined, undefined]);
    expect(faultsOf(request({ secrets: [SECRET, OLD_SECRET] }))).toEqual([undefined, undefined]);
    expect(faultsOf(request({ secrets: [OLD_SECRET] }), [SECRET, OLD_SECRET])).toEqual([undefined, undefined]);
    const [standard] = verifyRequest(request({ secrets: [OLD_SECRET] }), [SECRET, OLD_SECRET], NOW);
    expect(standard.explanation).toContain("secret 2");
  });

  it.each([
    ["a header is missing", change(request(), { "webhook-id": undefined }), ["HEADER_MISSING", undefined]],
    ["the other is", change(request(), { "x-identity-signature": undefined }), [undefined, "HEADER_MISSING"]],
    [
      "no v1",
      change(request(), { "webhook-signature": "v2,abc", "x-identity-signature": "v1=ab" }),
      ["HEADER_MALFORMED", "HEADER_MALFORMED"],
    ],
    [
      "no time",
      change(request(), { "webhook-timestamp": "soon", "x-identity-signature": "t=soon,v1=ab" }),
      ["HEADER_MALFORMED", "HEADER_MALFORMED"],
    ],
    ["it is old", request({ timestamp: NOW - TOLERANCE_SECONDS - 1 }), ["TIMESTAMP_TOO_OLD", "TIMESTAMP_TOO_OLD"]],
    [
      "it is of the future",
      request({ timestamp: NOW + TOLERANCE_SECONDS + 1 }),
      ["TIMESTAMP_IN_FUTURE", "TIMESTAMP_IN_FUTURE"],
    ],
    ["it is just young enough", request({ timestamp: NOW - TOLERANCE_SECONDS }), [undefined, undefined]],
    ["another secret signed", request({ secrets: [OLD_SECRET] }), ["NO_MATCH", "NO_MATCH"]],
    ["another id", change(request(), { "webhook-id": "evt_2" }), ["NO_MATCH", undefined]],
  ])("says which fails, and why: %s", (_, received, faults) => {
    expect(faultsOf(received)).toEqual(faults);
  });

  it("judges no time where it is told not to", () => {
    expect(verifyRequest(request({ timestamp: 1 }), [SECRET], undefined).map(({ fault }) => fault)).toEqual([
      undefined,
      undefined,
    ]);
  });

  it.each([
    ["a line break at the end", Buffer.concat([BODY, Buffer.from("\n")]), "line break"],
    [
      "written anew",
      Buffer.from(JSON.stringify(JSON.parse(BODY.toString()), undefined, 2)),
      "parsed and written again",
    ],
    ["escapes", Buffer.from(BODY.toString().replace("ë", "\\u00eb")), "parsed and written again"],
    ["twice encoded", Buffer.from(BODY.toString("latin1"), "utf8"), "UTF-8 twice"],
    ["something else", Buffer.from(BODY.toString().replace("Zoë", "Zoe")), "another secret"],
  ])("recognises what befell the body: %s", (_, body, hint) => {
    for (const { fault, explanation } of verifyRequest({ ...request(), body }, [SECRET], NOW)) {
      expect(fault).toBe("NO_MATCH");
      expect(explanation).toContain(hint);
    }
  });

  it("throws on nothing and never finds good what nobody signed", () => {
    const text = fc.option(fc.string({ unit: "binary" }), { nil: undefined });
    fc.assert(
      fc.property(text, text, text, text, fc.uint8Array(), (id, timestamp, standard, identity, bytes) => {
        const headers = {
          "webhook-id": id,
          "webhook-timestamp": timestamp,
          "webhook-signature": standard,
          "x-identity-signature": identity,
        };
        expect(faultsOf({ headers, body: Buffer.from(bytes) })).not.toContain(undefined);
      }),
    );
  });
});
