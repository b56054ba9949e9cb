import type { Sql } from "postgres";
import type { DatabaseRole } from "./database.ts";

/** Connections of our processes, as Postgres sees them. */
export type ConnectionCount = {
  readonly process: "server" | "worker";
  readonly state: "active" | "idle" | "idle_in_transaction";
  readonly count: number;
};

const PROCESSES: Readonly<Record<DatabaseRole, ConnectionCount["process"]>> = {
  nuncio_server: "server",
  nuncio_worker: "worker",
};
const STATES = ["active", "idle", "idle_in_transaction"] as const;

/** Of all servers and workers on this database, every state of each. */
export async function countConnections(sql: Sql): Promise<ConnectionCount[]> {
  const rows = await sql<{ application: DatabaseRole; state: string; count: number }[]>`
    SELECT application, replace(state, ' ', '_') AS state, count FROM nuncio.count_connections()`;
  return Object.entries(PROCESSES).flatMap(([application, process]) =>
    STATES.map((state) => {
      const found = rows.find((row) => row.application === application && row.state === state);
      return { process, state, count: found?.count ?? 0 };
    }),
  );
}

/** The oldest view of the data that somebody may still have, which keeps Postgres from clearing away what is newer and dead. */
export type OldestSnapshot = {
  /** For how long its transaction has been open; 0 where Postgres does not tell (a replication slot). */
  readonly heldForSeconds: number;
  /** How many transactions have begun since. */
  readonly transactions: number;
  /** For a person: a process, a slot, a prepared transaction. */
  readonly holder: string;
};

/** Undefined where nothing but ourselves looks at anything. Other users' sessions are seen as far as the schema's owner may. */
export async function findOldestSnapshot(sql: Sql): Promise<OldestSnapshot | undefined> {
  const [row] = await sql<{ held_seconds: number | null; transactions: number | null; holder: string | null }[]>`
    SELECT extract(epoch FROM held_for)::float8 AS held_seconds, transactions::float8 AS transactions, holder
    FROM nuncio.oldest_snapshot()`;
  if (!row || row.transactions === null) return undefined;
  return { heldForSeconds: row.held_seconds ?? 0, transactions: row.transactions, holder: row.holder ?? "" };
}
