import { randomUUID } from "node:crypto";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../../../gen/google/rpc/error_details_pb.ts";
import type { ErrorReason } from "../../../gen/nuncio/v1/error_reason_pb.ts";
import {
  AlreadyExistsError,
  FailedPreconditionError,
  type Fault,
  InvalidArgumentError,
  NotFoundError,
  NuncioError,
  PermissionDeniedError,
  type Reason,
  ResourceExhaustedError,
  UnauthenticatedError,
  UnavailableError,
} from "../../core/errors.ts";
import type { Logger } from "../../logger.ts";

const DOMAIN = "nuncio";

/** `core` may not know the proto: a reason of its own that the proto does not document does not compile below. */
type DocumentedReason = Reason & keyof typeof ErrorReason;

const CODES: readonly [new (...args: never[]) => NuncioError, Code][] = [
  [InvalidArgumentError, Code.InvalidArgument],
  [NotFoundError, Code.NotFound],
  [AlreadyExistsError, Code.AlreadyExists],
  [FailedPreconditionError, Code.FailedPrecondition],
  [ResourceExhaustedError, Code.ResourceExhausted],
  [UnavailableError, Code.Unavailable],
  [UnauthenticatedError, Code.Unauthenticated],
  [PermissionDeniedError, Code.PermissionDenied],
];

/** The one place where our errors become wire errors. The cause stays with the error for the log; no protocol sends it. */
export function toConnectError(error: NuncioError): ConnectError {
  const code = CODES.find(([kind]) => error instanceof kind)?.[1] ?? Code.Internal;
  return detailedError(code, error.message, error.reason, error);
}

/** A wire error as every error here has to be: with its reason, its faults, and when to try again. */
export function detailedError(
  code: Code,
  message: string,
  reason: DocumentedReason,
  {
    faults = [],
    retryAfterMs,
    cause,
  }: { faults?: readonly Fault[]; retryAfterMs?: number | undefined; cause?: unknown } = {},
): ConnectError {
  const error = new ConnectError(message, code, undefined, undefined, cause);
  error.details = [{ desc: ErrorInfoSchema, value: { reason, domain: DOMAIN } }];
  if (faults.length > 0) {
    const fieldViolations = faults.map(({ path, description }) => ({ field: path, description }));
    error.details.push({ desc: BadRequestSchema, value: { fieldViolations } });
  }
  if (retryAfterMs !== undefined) {
    error.details.push({ desc: RetryInfoSchema, value: { retryDelay: durationFromMs(retryAfterMs) } });
  }
  return error;
}

/**
 * Turns whatever a handler throws into a wire error. What is not ours to explain becomes INTERNAL with a request id; its
 * cause goes to the log, and never out: an error of the database holds statements and parameters.
 */
export function translateErrors(logger: Logger): Interceptor {
  return (next) => async (request) => {
    try {
      return await next(request);
    } catch (error) {
      if (error instanceof NuncioError) {
        if (error.cause !== undefined) logger.warn({ rpc: rpcName(request), error: error.cause }, "rpc.refused");
        throw toConnectError(error);
      }
      if (error instanceof ConnectError) throw error;
      if (request.signal.aborted)
        throw detailedError(Code.Canceled, "the call was ended", "CALL_ENDED", { cause: error });
      const requestId = randomUUID();
      logger.error({ rpc: rpcName(request), requestId, error }, "rpc.failed");
      throw detailedError(Code.Internal, `internal error; quote request id ${requestId}`, "INTERNAL", { cause: error });
    }
  };
}

function rpcName(request: { service: { typeName: string }; method: { name: string } }): string {
  return `${request.service.typeName}/${request.method.name}`;
}
