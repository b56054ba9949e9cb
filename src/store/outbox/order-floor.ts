import type { Sql } from "postgres";
import type { BigintText } from "./claim.ts";

/** How far the users' sequence had come, and who was about to store something with a number up to there. */
export type OrderNote = { readonly sequence: BigintText; readonly appending: readonly string[] };

/** With more lanes than this behind, an append would take longer to ask for them than it saves. */
const MOST_LANES_BEHIND = 1_000;

/**
 * The first step to a floor. An append takes its users' locks (class 7101) before it takes numbers, and holds them until its
 * commit can be seen: so whoever has a number up to the one that is read here and has not committed yet holds a lock now.
 */
export async function noteOrder(sql: Sql): Promise<OrderNote> {
  const [reached] = await sql<{ sequence: BigintText }[]>`
    SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS sequence FROM nuncio.user_sequence`;
  const holders = await sql<{ virtualtransaction: string }[]>`
    SELECT DISTINCT virtualtransaction FROM pg_locks WHERE locktype = 'advisory' AND classid = 7101`;
  return {
    sequence: reached?.sequence ?? ("0" as BigintText),
    appending: holders.map(({ virtualtransaction }) => virtualtransaction),
  };
}

/**
 * The second: writes down that up to the noted number nothing is pending that keeps an order, but in these lanes. False while
 * somebody of the note is still at it; then it is too early. Once written this stays true: numbers only grow, and nothing but an
 * append brings a row that keeps an order.
 *
 * Reads the outbox as it lies, by no index, of which each entry may be dead.
 */
export async function raiseOrderFloor(sql: Sql, { sequence, appending }: OrderNote): Promise<boolean> {
  const [row] = await sql<{ still: number }[]>`
    SELECT count(*)::integer AS still FROM pg_locks
    WHERE locktype = 'advisory' AND classid = 7101 AND virtualtransaction = ANY (${appending as string[]})`;
  if (row === undefined || row.still > 0) return false;
  // A statement of its own: its snapshot shows what all of them have committed.
  await sql`
    WITH behind AS (
      SELECT DISTINCT r.subscription_key
      FROM (SELECT q.subscription_key, q.user_sequence FROM nuncio.outbox q OFFSET 0) AS r
      WHERE r.user_sequence <= ${sequence}::bigint
    ), raised AS (
      INSERT INTO nuncio.order_floors (user_sequence, lanes_behind)
      SELECT ${sequence}::bigint, coalesce(array_agg(b.subscription_key), '{}') FROM behind b
      HAVING count(*) <= ${MOST_LANES_BEHIND}::integer
      ON CONFLICT DO NOTHING
      RETURNING user_sequence
    )
    DELETE FROM nuncio.order_floors f USING raised r WHERE f.user_sequence < r.user_sequence`;
  return true;
}
