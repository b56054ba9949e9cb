import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import type { Logger } from "../../logger.ts";
import { PRINCIPAL } from "./authenticate.ts";

/** One line per call: what was called, by whom, how it ended and how long it took. Ids only, nothing of the request. */
export function logCalls(logger: Logger, nowMs: () => number): Interceptor {
  return (next) => async (request) => {
    const startedAtMs = nowMs();
    const line = (code: string) => ({
      rpc: `${request.service.typeName}/${request.method.name}`,
      tenantId: tenantOf(request.message),
      principal: request.contextValues.get(PRINCIPAL)?.id,
      code,
      durationMs: Math.round((nowMs() - startedAtMs) * 10) / 10,
    });
    try {
      const response = await next(request);
      logger.info(line("ok"), "rpc.answered");
      return response;
    } catch (error) {
      logger.info(line(error instanceof ConnectError ? Code[error.code] : "unknown"), "rpc.answered");
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
