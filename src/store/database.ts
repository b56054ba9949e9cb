import { sql } from "drizzle-orm";
import { drizzle, type PostgresJsDatabase } from "drizzle-orm/postgres-js";
import postgres, { type Sql } from "postgres";
import { UnavailableError } from "../core/errors.ts";
import type { Secret } from "../core/secret.ts";
import { ARRAY_TYPES, closingInSilence } from "./driver-options.ts";

/** The role that a process takes on; `drizzle/*_grant_roles.sql` says what each may do. */
export type DatabaseRole = "nuncio_server" | "nuncio_worker";

export type DatabaseOptions = {
  readonly url: Secret;
  readonly role: DatabaseRole;
  /** For Drizzle's queries. */
  readonly connections: number;
  /** For the hot statements, which have a client of their own: Drizzle changes the parsers of the client it is given. */
  readonly hotConnections: number;
  readonly statementTimeoutMs: number;
};

/** The clients of a process. None connects before it is used. */
export type Database = {
  readonly orm: PostgresJsDatabase;
  readonly hot: Sql;
  /** For what may take long and nobody waits for: a few connections, given up again when they are idle. */
  readonly maintenance: Sql;
  close(): Promise<void>;
};

/**
 * The hot statements are planned once per connection. Left to itself, Postgres plans them anew for each call, since a plan
 * for arrays of a known length looks cheaper than one for any length: for a claim and a record of one delivery that took
 * two thirds of its CPU (1.4 ms against 0.5 ms). `test/store/plans.test.ts` pins what they are planned to.
 */
export const HOT_SETTINGS = { plan_cache_mode: "force_generic_plan" } as const;

/** How long after its statement should have been ended a connection may be silent. */
const SILENCE_MARGIN_MS = 10_000;
/** One each for a vacuum, a sweep, a count, and for lanes that take long to read: none waits for another. */
const MAINTENANCE_CONNECTIONS = 4;
const MAINTENANCE_TIMEOUT_MS = 1_800_000;
const MAINTENANCE_IDLE_SECONDS = 60;

/**
 * Whether the hot statements of a role wait for the disk when they commit. A publish has to: it is answered after. A lost
 * claim or record costs a second delivery and no more (QUEUE.md, finding 4).
 */
const HOT_COMMIT_WAITS_FOR_DISK: Readonly<Record<DatabaseRole, boolean>> = {
  nuncio_server: true,
  nuncio_worker: false,
};

type ClientOptions = {
  readonly timeoutMs?: number;
  readonly idleSeconds?: number;
  readonly settings?: Readonly<Record<string, string>>;
};

export function openDatabase(options: DatabaseOptions): Database {
  const connect = (
    max: number,
    synchronousCommit: boolean,
    { timeoutMs = options.statementTimeoutMs, idleSeconds, settings = {} }: ClientOptions = {},
  ) =>
    postgres(options.url.reveal(), {
      max,
      connect_timeout: 5,
      ...(idleSeconds === undefined ? {} : { idle_timeout: idleSeconds }),
      onnotice: () => undefined,
      ...ARRAY_TYPES,
      ...closingInSilence(timeoutMs + SILENCE_MARGIN_MS),
      connection: {
        application_name: options.role,
        role: options.role,
        statement_timeout: timeoutMs,
        idle_in_transaction_session_timeout: 10_000,
        // Each statement of the hot functions has to see what was committed before it began.
        default_transaction_isolation: "read committed",
        // Nothing here runs long enough to be worth compiling, and a plan that may not sort looks so dear to Postgres up to 17
        // that it compiles for seconds.
        jit: "off",
        synchronous_commit: synchronousCommit ? "on" : "off",
        ...settings,
      },
    });
  const cold = connect(options.connections, true);
  const hot = connect(options.hotConnections, HOT_COMMIT_WAITS_FOR_DISK[options.role], { settings: HOT_SETTINGS });
  const patience = { timeoutMs: MAINTENANCE_TIMEOUT_MS, idleSeconds: MAINTENANCE_IDLE_SECONDS };
  const maintenance = connect(MAINTENANCE_CONNECTIONS, false, patience);
  return {
    orm: drizzle(cold),
    hot,
    maintenance,
    close: async () => {
      // Of what takes long nothing is lost when it is cut off.
      await Promise.all([cold.end({ timeout: 5 }), hot.end({ timeout: 5 }), maintenance.end({ timeout: 0 })]);
    },
  };
}

/**
 * Runs a query that takes the first rows of an index in its order, so that it does: where a range looks short to the
 * planner, it would rather read all of that and sort.
 */
export function inIndexOrder<T>(
  orm: PostgresJsDatabase,
  query: (tx: Pick<PostgresJsDatabase, "execute">) => Promise<T>,
  { timeoutMs }: { timeoutMs?: number | undefined } = {},
): Promise<T> {
  return orm.transaction(async (tx) => {
    await tx.execute(sql`SET LOCAL enable_sort = off`);
    if (timeoutMs !== undefined) await tx.execute(sql.raw(`SET LOCAL statement_timeout = ${Math.ceil(timeoutMs)}`));
    return query(tx);
  });
}

/** Whether Postgres ended a statement since it took too long, or was asked to. */
export function isCancelled(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if ("code" in cause && cause.code === "57014") return true;
  }
  return false;
}

/** Connection trouble, shutdown, recovery, read-only after a failover, no room: the same call may succeed later. */
const TRANSIENT_CODE =
  /^(08...|57P0[1-4]|57014|53...|25006|40001|40P01|55P03|CONNECTION_.*|CONNECT_TIMEOUT|ECONN.*|EPIPE|ETIMEDOUT|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH)$/;

/** Whether an error of the driver says that Postgres is out of reach or unable now, not that our statement is wrong. */
export function isTransient(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if ("code" in cause && typeof cause.code === "string" && TRANSIENT_CODE.test(cause.code)) return true;
  }
  return false;
}

/** How long a caller waits before it asks again while Postgres is away. */
const RETRY_AFTER_MS = 1000;

/** Runs a query and turns passing trouble into STORE_UNAVAILABLE; anything else is our fault and rises as it is. */
export async function whileAvailable<T>(query: () => Promise<T>): Promise<T> {
  try {
    return await query();
  } catch (cause) {
    if (!isTransient(cause)) throw cause;
    throw new UnavailableError("STORE_UNAVAILABLE", "the database is not available; try again", {
      cause,
      retryAfterMs: RETRY_AFTER_MS,
    });
  }
}
