import { fromCode, toCode } from "./codes.ts";

/** Names as on the wire, append-only; an outcome's number in the proto and in the database is its place plus one. */
export const OUTCOME_KINDS = [
  "delivered",
  "http_status",
  "redirect",
  "address_refused",
  "dns_failed",
  "connect_failed",
  "tls_failed",
  "timeout",
  "connection_reset",
  "protocol_error",
] as const;
export type OutcomeKind = (typeof OUTCOME_KINDS)[number];

/** Where an attempt was when it ended. */
export type Phase = "dns" | "connect" | "first_byte" | "body";

/** Milliseconds spent in each phase that was entered. */
export type PhaseDurations = { readonly [P in Phase]?: number };

/** What one attempt met: a value, whatever the receiver did. `detail` holds none of the receiver's data. */
export type Outcome =
  | { readonly kind: "delivered"; readonly httpStatus: number }
  | {
      readonly kind: "http_status" | "redirect";
      readonly httpStatus: number;
      readonly detail: string;
      readonly excerpt: string;
    }
  | {
      readonly kind: Exclude<OutcomeKind, "delivered" | "http_status" | "redirect">;
      readonly httpStatus?: number;
      readonly detail: string;
    };

export function toOutcomeCode(kind: OutcomeKind): number {
  return toCode(OUTCOME_KINDS, kind);
}

export function fromOutcomeCode(code: number): OutcomeKind {
  return fromCode(OUTCOME_KINDS, code);
}

/** The status line decides: 2xx acknowledges, whatever became of the body after it. */
export function classifyStatus(httpStatus: number, excerpt: string): Outcome {
  if (httpStatus >= 200 && httpStatus < 300) return { kind: "delivered", httpStatus };
  if (httpStatus >= 300 && httpStatus < 400) {
    return { kind: "redirect", httpStatus, detail: `HTTP ${httpStatus}: redirects are not followed`, excerpt };
  }
  return { kind: "http_status", httpStatus, detail: `HTTP ${httpStatus}`, excerpt };
}

const CONNECT_CODES = new Set([
  "ECONNREFUSED",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "EHOSTDOWN",
  "ENETDOWN",
  "EADDRNOTAVAIL",
  "ETIMEDOUT",
  "EACCES",
  "EPERM",
]);
const RESET_CODES = new Set(["ECONNRESET", "EPIPE", "ECONNABORTED", "UND_ERR_SOCKET"]);
const TLS_CODE =
  /^(ERR_TLS_|ERR_SSL_|CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|HOSTNAME_MISMATCH|ERR_OSSL_|CRL_|INVALID_CA|INVALID_PURPOSE|PATH_LENGTH|EPROTO$)/;

/** A stable kind for an error of the socket, TLS or HTTP layer, by its code and the phase it came in. */
export function classifyFailure(error: { readonly code?: unknown; readonly message: string }, phase: Phase): Outcome {
  const code = typeof error.code === "string" ? error.code : "";
  const detail = `${phase}: ${code || "no error code"}`;
  if (TLS_CODE.test(code)) return { kind: "tls_failed", detail };
  if (phase === "connect" && RESET_CODES.has(code)) return { kind: "connect_failed", detail };
  if (RESET_CODES.has(code)) return { kind: "connection_reset", detail };
  if (CONNECT_CODES.has(code)) return { kind: phase === "connect" ? "connect_failed" : "connection_reset", detail };
  if (code.startsWith("HPE_") || code === "UND_ERR_HEADERS_OVERFLOW" || code === "UND_ERR_RESPONSE_EXCEEDED_MAX_SIZE") {
    return { kind: "protocol_error", detail };
  }
  return { kind: phase === "connect" ? "connect_failed" : "protocol_error", detail };
}
