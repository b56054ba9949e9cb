import postgres from "postgres";
import { cleanUp } from "./clean-up.ts";
import type { TestDatabase } from "./database.ts";

/** A transaction that keeps what ends from being cleared away, until the test is over or it is told to end. */
export async function holdSnapshot(db: TestDatabase): Promise<{ end(): Promise<void> }> {
  const sql = postgres(db.url.reveal(), { max: 1, onnotice: () => undefined });
  cleanUp(() => sql.end({ timeout: 0 }));
  await sql`BEGIN ISOLATION LEVEL REPEATABLE READ`;
  await sql`SELECT count(*) FROM nuncio.outbox`;
  return { end: () => sql.end() };
}
