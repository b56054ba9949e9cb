import type { Uuid } from "../core/ids.ts";

/**
 * The text of a Postgres array whose members need no quotes: numbers, UUIDs and nulls, nothing else. For the arrays of the hot
 * statements: postgres.js sends every member through two regular expressions, which was 4% of the worker's profile.
 */
export function toArrayText<Row>(
  rows: readonly Row[],
  memberOf: (row: Row) => number | bigint | `${bigint}` | Uuid | null | undefined,
): string {
  let text = "";
  for (const row of rows) text += `${text === "" ? "" : ","}${memberOf(row) ?? "NULL"}`;
  return `{${text}}`;
}
