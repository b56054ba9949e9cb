import postgres, { type Sql } from "postgres";
import { HOT_SETTINGS } from "../../src/store/database.ts";
import type { TestDatabase } from "./database.ts";

/** One who works on the outbox beside others: its own connection, and the steps it makes one after another. */
export type Actor = { readonly name: string; readonly run: (sql: Sql) => Promise<void> };

type Running = {
  readonly pid: number;
  readonly sql: Sql;
  readonly done: Promise<void>;
  ended: boolean;
  error?: unknown;
};

/** The class of the advisory locks that stop actors; the second key is the place where one stands. */
const GATE = 9000;
/** No actor of a test passes more stops than this. */
const STOPS = 200;

/** Whole numbers below `bound`, the same ones for the same seed (mulberry32). */
export function seeded(seed: number): (bound: number) => number {
  let state = seed >>> 0;
  return (bound) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296) * bound);
  };
}

/**
 * Makes each statement that writes one of the tables stop before it begins, on the connections of actors: inside our
 * functions as well, between what they have locked and read and what they write.
 */
export async function installStops(db: TestDatabase, tables: readonly string[]): Promise<void> {
  await db.admin.unsafe(`
    CREATE FUNCTION nuncio.stop_here() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
      actor integer := nullif(current_setting('gate.actor', true), '')::integer;
      place integer;
    BEGIN
      IF actor IS NULL THEN RETURN NULL; END IF;
      place := coalesce(nullif(current_setting('gate.place', true), ''), '0')::integer + 1;
      PERFORM set_config('gate.place', place::text, false);
      PERFORM pg_advisory_lock_shared(${GATE} + actor, place);
      PERFORM pg_advisory_unlock_shared(${GATE} + actor, place);
      RETURN NULL;
    END $$`);
  for (const table of tables) {
    await db.admin.unsafe(`
      CREATE TRIGGER stop_here BEFORE INSERT OR UPDATE OR DELETE ON nuncio.${table}
      FOR EACH STATEMENT EXECUTE FUNCTION nuncio.stop_here()`);
  }
}

/**
 * Runs the actors with one statement moving at a time, in an order that `choose` picks: each stands at a stop until it is
 * its turn, and the next turn comes when everybody stands, waits for a lock or has ended. Throws what an actor threw, and
 * when nobody can move any more.
 */
export async function interleave(
  db: TestDatabase,
  actors: readonly Actor[],
  choose: (bound: number) => number,
): Promise<void> {
  const gate = postgres(db.url.reveal(), { max: 1, onnotice: () => undefined });
  await gate`
    SELECT pg_advisory_lock(${GATE} + a, p)
    FROM generate_series(0, ${actors.length - 1}::integer) AS a, generate_series(1, ${STOPS}::integer) AS p`;
  const running = await Promise.all(actors.map((actor, i) => start(db, actor, i)));
  try {
    for (;;) {
      const standing = await untilQuiet(db.admin, running);
      const failed = running.find(({ error }) => error !== undefined);
      if (failed) throw failed.error;
      if (running.every(({ ended }) => ended)) return;
      const next = standing[choose(standing.length)];
      if (!next) throw new Error("nobody can move any more");
      await gate`SELECT pg_advisory_unlock(${next.actor}::integer, ${next.place}::integer)`;
    }
  } finally {
    await gate.end();
    await Promise.allSettled(running.map(({ done }) => done));
    await Promise.all(running.map(({ sql }) => sql.end()));
  }
}

async function start(db: TestDatabase, actor: Actor, number: number): Promise<Running> {
  const sql = postgres(db.url.reveal(), {
    max: 1,
    onnotice: () => undefined,
    connection: { application_name: actor.name, "gate.actor": String(number), ...HOT_SETTINGS },
  });
  const [{ pid } = { pid: 0 }] = await sql<{ pid: number }[]>`SELECT pg_backend_pid() AS pid`;
  const work = Promise.withResolvers<void>();
  const running: Running = { pid, sql, done: work.promise, ended: false };
  void actor
    .run(sql)
    .catch((error: unknown) => {
      running.error = error ?? new Error("an actor failed");
    })
    .then(() => {
      running.ended = true;
      work.resolve();
    });
  return running;
}

/** Waits until every actor stands at a stop, waits for somebody's lock or has ended; returns those that stand. */
async function untilQuiet(admin: Sql, running: readonly Running[]): Promise<{ actor: number; place: number }[]> {
  for (;;) {
    const open = running.filter(({ ended }) => !ended);
    const waiting = await admin<{ pid: number; actor: number | null; place: number | null }[]>`
      SELECT l.pid, CASE WHEN l.locktype = 'advisory' AND l.classid BETWEEN ${GATE} AND ${GATE + 99} THEN l.classid::integer END AS actor,
        l.objid::integer AS place
      FROM pg_locks l WHERE NOT l.granted AND l.pid = ANY (${open.map(({ pid }) => pid)}::integer[])`;
    const stillOpen = running.filter(({ ended }) => !ended);
    if (stillOpen.length !== open.length || !open.every(({ pid }) => waiting.some((lock) => lock.pid === pid)))
      continue;
    return waiting
      .flatMap(({ actor, place }) => (actor === null || place === null ? [] : [{ actor, place }]))
      .sort((a, b) => a.actor - b.actor);
  }
}
