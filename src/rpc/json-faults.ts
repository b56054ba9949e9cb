import {
  type DescEnum,
  type DescField,
  type DescMessage,
  fromJson,
  type JsonObject,
  type JsonValue,
  type Message,
  ScalarType,
} from "@bufbuild/protobuf";
import type { Fault } from "../core/errors.ts";

/** After this many faults the rest is not looked at: an answer, not a list of a megabyte. */
const MAX_FAULTS = 100;

/** A JSON request that the parser has refused, read a second time with more patience. */
export type JsonReading = {
  readonly json: JsonValue;
  /** Every fault of form: unknown fields, unknown enum names, values of the wrong kind, each with its proto path. */
  readonly faults: readonly Fault[];
  /** What is left without them, so that it can be judged in the same answer. Undefined if that is no message. */
  readonly sound: Message | undefined;
};

/** The parser names only the first fault that it meets, without a path; this finds them all. */
export function readFaultyJson(schema: DescMessage, json: JsonValue): JsonReading {
  const faults: Fault[] = [];
  const sound = soundMessage(schema, json, "", faults);
  // With too many faults not everything was looked at, and what is missing from the rest was perhaps never read.
  const isWhole = sound !== undefined && faults.length < MAX_FAULTS;
  return { json, faults: faults.slice(0, MAX_FAULTS), sound: isWhole ? parse(schema, sound) : undefined };
}

function parse(schema: DescMessage, json: JsonValue): Message | undefined {
  try {
    return fromJson(schema, json);
  } catch (error) {
    // The parser refuses something that the reading here lets pass: a number out of range, say.
    if (error instanceof Error) return undefined;
    throw error;
  }
}

// Each of these returns the part of the value that has no fault, undefined where nothing is left, and adds the faults.

function soundMessage(schema: DescMessage, json: JsonValue, path: string, faults: Fault[]): JsonValue | undefined {
  if (schema.typeName.startsWith("google.protobuf.")) return soundWellKnown(schema, json, path, faults);
  if (!isObject(json)) return refuse(faults, path || "$", "must be a JSON object");
  const sound: JsonObject = {};
  for (const [key, value] of Object.entries(json)) {
    if (faults.length >= MAX_FAULTS) break;
    const field = schema.fields.find((known) => known.jsonName === key || known.name === key);
    if (!field) {
      refuse(faults, join(path, key.slice(0, 64)), "is an unknown field");
      continue;
    }
    const member = soundField(field, value, join(path, field.name), faults);
    if (member !== undefined) sound[key] = member;
  }
  return sound;
}

function soundField(field: DescField, json: JsonValue, path: string, faults: Fault[]): JsonValue | undefined {
  if (json === null) return null;
  if (field.fieldKind === "list") {
    if (!Array.isArray(json)) return refuse(faults, path, "must be a JSON array");
    // An item that goes leaves an empty one behind: the others keep their places, and with them their paths.
    return json.map(
      (item, i) => soundValue(field, field.listKind, item, `${path}[${i}]`, faults) ?? emptyItem(field.listKind),
    );
  }
  if (field.fieldKind === "map") {
    if (!isObject(json)) return refuse(faults, path, "must be a JSON object");
    // Not by assignment: a key may be `__proto__`.
    return Object.fromEntries(
      Object.entries(json).flatMap(([key, item]) => {
        const value = soundValue(field, field.mapKind, item, `${path}[${JSON.stringify(key.slice(0, 64))}]`, faults);
        return value === undefined ? [] : [[key, value]];
      }),
    );
  }
  return soundValue(field, field.fieldKind, json, path, faults);
}

type Kind = "scalar" | "enum" | "message";

/** Every repeated scalar of our API is a string. */
function emptyItem(kind: Kind): JsonValue {
  return kind === "message" ? {} : kind === "enum" ? 0 : "";
}

function soundValue(
  field: DescField,
  kind: Kind,
  json: JsonValue,
  path: string,
  faults: Fault[],
): JsonValue | undefined {
  if (kind === "message" && field.message) return soundMessage(field.message, json, path, faults);
  if (kind === "enum" && field.enum) return soundEnum(field.enum, json, path, faults);
  if (kind === "scalar" && field.scalar !== undefined) return soundScalar(field.scalar, json, path, faults);
  return json;
}

function soundEnum(schema: DescEnum, json: JsonValue, path: string, faults: Fault[]): JsonValue | undefined {
  if (typeof json === "number" && Number.isInteger(json)) return json;
  if (typeof json === "string" && schema.values.some(({ name }) => name === json)) return json;
  const shown = typeof json === "string" ? JSON.stringify(json.slice(0, 64)) : `a ${typeof json}`;
  return refuse(faults, path, `is ${shown}, not a value of ${schema.name}`);
}

function soundScalar(scalar: ScalarType, json: JsonValue, path: string, faults: Fault[]): JsonValue | undefined {
  if (scalar === ScalarType.STRING) {
    if (typeof json !== "string") return refuse(faults, path, "must be a JSON string");
    if (!json.isWellFormed()) return refuse(faults, path, "has half of a surrogate pair in it");
  } else if (scalar === ScalarType.BOOL) {
    if (typeof json !== "boolean") return refuse(faults, path, "must be true or false");
  } else if (!/^-?\d{1,20}$/.test(String(json)) || typeof json === "boolean") {
    return refuse(faults, path, "must be a whole number");
  }
  return json;
}

function soundWellKnown(schema: DescMessage, json: JsonValue, path: string, faults: Fault[]): JsonValue | undefined {
  try {
    fromJson(schema, json);
    return json;
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    const expected = schema.typeName === "google.protobuf.Timestamp" ? "an RFC 3339 time" : `a ${schema.typeName}`;
    return refuse(faults, path, `must be ${expected}`);
  }
}

function refuse(faults: Fault[], path: string, description: string): undefined {
  faults.push({ path, description });
}

function isObject(json: JsonValue): json is JsonObject {
  return typeof json === "object" && json !== null && !Array.isArray(json);
}

function join(path: string, name: string): string {
  return path === "" ? name : `${path}.${name}`;
}
