import { create } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import {
  type BatchPublishRequest,
  type BatchPublishResponse,
  BatchPublishResponseSchema,
  type PublishResult,
  PublishResultSchema,
} from "../../gen/nuncio/v1/event_service_pb.ts";
import { type Fault, invalidArgument, NuncioError } from "../core/errors.ts";
import type { AppendResult, AppendRow } from "../store/outbox/append.ts";
import { refuseUnknownFields } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { toConnectError } from "./interceptors/translate-errors.ts";
import { toAppendRow, toPublishResponse, traceparentOf } from "./publish.ts";
import { toStatus } from "./unreadable-events.ts";

const MAX_EVENTS = 1000;

/** Publishes each event for itself: what is wrong with one becomes its result, the others go on. */
export function batchPublish(deps: RpcDependencies) {
  return async (request: BatchPublishRequest, context: HandlerContext): Promise<BatchPublishResponse> => {
    checkRequest(request);
    const traceparent = traceparentOf(context);
    const admit = admission(deps);
    const rows = request.events.map((event, i) =>
      attempt(() => admit(toAppendRow(deps, event, `events[${i}]`, traceparent))),
    );
    const good = rows.filter((row): row is AppendRow => !(row instanceof NuncioError));
    const appended = good.length === 0 ? [] : await appendOrFail(deps, good);
    let next = 0;
    const results = rows.map((row) => {
      if (row instanceof NuncioError) return toFailure(row);
      const result = appended instanceof NuncioError ? appended : (appended[next++] as AppendResult);
      if (result instanceof NuncioError) return toFailure(result);
      const response = attempt(() => toPublishResponse(deps, row, result));
      return response instanceof NuncioError
        ? toFailure(response)
        : create(PublishResultSchema, { result: { case: "success", value: response } });
    });
    return create(BatchPublishResponseSchema, { results });
  };
}

/** Once an event of a tenant is over its quota, so are those after it: they must not overtake it. */
function admission({ quotas }: Pick<RpcDependencies, "quotas">): (row: AppendRow) => AppendRow {
  const refused = new Map<string, NuncioError>();
  return (row) => {
    const error = refused.get(row.tenantId) ?? attempt(() => quotas.admit(row.tenantId));
    if (!(error instanceof NuncioError)) return row;
    refused.set(row.tenantId, error);
    throw error;
  };
}

function checkRequest(request: BatchPublishRequest): void {
  const faults: Fault[] = [];
  refuseUnknownFields(request, "", faults);
  if (request.events.length < 1 || request.events.length > MAX_EVENTS) {
    faults.push({ path: "events", description: `must have 1–${MAX_EVENTS} events, not ${request.events.length}` });
  }
  if (faults.length > 0) throw invalidArgument("INVALID_REQUEST", faults);
}

/** A store that is away fails every event that needed it, and not the answers about the others. */
async function appendOrFail(deps: RpcDependencies, rows: readonly AppendRow[]): Promise<AppendResult[] | NuncioError> {
  try {
    return await deps.groupCommit.publish(rows);
  } catch (error) {
    if (error instanceof NuncioError) return error;
    throw error;
  }
}

function attempt<T>(work: () => T): T | NuncioError {
  try {
    return work();
  } catch (error) {
    if (error instanceof NuncioError) return error;
    throw error;
  }
}

function toFailure(error: NuncioError): PublishResult {
  return create(PublishResultSchema, { result: { case: "failure", value: toStatus(toConnectError(error)) } });
}
