import { create, type JsonObject, type JsonValue, toJson } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import type { ConnectError } from "@connectrpc/connect";
import { type Status, StatusSchema } from "../../gen/google/rpc/status_pb.ts";
import { type Fault, invalidArgument } from "../core/errors.ts";
import { toConnectError } from "./interceptors/translate-errors.ts";

/** A JSON batch that was taken apart: what can be read, and by its place what cannot. */
export type SplitBatch = { readonly readable: JsonObject; readonly failures: ReadonlyMap<number, Status> };

/**
 * Takes the events that cannot be read out of a JSON batch, so that one misspelt name fails one event and not a thousand.
 * Undefined if a fault lies outside the events, where only the whole call can fail. `faultsOf` finds what else is wrong
 * with an unreadable event, for the same answer.
 */
export function splitBatch(
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
export function joinResults(
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
