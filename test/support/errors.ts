import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";

/** What a call failed with, as a client reads it. */
export type Failure = {
  readonly code: string;
  readonly reason: string | undefined;
  readonly fields: readonly string[];
  readonly retry: boolean;
  readonly message: string;
};

export async function failureOf(call: Promise<unknown>): Promise<Failure> {
  try {
    await call;
  } catch (error) {
    return describeFailure(error);
  }
  throw new Error("the call succeeded");
}

export function describeFailure(error: unknown): Failure {
  if (!(error instanceof ConnectError)) throw error;
  const [info] = error.findDetails(ErrorInfoSchema);
  const [bad] = error.findDetails(BadRequestSchema);
  return {
    code: Code[error.code],
    reason: info?.domain === "nuncio" ? info.reason : undefined,
    fields: bad?.fieldViolations.map(({ field }) => field) ?? [],
    retry: error.findDetails(RetryInfoSchema).length > 0,
    message: error.rawMessage,
  };
}
