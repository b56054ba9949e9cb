import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";

/** What the command line ends with. Scripts go by these numbers: they do not change. */
export const EXIT = {
  ok: 0,
  /** The answer is no: a signature that does not match, a test that failed, a check that found a fault. */
  no: 1,
  /** The command line itself is wrong. */
  usage: 2,
  /** The server refused: nothing of that id, an invalid value, a state in which it cannot be done. */
  refused: 3,
  /** The credential is missing, unknown, or has not the role. */
  credential: 4,
  /** The server did not answer, or says to try again later. */
  unavailable: 5,
  /** A fault of ours (sysexits.h, EX_SOFTWARE). */
  bug: 70,
} as const;

/** Ends the command with a message for a person and no stack. */
export class CliError extends Error {
  readonly exitCode: number;

  constructor(exitCode: number, message: string, options?: ErrorOptions) {
    super(message, options);
    this.exitCode = exitCode;
  }
}

const UNANSWERED = [Code.Unavailable, Code.DeadlineExceeded, Code.Canceled, Code.Aborted];
const CREDENTIAL = [Code.Unauthenticated, Code.PermissionDenied];

export function exitCodeOf(error: unknown): number {
  if (error instanceof CliError) return error.exitCode;
  if (!(error instanceof ConnectError)) return EXIT.bug;
  if (mayComeGood(error)) return EXIT.unavailable;
  return CREDENTIAL.includes(error.code) ? EXIT.credential : EXIT.refused;
}

/** The same call may succeed later: nobody answered, or a Nuncio did that says how long to wait. */
export function mayComeGood(error: ConnectError): boolean {
  const isOfNuncio = error.findDetails(ErrorInfoSchema).length > 0;
  return UNANSWERED.includes(error.code) || !isOfNuncio || error.findDetails(RetryInfoSchema).length > 0;
}
