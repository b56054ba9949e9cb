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

/** Of all servers and workers on this database, every state of each; those of another user of Postgres are not told apart. */
export async function countConnections(sql: Sql): Promise<ConnectionCount[]> {
  const rows = await sql<{ application: DatabaseRole; state: string; count: number }[]>`
    SELECT application_name AS application, replace(coalesce(state, 'idle'), ' ', '_') AS state, count(*)::integer AS count
    FROM pg_stat_activity
    WHERE datname = current_database() AND application_name IN ('nuncio_server', 'nuncio_worker')
    GROUP BY 1, 2`;
  return Object.entries(PROCESSES).flatMap(([application, process]) =>
    STATES.map((state) => {
      const found = rows.find((row) => row.application === application && row.state.startsWith(state));
      return { process, state, count: found?.count ?? 0 };
    }),
  );
}
