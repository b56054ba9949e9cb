/** One bad field of a request: `path` is the proto path, for example `event.user.emails[0].value`. */
export type Fault = { readonly path: string; readonly description: string };

/** The names of `nuncio.v1.ErrorReason` without prefix; `rpc` checks that both lists are the same. */
export type Reason =
  | "INVALID_EVENT"
  | "EVENT_TOO_LARGE"
  | "EVENT_ID_REUSED"
  | "EVENT_NOT_FOUND"
  | "INVALID_REQUEST"
  | "INVALID_PAGE_TOKEN"
  | "MALFORMED_REQUEST"
  | "REQUEST_TOO_LARGE"
  | "SERVER_BUSY"
  | "STORE_UNAVAILABLE"
  | "SUBSCRIPTION_NOT_FOUND"
  | "SUBSCRIPTION_DISABLED"
  | "TOO_MANY_SUBSCRIPTIONS"
  | "REQUEST_ID_REUSED"
  | "DELIVERY_NOT_FOUND"
  | "INVALID_CREDENTIAL"
  | "ROLE_MISSING"
  | "RPC_NOT_FOUND"
  | "INTERNAL"
  | "CALL_ENDED"
  | "TEST_UNDER_WAY"
  | "NO_WORKER"
  | "DELIVERY_WAITS"
  | "DELIVERY_UNDER_WAY"
  | "DELIVERY_NOT_REDRIVABLE"
  | "DELIVERY_ENDED"
  | "REDRIVE_UNDER_WAY"
  | "REDRIVE_NOT_FOUND"
  | "ERASURE_NOT_FOUND"
  | "RATE_EXCEEDED"
  | "TOO_MANY_PENDING"
  | "TOO_MANY_SECRETS";

type Details = { cause?: unknown; faults?: readonly Fault[]; retryAfterMs?: number };

/**
 * What the rules and the store say no with. The message is written for the caller and carries no data of others; the
 * cause is for the log. `rpc/interceptors/translate-errors.ts` alone turns it into a wire error.
 */
export abstract class NuncioError extends Error {
  readonly reason: Reason;
  readonly faults: readonly Fault[];
  /** How long the caller ought to wait; undefined when trying again is no use. */
  readonly retryAfterMs: number | undefined;

  constructor(reason: Reason, message: string, details: Details = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = new.target.name;
    this.reason = reason;
    this.faults = details.faults ?? [];
    this.retryAfterMs = details.retryAfterMs;
  }
}

export class InvalidArgumentError extends NuncioError {}
export class NotFoundError extends NuncioError {}
export class AlreadyExistsError extends NuncioError {}
export class FailedPreconditionError extends NuncioError {}
export class ResourceExhaustedError extends NuncioError {}
export class UnavailableError extends NuncioError {}
export class UnauthenticatedError extends NuncioError {}
export class PermissionDeniedError extends NuncioError {}

/** Every fault of a request in one error. The message names the first ones, for those who only see the message. */
export function invalidArgument(reason: Reason, faults: readonly Fault[]): InvalidArgumentError {
  const named = faults.slice(0, 3).map((fault) => `${fault.path}: ${fault.description}`);
  const more = faults.length > named.length ? `; and ${faults.length - named.length} more` : "";
  return new InvalidArgumentError(reason, named.join("; ") + more, { faults });
}

/**
 * One fault per path, the first; none at or below a path that `unreadable` names: what is reported as unknown or of the
 * wrong kind is not reported again as missing.
 */
export function withoutEchoes(faults: readonly Fault[], unreadable: readonly Fault[] = []): Fault[] {
  const paths = new Set<string>();
  return faults.filter(({ path }) => {
    if (paths.has(path) || unreadable.some((fault) => isAtOrBelow(path, fault.path))) return false;
    paths.add(path);
    return true;
  });
}

function isAtOrBelow(path: string, above: string): boolean {
  return path.startsWith(above) && (path.length === above.length || ".[".includes(path.charAt(above.length)));
}
