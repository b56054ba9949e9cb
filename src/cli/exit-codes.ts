import { Code, ConnectError } from "@connectrpc/connect";

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
} as const;

/** Ends the command with a message for a person and no stack. */
export class CliError extends Error {
  readonly exitCode: number;

  constructor(exitCode: number, message: string, options?: ErrorOptions) {
    super(message, options);
    this.exitCode = exitCode;
  }
}

const UNAVAILABLE = [Code.Unavailable, Code.DeadlineExceeded, Code.ResourceExhausted, Code.Aborted];
const CREDENTIAL = [Code.Unauthenticated, Code.PermissionDenied];

export function exitCodeOf(error: unknown): number {
  if (error instanceof CliError) return error.exitCode;
  if (!(error instanceof ConnectError)) return EXIT.no;
  if (UNAVAILABLE.includes(error.code)) return EXIT.unavailable;
  return CREDENTIAL.includes(error.code) ? EXIT.credential : EXIT.refused;
}
