import type { Sql } from "postgres";

/** One event as the append function takes it. */
export type AppendRow = {
  readonly tenantId: string;
  readonly eventId: string;
  readonly eventTypeCode: number;
  readonly userId: string;
  readonly contentHash: Buffer;
  readonly traceparent: string | undefined;
  readonly bodyTail: string;
};

export type AppendResult =
  | {
      readonly kind: "appended";
      readonly deliveries: number;
      /** Where something may be due now, and since when: the transaction's time, in milliseconds since 1970. */
      readonly lanes: readonly number[];
      readonly dueAtMs: number;
    }
  | { readonly kind: "duplicate" }
  | { readonly kind: "conflict" };

/**
 * Stores the events, each with a pending delivery per matching subscription, in one transaction, and answers in the
 * order of the rows. Once it returns, all of it is on disk. If it throws, nothing was stored, or (a connection that
 * broke during the commit) all of it: asking again with the same ids tells which.
 *
 * The rows of one call have different (tenant, event id) pairs: `group-commit.ts` sees to that.
 */
export async function appendEvents(
  sql: Sql,
  rows: readonly AppendRow[],
  { maxPendingMs }: { maxPendingMs: number },
): Promise<AppendResult[]> {
  const appended = await sql<{ ordinal: number; deliveries: number; lanes: number[] | null; due_at_ms: number }[]>`
    SELECT ordinal, deliveries, lanes, date_part('epoch', now()) * 1000 AS due_at_ms FROM nuncio.append_events(
      ${rows.map((row) => row.tenantId)}::text[],
      ${rows.map((row) => row.eventId)}::text[],
      ${rows.map((row) => row.eventTypeCode)}::smallint[],
      ${rows.map((row) => row.userId)}::text[],
      ${rows.map((row) => row.contentHash.toString("hex"))}::text[],
      ${rows.map((row) => row.traceparent ?? null)}::text[],
      ${rows.map((row) => row.bodyTail)}::text[],
      ${maxPendingMs}::bigint)`;
  const results = new Array<AppendResult | undefined>(rows.length);
  for (const { ordinal, deliveries, lanes, due_at_ms } of appended) {
    results[ordinal - 1] = { kind: "appended", deliveries, lanes: lanes ?? [], dueAtMs: due_at_ms };
  }
  if (appended.length < rows.length) await resolveUsedIds(sql, rows, results);
  return results as AppendResult[];
}

/** Where the results of one append have made something due, and since when; undefined if nothing was new. */
export function whatIsDue(results: readonly AppendResult[]): { lanes: number[]; sinceMs: number } | undefined {
  const appended = results.filter((result) => result.kind === "appended");
  // One transaction, one time.
  return appended[0] && { lanes: appended.flatMap(({ lanes }) => lanes), sinceMs: appended[0].dueAtMs };
}

/**
 * Tells duplicates from conflicts, for rows whose id was used before. A statement of its own, after the append: whoever
 * used the id first has committed by now, and a snapshot taken before that would not show it.
 */
async function resolveUsedIds(
  sql: Sql,
  rows: readonly AppendRow[],
  results: (AppendResult | undefined)[],
): Promise<void> {
  const open = rows.flatMap((_, i) => (results[i] === undefined ? [i] : []));
  const used = await sql<{ place: string; same: boolean }[]>`
    SELECT i.place, coalesce(e.content_hash = decode(i.content_hash, 'hex'), true) AS same
    FROM unnest(
      ${open.map((i) => rows[i]?.tenantId ?? "")}::text[],
      ${open.map((i) => rows[i]?.eventId ?? "")}::text[],
      ${open.map((i) => rows[i]?.contentHash.toString("hex") ?? "")}::text[]
    ) WITH ORDINALITY AS i (tenant_id, event_id, content_hash, place)
    JOIN nuncio.tenants t ON t.tenant_id = i.tenant_id
    JOIN nuncio.event_ids e ON e.tenant_key = t.tenant_key AND e.event_id = i.event_id`;
  for (const { place, same } of used) {
    results[open[Number(place) - 1] as number] = { kind: same ? "duplicate" : "conflict" };
  }
  // Only retention removes an id, and only with its payload: it was accepted, long ago, whatever it held.
  for (const i of open) results[i] ??= { kind: "duplicate" };
}
