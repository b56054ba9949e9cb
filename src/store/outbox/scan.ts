import type { Sql, TransactionSql } from "postgres";

/** How long a scan may take: longer than a statement otherwise, and not so long that a dead connection goes unnoticed. */
const SCAN_TIMEOUT = "12s";

/** For what reads the whole outbox as it lies, in a transaction with a time limit of its own. Each statement has its own snapshot. */
export async function scanOutbox<Result>(sql: Sql, read: (tx: TransactionSql) => PromiseLike<Result>): Promise<Result> {
  const [result] = await sql.begin(async (tx) => {
    await tx.unsafe(`SET LOCAL statement_timeout = '${SCAN_TIMEOUT}'`);
    // In an array, of which postgres.js awaits the entries alone: else it takes a list of rows for a list of queries.
    return [await read(tx)];
  });
  return result as Result;
}
