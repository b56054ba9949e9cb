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

  it("says of a request that was kept whether its signature is good all the same", () => {
    const [good] = verifyRequest(request({ timestamp: NOW - 9_000 }), [SECRET], NOW);
    expect(good).toMatchObject({
      fault: "TIMESTAMP_TOO_OLD",
      explanation: expect.stringContaining("apart from that its signature matches"),
    });
    const [bad] = verifyRequest(request({ timestamp: NOW - 9_000 }), [OLD_SECRET], NOW);
    expect(bad).toMatchObject({
      fault: "TIMESTAMP_TOO_OLD",
      explanation: expect.stringContaining("and its signature matches no secret"),
    });
  });

  it.each(["0x3e8", "1e3", "1000.0", "-5", " 5", "0", ""])(
    "takes no time that is not written in digits: %j",
    (time) => {
      const [standard] = verifyRequest(change(request(), { "webhook-timestamp": time }), [SECRET], undefined);
      expect(standard.fault).toBe(time === "" ? "HEADER_MISSING" : "HEADER_MALFORMED");
    },
  );

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
    ["twice encoded", Buffer.from(BODY.toString("latin1"), "utf8"), "was read as Latin-1"],
    ["another encoding", Buffer.from(BODY.toString("utf8"), "latin1"), "was written as Latin-1"],
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
