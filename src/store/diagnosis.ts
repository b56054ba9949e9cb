import { randomBytes } from "node:crypto";
import postgres, { type Sql } from "postgres";
import type { Secret } from "../core/secret.ts";
import type { DatabaseRole } from "./database.ts";
import { closingInSilence } from "./driver-options.ts";
import { mayVacuumOutbox } from "./vacuum.ts";
import { HEARTBEAT_LIFE_MS } from "./workers.ts";

const TIMEOUT_MS = 5_000;
const ROLES: readonly DatabaseRole[] = ["nuncio_server", "nuncio_worker"];

/** A database as somebody looks at it who wants to know what is wrong: as the user of the URL, in no role. */
export type Diagnosis = {
  readonly sql: Sql;
  /** Of the server: `180004` for 18.4. Throws what keeps it from being reached. */
  version(): Promise<{ readonly number: number; readonly name: string }>;
  /** Settings of Postgres that must be on for what is accepted to be durable, and are not. */
  findUnsafeSettings(): Promise<string[]>;
  /** Roles that are missing, or that the user of the URL cannot take on. */
  findMissingRoles(): Promise<string[]>;
  /** How far the database's clock is ahead of this machine's, in milliseconds, to about half the time of one question. */
  clockAheadMs(nowMs: () => number): Promise<number>;
  /** How long a NOTIFY takes to another connection, in milliseconds; undefined if it does not come. */
  notifyMs(nowMs: () => number): Promise<number | undefined>;
  /** Whether the role of the workers may vacuum the outbox: from Postgres 17 on, by the privilege MAINTAIN. */
  mayWorkersVacuum(): Promise<boolean>;
  /** Workers whose heartbeat is young enough. */
  countWorkers(): Promise<number>;
  close(): Promise<void>;
};

export function openDiagnosis(url: Secret): Diagnosis {
  const sql = postgres(url.reveal(), {
    max: 2,
    connect_timeout: TIMEOUT_MS / 1_000,
    onnotice: () => undefined,
    ...closingInSilence(TIMEOUT_MS * 2),
    connection: { application_name: "nuncio_doctor", statement_timeout: TIMEOUT_MS },
  });
  return {
    sql,
    version: async () => {
      const [row] = await sql<{ number: number; name: string }[]>`
        SELECT current_setting('server_version_num')::integer AS number, current_setting('server_version') AS name`;
      return row ?? { number: 0, name: "unknown" };
    },
    findUnsafeSettings: async () => {
      const rows = await sql<{ name: string }[]>`
        SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting <> 'on' ORDER BY name`;
      return rows.map(({ name }) => name);
    },
    findMissingRoles: async () => {
      const rows = await sql<{ role: string }[]>`
        SELECT w.role FROM unnest(${ROLES as DatabaseRole[]}::text[]) AS w (role)
        LEFT JOIN pg_roles r ON r.rolname = w.role
        -- From 16 on one may be a member of a role and not be allowed to take it on.
        WHERE r.oid IS NULL OR NOT CASE WHEN current_setting('server_version_num')::integer >= 160000
          THEN pg_has_role(r.oid, 'SET') ELSE pg_has_role(r.oid, 'MEMBER') END`;
      return rows.map(({ role }) => role);
    },
    clockAheadMs: async (nowMs) => {
      const askedAtMs = nowMs();
      const [row] = await sql<{ ms: number }[]>`SELECT (extract(epoch FROM clock_timestamp()) * 1000)::float8 AS ms`;
      return (row?.ms ?? Number.NaN) - (askedAtMs + nowMs()) / 2;
    },
    notifyMs: (nowMs) => measureNotify(sql, nowMs),
    mayWorkersVacuum: () => mayVacuumOutbox(sql, "nuncio_worker"),
    countWorkers: async () => {
      const [row] = await sql<{ count: number }[]>`
        SELECT count(*)::integer AS count FROM nuncio.workers
        WHERE heartbeat_at > now() - ${HEARTBEAT_LIFE_MS}::integer * interval '1 millisecond'`;
      return row?.count ?? 0;
    },
    close: () => sql.end({ timeout: 1 }),
  };
}

async function measureNotify(sql: Sql, nowMs: () => number): Promise<number | undefined> {
  const channel = `nuncio_doctor_${randomBytes(6).toString("hex")}`;
  const heard = Promise.withResolvers<number>();
  await sql.listen(channel, () => heard.resolve(nowMs()));
  const sentAtMs = nowMs();
  await sql.notify(channel, "");
  const late = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => late.resolve(undefined), TIMEOUT_MS);
  const heardAtMs = await Promise.race([heard.promise, late.promise]);
  clearTimeout(timer);
  return heardAtMs === undefined ? undefined : heardAtMs - sentAtMs;
}
