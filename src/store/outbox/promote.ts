import type { Sql, TransactionSql } from "postgres";
import { toArrayText } from "../array-text.ts";
import type { BigintText } from "./claim.ts";

/** Lanes where the next delivery of a user has come due, and when: the transaction's time, in milliseconds since 1970. */
export type Promoted = { readonly promoted: readonly number[]; readonly atMs: number | undefined };

type Place = { readonly subscription_key: number; readonly user_key: BigintText | null };

/** Makes due what has become the first of its user in each of these lanes. The transaction holds the users' locks. */
export async function promoteFollowers(tx: TransactionSql, places: readonly Place[]): Promise<Promoted> {
  const promoted = await tx<{ lane: number; at_ms: number }[]>`
    SELECT lane, date_part('epoch', now()) * 1000 AS at_ms FROM nuncio.promote_followers(
      ${toArrayText(places, (place) => place.subscription_key)}::integer[],
      ${toArrayText(places, (place) => place.user_key)}::bigint[]) AS lane`;
  return { promoted: promoted.map(({ lane }) => lane), atMs: promoted[0]?.at_ms };
}

/** Locks the users of these places until the transaction ends: before any row. */
export async function lockUsers(tx: TransactionSql, places: readonly Place[]): Promise<void> {
  await tx`SELECT nuncio.lock_users(${toArrayText(places, (place) => place.user_key)}::bigint[])`;
}

/**
 * Makes due what waits behind nothing, for up to `limit` users. It should find nothing: whoever ends a delivery makes the next
 * one due in the same transaction. It repairs what a bug or a hand in the database left behind.
 *
 * One pass over the outbox for rows that wait, and one index descent for each user among them.
 */
export async function promoteStranded(sql: Sql, limit: number): Promise<Promoted> {
  const stranded = await sql<Place[]>`
    WITH waiting AS MATERIALIZED (
      SELECT q.subscription_key, q.user_key FROM nuncio.outbox q WHERE q.next_at = 'infinity'
    )
    SELECT w.subscription_key, w.user_key
    FROM (SELECT DISTINCT q.subscription_key, q.user_key FROM waiting q) AS w
    CROSS JOIN LATERAL (
      SELECT q.next_at FROM nuncio.outbox q
      WHERE q.user_key = w.user_key AND q.subscription_key = w.subscription_key ORDER BY q.user_sequence LIMIT 1
    ) AS first
    WHERE first.next_at = 'infinity'
    LIMIT ${limit}::integer`;
  if (stranded.length === 0) return { promoted: [], atMs: undefined };
  return sql.begin(async (tx) => {
    await lockUsers(tx, stranded);
    return promoteFollowers(tx, stranded);
  });
}
