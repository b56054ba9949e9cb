import { create, createRegistry, type JsonObject, type JsonValue, toJson } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import type { ConnectError } from "@connectrpc/connect";
import type { UniversalHandler, UniversalServerRequest, UniversalServerResponse } from "@connectrpc/connect/protocol";
import { file_google_rpc_error_details } from "../../gen/google/rpc/error_details_pb.ts";
import { type Status, StatusSchema } from "../../gen/google/rpc/status_pb.ts";
import { type Fault, invalidArgument, withoutEchoes } from "../core/errors.ts";
import { once, readAll } from "./byte-streams.ts";
import { toConnectError } from "./interceptors/translate-errors.ts";
import type { JsonReading } from "./json-faults.ts";
import type { Judges } from "./judges.ts";

/** The types that stand as `Any` in a failure's details. */
export const ERROR_DETAILS = createRegistry(file_google_rpc_error_details);

const BATCH_PATH = "/nuncio.v1.EventService/BatchPublish";

/**
 * Answers a JSON batch that was refused because some of its events cannot be read: publishes the others, by a second
 * call (the refused one wrote nothing), and answers for all. Undefined for any other request.
 */
export async function answerReadableEvents(
  handler: UniversalHandler,
  request: UniversalServerRequest,
  reading: JsonReading | undefined,
  judges: Judges,
): Promise<UniversalServerResponse | undefined> {
  const batch = reading && handler.requestPath === BATCH_PATH ? splitUnreadable(reading, judges) : undefined;
  return batch && answerSplitBatch(handler, request, batch);
}

function splitUnreadable({ json, faults, sound }: JsonReading, judges: Judges): SplitBatch | undefined {
  if (faults.length === 0) return undefined;
  const judged = withoutEchoes((sound && judges.get(BATCH_PATH)?.judge(sound)) ?? [], faults);
  return splitBatch(json, faults, (place) => judged.filter(({ path }) => path.startsWith(`events[${place}]`)));
}

async function answerSplitBatch(
  handler: UniversalHandler,
  request: UniversalServerRequest,
  { readable, failures }: SplitBatch,
): Promise<UniversalServerResponse> {
  let results: readonly JsonValue[] = [];
  let header = new Headers({ "content-type": "application/json" });
  if ((readable.events as readonly JsonValue[]).length > 0) {
    const body = Buffer.from(JSON.stringify(readable));
    const requestHeader = new Headers(request.header);
    requestHeader.set("content-length", String(body.byteLength));
    // The answer is read here, not by the client: it must not come compressed.
    requestHeader.delete("accept-encoding");
    const response = await handler({ ...request, header: requestHeader, body: once(body) });
    if (response.status >= 400) return response;
    const bytes = await readAll(response.body);
    results = (JSON.parse(bytes.toString("utf8")) as { results?: JsonValue[] }).results ?? [];
    header = new Headers(response.header);
  }
  const body = Buffer.from(JSON.stringify({ results: joinResults(results, failures, { registry: ERROR_DETAILS }) }));
  // What the handler said of its own bytes is not true of these.
  header.delete("content-encoding");
  header.set("content-length", String(body.byteLength));
  return { status: 200, header, body: once(body), trailer: new Headers() };
}

/** A JSON batch that was taken apart: what can be read, and by its place what cannot. */
type SplitBatch = { readonly readable: JsonObject; readonly failures: ReadonlyMap<number, Status> };

/**
 * Takes the events that cannot be read out of a JSON batch, so that one misspelt name fails one event and not a thousand.
 * Undefined if a fault lies outside the events, where only the whole call can fail. `faultsOf` finds what else is wrong
 * with an unreadable event, for the same answer.
 */
function splitBatch(
  json: JsonValue,
  faults: readonly Fault[],
  faultsOf: (place: number) => readonly Fault[],
): SplitBatch | undefined {
  if (typeof json !== "object" || json === null || Array.isArray(json) || !Array.isArray(json.events)) return undefined;
  const places = faults.map(({ path }) => Number(/^events\[(\d+)\]/.exec(path)?.[1] ?? Number.NaN));
  if (places.some(Number.isNaN)) return undefined;
  const failures = new Map<number, Status>();
  for (const place of new Set(places)) {
    const own = faults.filter((_, i) => places[i] === place);
    failures.set(place, toStatus(toConnectError(invalidArgument("INVALID_EVENT", [...own, ...faultsOf(place)]))));
  }
  const readable = { ...json, events: json.events.filter((_, i) => !failures.has(i)) };
  return { readable, failures };
}

/** Puts the failures back to their places among the results of the others. */
function joinResults(
  results: readonly JsonValue[],
  failures: ReadonlyMap<number, Status>,
  registry: Parameters<typeof toJson>[2],
): JsonValue[] {
  const joined: JsonValue[] = [];
  let next = 0;
  for (let place = 0; place < results.length + failures.size; place += 1) {
    const failure = failures.get(place);
    joined.push(failure ? { failure: toJson(StatusSchema, failure, registry) } : (results[next++] as JsonValue));
  }
  return joined;
}

/** A wire error as `google.rpc.Status`; Connect's codes are those of gRPC. */
export function toStatus(error: ConnectError): Status {
  const details = error.details.flatMap((detail) =>
    "desc" in detail ? [anyPack(detail.desc, create(detail.desc, detail.value))] : [],
  );
  return create(StatusSchema, { code: error.code, message: error.rawMessage, details });
}
