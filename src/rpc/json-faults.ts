import {
  type DescEnum,
  type DescField,
  type DescMessage,
  fromJson,
  type JsonValue,
  type Message,
  ScalarType,
} from "@bufbuild/protobuf";
import type { Fault } from "../core/errors.ts";

/** After this many faults the rest is not looked at: an answer, not a list of a megabyte. */
const MAX_FAULTS = 100;

/**
 * Every fault of form of a JSON request: unknown fields, unknown enum names, values of the wrong kind, each with its
 * proto path. The parser names only the first one it meets, without a path; this runs when it has refused a request.
 */
export function findJsonFaults(schema: DescMessage, json: JsonValue): Fault[] {
  const faults: Fault[] = [];
  walkMessage(schema, json, "", faults);
  return faults.slice(0, MAX_FAULTS);
}

/**
 * What can be read of a JSON request whose form is faulty, so that the rest can be judged in the same answer. Undefined
 * if nothing can: a value of the wrong kind leaves no message behind.
 */
export function readWhatIsSound(schema: DescMessage, json: JsonValue): Message | undefined {
  try {
    return fromJson(schema, json, { ignoreUnknownFields: true });
  } catch (error) {
    if (error instanceof Error) return undefined;
    throw error;
  }
}

function walkMessage(schema: DescMessage, json: JsonValue, path: string, faults: Fault[]): void {
  if (schema.typeName.startsWith("google.protobuf.")) {
    walkWellKnown(schema, json, path, faults);
    return;
  }
  if (!isObject(json)) {
    faults.push({ path: path || "$", description: "must be a JSON object" });
    return;
  }
  for (const [key, value] of Object.entries(json)) {
    if (faults.length >= MAX_FAULTS) return;
    const field = schema.fields.find((known) => known.jsonName === key || known.name === key);
    if (field) walkField(field, value, join(path, field.name), faults);
    else faults.push({ path: join(path, key.slice(0, 64)), description: "is an unknown field" });
  }
}

function walkField(field: DescField, json: JsonValue, path: string, faults: Fault[]): void {
  if (json === null) return;
  if (field.fieldKind === "list") {
    if (!Array.isArray(json)) faults.push({ path, description: "must be a JSON array" });
    else for (const [i, item] of json.entries()) walkSingular(field, field.listKind, item, `${path}[${i}]`, faults);
  } else if (field.fieldKind === "map") {
    if (!isObject(json)) faults.push({ path, description: "must be a JSON object" });
    else {
      for (const [key, item] of Object.entries(json)) {
        walkSingular(field, field.mapKind, item, `${path}[${JSON.stringify(key.slice(0, 64))}]`, faults);
      }
    }
  } else {
    walkSingular(field, field.fieldKind, json, path, faults);
  }
}

function walkSingular(
  field: DescField,
  kind: "scalar" | "enum" | "message",
  json: JsonValue,
  path: string,
  faults: Fault[],
): void {
  if (kind === "message" && field.message) walkMessage(field.message, json, path, faults);
  else if (kind === "enum" && field.enum) walkEnum(field.enum, json, path, faults);
  else if (kind === "scalar" && field.scalar !== undefined) walkScalar(field.scalar, json, path, faults);
}

function walkEnum(schema: DescEnum, json: JsonValue, path: string, faults: Fault[]): void {
  if (typeof json === "number" && Number.isInteger(json)) return;
  if (typeof json === "string" && schema.values.some(({ name }) => name === json)) return;
  const shown = typeof json === "string" ? JSON.stringify(json.slice(0, 64)) : `a ${typeof json}`;
  faults.push({ path, description: `is ${shown}, not a value of ${schema.name}` });
}

function walkScalar(scalar: ScalarType, json: JsonValue, path: string, faults: Fault[]): void {
  if (scalar === ScalarType.STRING) {
    if (typeof json !== "string") faults.push({ path, description: "must be a JSON string" });
    else if (!json.isWellFormed()) faults.push({ path, description: "has half of a surrogate pair in it" });
  } else if (scalar === ScalarType.BOOL) {
    if (typeof json !== "boolean") faults.push({ path, description: "must be true or false" });
  } else if (!/^-?\d{1,20}$/.test(String(json)) || typeof json === "boolean") {
    faults.push({ path, description: "must be a whole number" });
  }
}

function walkWellKnown(schema: DescMessage, json: JsonValue, path: string, faults: Fault[]): void {
  try {
    fromJson(schema, json);
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    const expected = schema.typeName === "google.protobuf.Timestamp" ? "an RFC 3339 time" : `a ${schema.typeName}`;
    faults.push({ path, description: `must be ${expected}` });
  }
}

function isObject(json: JsonValue): json is { [key: string]: JsonValue } {
  return typeof json === "object" && json !== null && !Array.isArray(json);
}

function join(path: string, name: string): string {
  return path === "" ? name : `${path}.${name}`;
}
