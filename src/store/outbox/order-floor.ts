import type { PendingQuery, Row, Sql } from "postgres";
import type { BigintText } from "./claim.ts";
import { scanOutbox } from "./scan.ts";

/** How far the users' sequence had come, and who was about to store something with a number up to there. */
export type OrderNote = { readonly sequence: BigintText; readonly appending: readonly string[] };

/** With more lanes than this behind, an append would take longer to ask for them than it saves. */
const MOST_LANES_BEHIND = 1_000;

/** A lock that `nuncio.lock_users` has taken here. */
function holdsUsers(sql: Sql): PendingQuery<Row[]> {
  return sql`l.locktype = 'advisory' AND l.classid = 7101
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())`;
}

/**
 * The first step to a floor. An append takes its users' locks before it takes numbers, and holds them until its commit can be
 * seen: so whoever has a number up to the one that is read here and has not committed yet holds a lock now.
 *
 * The note is written down as well, for the second step to find: in a database that has come back without it (a crash, a
 * standby that was promoted) the sequence may have come back behind it too, and give its numbers out once more.
 */
export async function noteOrder(sql: Sql): Promise<OrderNote> {
  const [reached] = await sql<{ sequence: BigintText }[]>`
    SELECT coalesce(pg_sequence_last_value('nuncio.user_sequence'), 0) AS sequence`;
  const sequence = reached?.sequence ?? ("0" as BigintText);
  await sql`INSERT INTO nuncio.order_floors (user_sequence) VALUES (${sequence}::bigint) ON CONFLICT DO NOTHING`;
  const holders = await sql<{ holder: string }[]>`
    SELECT DISTINCT l.virtualtransaction AS holder FROM pg_locks l WHERE ${holdsUsers(sql)}`;
  return { sequence, appending: holders.map(({ holder }) => holder) };
}

/**
 * The second: writes down that up to the noted number nothing is pending that keeps an order, but in these lanes. False while
 * somebody of the note is still at it (or has prepared, and may commit whenever it likes); then it is too early. Once written this
 * stays true: numbers only grow, and nothing but an append brings a row that keeps an order.
 *
 * Reads the outbox as it lies, by no index, of which each entry may be dead.
 */
export async function raiseOrderFloor(sql: Sql, { sequence, appending }: OrderNote): Promise<boolean> {
  const [row] = await sql<{ still: number }[]>`
    SELECT count(*)::integer AS still FROM pg_locks l
    WHERE ${holdsUsers(sql)}
      AND (l.virtualtransaction = ANY (${appending as string[]}) OR l.virtualtransaction LIKE '-1/%')`;
  if (row === undefined || row.still > 0) return false;
  await scanOutbox(
    sql,
    // Its snapshot shows what all of them have committed.
    (tx) => tx`
      WITH behind AS (
        SELECT DISTINCT r.subscription_key
        FROM (SELECT q.subscription_key, q.user_sequence FROM nuncio.outbox q OFFSET 0) AS r
        WHERE r.user_sequence <= ${sequence}::bigint
      ), found AS (
        SELECT coalesce(array_agg(b.subscription_key), '{}') AS lanes FROM behind b
        HAVING count(*) <= ${MOST_LANES_BEHIND}::integer
      ), raised AS (
        UPDATE nuncio.order_floors f SET lanes_behind = found.lanes FROM found
        WHERE f.user_sequence = ${sequence}::bigint AND f.lanes_behind IS NULL
        RETURNING f.user_sequence
      )
      DELETE FROM nuncio.order_floors f USING raised r WHERE f.user_sequence < r.user_sequence`,
  );
  return true;
}
