import type { Sql } from "postgres";
import { findPartitionFault } from "./housekeeping.ts";
import { findSchemaFault } from "./migrations.ts";

/** What keeps a process from working with this database; empty when nothing does. Never throws. */
export async function findStoreWaits(sql: Sql): Promise<string[]> {
  try {
    const schema = await findSchemaFault(sql);
    if (schema !== undefined) return [schema];
    const partitions = await findPartitionFault(sql);
    return partitions === undefined ? [] : [partitions];
  } catch (error) {
    return [`the database does not answer: ${(error as Error).message}`];
  }
}
