import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import type { Logger } from "../../logger.ts";
import { PRINCIPAL } from "./authenticate.ts";

/** How one call ended: `code` as the log names it, `ok` or a Connect code. */
export type CallEnd = { readonly rpc: string; readonly code: string; readonly durationMs: number };

/** One line per call: what was called, by whom, how it ended and how long it took. Ids only, nothing of the request. */
export function logCalls(logger: Logger, nowMs: () => number, onCall: (end: CallEnd) => void): Interceptor {
  return (next) => async (request) => {
    const startedAtMs = nowMs();
    const ended = (code: string) => {
      const end: CallEnd = {
        rpc: `${request.service.typeName}/${request.method.name}`,
        code,
        durationMs: Math.round((nowMs() - startedAtMs) * 10) / 10,
      };
      onCall(end);
      const who = { tenantId: tenantOf(request.message), principal: request.contextValues.get(PRINCIPAL)?.id };
      logger.info({ ...end, ...who }, "rpc.answered");
    };
    try {
      const response = await next(request);
      ended("ok");
      return response;
    } catch (error) {
      ended(error instanceof ConnectError ? Code[error.code] : "unknown");
      throw error;
    }
  };
}

/** The tenant that a request names, if it looks like one; of a batch none, since it may hold many. */
function tenantOf(message: unknown): string | undefined {
  const request = message as { tenantId?: unknown; event?: { tenantId?: unknown } };
  const tenantId = request.tenantId ?? request.event?.tenantId;
  return typeof tenantId === "string" ? tenantId.slice(0, 64) : undefined;
}
