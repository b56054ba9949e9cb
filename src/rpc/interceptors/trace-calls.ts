import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { TRACEPARENT_PATTERN } from "../../core/traceparent.ts";

/** What a trace wants to know of a call. */
export type StartCall = (
  rpc: string,
  parent: string | undefined,
) => { readonly traceparent: string | undefined; end(fault: string | undefined): void };

/** Makes each call a part of its caller's trace. What is published in it continues from here. */
export function traceCalls(startCall: StartCall): Interceptor {
  return (next) => async (request) => {
    const parent = request.header.get("traceparent") ?? "";
    const span = startCall(
      `${request.service.typeName}/${request.method.name}`,
      TRACEPARENT_PATTERN.test(parent) ? parent : undefined,
    );
    if (span.traceparent !== undefined) request.header.set("traceparent", span.traceparent);
    try {
      const response = await next(request);
      span.end(undefined);
      return response;
    } catch (error) {
      span.end(error instanceof ConnectError ? Code[error.code] : "unknown");
      throw error;
    }
  };
}
