import { timingSafeEqual } from "node:crypto";
import type { Secret } from "./secret.ts";
import { type SignedContent, signIdentity, signStandard, toSigningKey } from "./signature.ts";

/** A request as a receiver got it. Names of headers in lower case. */
export type ReceivedRequest = {
  readonly headers: Readonly<Record<string, string | undefined>>;
  readonly body: Buffer;
};

/** One of the two schemes, which are independent of each other. */
export type Scheme = "standard" | "identity";

/** What is wrong with a signature, as a code; `NO_MATCH` may come with hints. */
export type VerificationFault =
  | "HEADER_MISSING"
  | "HEADER_MALFORMED"
  | "TIMESTAMP_TOO_OLD"
  | "TIMESTAMP_IN_FUTURE"
  | "NO_MATCH";

export type Verdict = {
  readonly scheme: Scheme;
  /** The header that holds the signatures. */
  readonly header: string;
  readonly fault: VerificationFault | undefined;
  /** For a person: what was met, and what to do next. */
  readonly explanation: string;
};

/** How far a receiver lets the time of a request and its own clock lie apart, in seconds: that of both schemes' libraries. */
export const TOLERANCE_SECONDS = 300;

/**
 * Judges both schemes as a receiver's library would, and says of each what is wrong with it.
 *
 * `nowSeconds` undefined: the time is not judged, for a request that was kept.
 */
export function verifyRequest(
  request: ReceivedRequest,
  secrets: readonly Secret[],
  nowSeconds: number | undefined,
): readonly [Verdict, Verdict] {
  return [verifyStandard(request, secrets, nowSeconds), verifyIdentity(request, secrets, nowSeconds)];
}

function verifyStandard(request: ReceivedRequest, secrets: readonly Secret[], nowSeconds: number | undefined): Verdict {
  const { headers } = request;
  const header = "webhook-signature";
  const verdict = verdictOf("standard", header);
  const missing = ["webhook-id", "webhook-timestamp", header].filter((name) => !headers[name]);
  if (missing.length > 0) return verdict("HEADER_MISSING", `there is no ${missing.join(" and no ")}`);
  const signatures = (headers[header] ?? "").split(" ").filter((signature) => signature.startsWith("v1,"));
  if (signatures.length === 0) {
    return verdict(
      "HEADER_MALFORMED",
      `${header} holds no v1 signature: expected v1,<base64>, several apart by a space`,
    );
  }
  const timestamp = toSeconds(headers["webhook-timestamp"]);
  if (timestamp === undefined) return verdict("HEADER_MALFORMED", `webhook-timestamp ${NO_TIME}`);
  const sign = (bytes: Buffer) => {
    const content: SignedContent = { id: headers["webhook-id"] ?? "", timestamp, body: bytes };
    return secrets.map((secret) => signStandard([toSigningKey(secret)], content));
  };
  const match = judgeMatch(verdict, signatures, request, sign);
  return withTime(match, verdict, judgeTime("webhook-timestamp", timestamp, nowSeconds));
}

function verifyIdentity(request: ReceivedRequest, secrets: readonly Secret[], nowSeconds: number | undefined): Verdict {
  const { headers } = request;
  const header = "x-identity-signature";
  const verdict = verdictOf("identity", header);
  const value = headers[header];
  if (!value) return verdict("HEADER_MISSING", `there is no ${header}`);
  const parts = value.split(",").map((part) => part.trim());
  const time = parts.find((part) => part.startsWith("t="))?.slice(2);
  const signatures = parts.filter((part) => part.startsWith("v1="));
  if (time === undefined || signatures.length === 0) {
    return verdict("HEADER_MALFORMED", `${header} is not t=<seconds>,v1=<hex>`);
  }
  const timestamp = toSeconds(time);
  if (timestamp === undefined) return verdict("HEADER_MALFORMED", `its t ${NO_TIME}`);
  const sign = (bytes: Buffer) =>
    secrets.map((secret) => {
      const signed = signIdentity([toSigningKey(secret)], { id: "", timestamp, body: bytes });
      return signed.slice(signed.indexOf("v1="));
    });
  const match = judgeMatch(verdict, signatures, request, sign);
  return withTime(match, verdict, judgeTime("its t", timestamp, nowSeconds));
}

type MakeVerdict = (fault: VerificationFault | undefined, explanation: string) => Verdict;

function verdictOf(scheme: Scheme, header: string): MakeVerdict {
  return (fault, explanation) => ({ scheme, header, fault, explanation });
}

const NO_TIME = "is not a time in whole seconds since 1970";

function toSeconds(text: string | undefined): number | undefined {
  return text !== undefined && /^[1-9]\d{0,11}$/.test(text) ? Number(text) : undefined;
}

type Untimely = { readonly fault: VerificationFault; readonly explanation: string };

function judgeTime(what: string, timestamp: number, nowSeconds: number | undefined): Untimely | undefined {
  if (nowSeconds === undefined) return undefined;
  const age = nowSeconds - timestamp;
  const tolerance = `receivers take ${TOLERANCE_SECONDS} s`;
  if (age > TOLERANCE_SECONDS) {
    const explanation = `${what} is ${Math.round(age)} s old, ${tolerance}: a kept request, or a clock that is wrong`;
    return { fault: "TIMESTAMP_TOO_OLD", explanation };
  }
  if (age < -TOLERANCE_SECONDS) {
    const explanation = `${what} lies ${Math.round(-age)} s ahead, ${tolerance}: the clock here is slow, or that of Postgres fast`;
    return { fault: "TIMESTAMP_IN_FUTURE", explanation };
  }
  return undefined;
}

/** The time first, as a library would say it; and what it would have said of the signature, which is worth more here. */
function withTime(match: Verdict, verdict: MakeVerdict, untimely: Untimely | undefined): Verdict {
  if (untimely === undefined) return match;
  const beside = match.fault === undefined ? `apart from that ${match.explanation}` : `and ${match.explanation}`;
  return verdict(untimely.fault, `${untimely.explanation}; ${beside}`);
}

function judgeMatch(
  verdict: MakeVerdict,
  signatures: readonly string[],
  { headers, body }: ReceivedRequest,
  sign: (body: Buffer) => readonly string[],
): Verdict {
  const matches = (bytes: Buffer) => {
    const expected = sign(bytes);
    return expected.findIndex((one) => signatures.some((signature) => isSame(signature, one)));
  };
  const secret = matches(body);
  const counted = signatures.length === 1 ? "its signature" : `one of its ${signatures.length} signatures`;
  if (secret >= 0) return verdict(undefined, `${counted} matches secret ${secret + 1}`);
  const change = CHANGES.find(({ undo }) => {
    const before = undo(body);
    return before !== undefined && !before.equals(body) && matches(before) >= 0;
  });
  if (change !== undefined) return verdict("NO_MATCH", change.explanation);
  const length = headers["content-length"];
  if (length !== undefined && Number(length) !== body.length) {
    return verdict(
      "NO_MATCH",
      `the body has ${body.length} bytes and content-length says ${length}: it was cut or changed`,
    );
  }
  const none =
    signatures.length === 1
      ? "its signature matches no secret"
      : `none of its ${signatures.length} signatures matches a secret`;
  return verdict(
    "NO_MATCH",
    `${none} that was given: another secret signed it (of another subscription, or replaced since), or the body was changed`,
  );
}

/** What befalls bodies between the socket and the check, each as the step back to what was sent. */
const CHANGES: readonly { undo: (body: Buffer) => Buffer | undefined; explanation: string }[] = [
  {
    undo: (body) => Buffer.from(body.toString("utf8").replace(/\r?\n$/, "")),
    explanation: "the body has a line break at its end that was not sent: save the bytes as they come",
  },
  {
    undo: (body) => parsedAnew(body),
    explanation:
      "the body was parsed and written again (other spaces or escapes): verify the raw bytes, before anything parses them",
  },
  {
    undo: (body) => Buffer.from(body.toString("latin1"), "utf8"),
    explanation: "the body was written as Latin-1: verify bytes, not text",
  },
  {
    undo: (body) => Buffer.from(body.toString("utf8"), "latin1"),
    explanation: "the body was read as Latin-1 and written as UTF-8: verify bytes, not text",
  },
];

function parsedAnew(body: Buffer): Buffer | undefined {
  try {
    return Buffer.from(JSON.stringify(JSON.parse(body.toString("utf8"))));
  } catch {
    return undefined;
  }
}

function isSame(given: string, expected: string): boolean {
  const [a, b] = [Buffer.from(given), Buffer.from(expected)];
  return a.length === b.length && timingSafeEqual(a, b);
}
