import { setTimeout as delay } from "node:timers/promises";
import postgres from "postgres";
import { type Bench, median, perSecond, type Row, sharedNowMs } from "../bench.ts";
import { openFiller, startWorker } from "../nuncio.ts";
import type { BenchDatabase } from "../postgres.ts";

/**
 * As many users as a tenth of the events: with fewer, each publish and each record of a user reads index entries of what the
 * same user has been sent since the transaction began (see "Reading it" on the page).
 */
const HUNDRED = { subscriptions: 100, ordering: "PER_USER", users: 500_000 } as const;
/** Rows appended ahead of the worker: enough that it never waits, too few to matter as a backlog. */
const AHEAD = 5_000;
const GROUP = 500;
const LOOK_MS = 20;
const WINDOW_SECONDS = 10;
/** Around the end of the time the two take turns, so many times; before that every sixth window is the one of the free database. */
const COMPARED = 12;
const FREE_EVERY = 6;

type Point = readonly [seconds: number, rate: number];

/**
 * What a transaction costs that stays open and keeps Postgres from clearing away what is dead (a forgotten psql, a dump, a
 * slot): events are appended as fast as they are delivered, in a database with such a transaction and in one without. A
 * transaction keeps nothing alive in another database. They take turns, since the machine's speed changes by half within ten
 * minutes, which was taken for the transaction's effect while the minutes after were compared with the one before.
 */
export const pinned: Row = {
  name: "pinned",
  async measure(bench) {
    const [held, free] = [await openFlow(bench, "xmin held"), await openFlow(bench, "free")];
    for (const flow of [held, free]) await flow.measure();
    const pin = await openTransaction(held.database);
    const [heldPoints, freePoints]: [Point[], Point[]] = [[], []];
    const beganAtMs = sharedNowMs();
    // Half of the turns are over when the time is.
    const pairs = Math.min(COMPARED, bench.size.pinnedSeconds / WINDOW_SECONDS);
    const windows = bench.size.pinnedSeconds / WINDOW_SECONDS + pairs;
    for (let i = 0; i < windows; i++) {
      const isFree = i >= windows - 2 * pairs ? (windows - i) % 2 === 0 : i % FREE_EVERY === 0;
      const rate = await (isFree ? free : held).measure();
      (isFree ? freePoints : heldPoints).push([(sharedNowMs() - beganAtMs) / 1_000, rate]);
    }
    await pin.end();
    await held.close();
    await free.close();

    bench.plot({
      name: "pinned",
      title: "Deliveries a second while a transaction is kept open",
      kind: "lines",
      x: "seconds since it was opened",
      y: "deliveries/s",
      lines: [
        { label: "in its database", points: heldPoints },
        { label: "in another, in turns", points: freePoints },
      ],
    });
    const last = (points: readonly Point[]) => points.slice(-pairs).map(([, rate]) => rate);
    const [heldRates, freeRates] = [last(heldPoints), last(freePoints)];
    return [
      {
        what: `deliveries and appends with xmin held for ${bench.size.pinnedSeconds} s ÷ without, ${pairs} times in turns`,
        value: median(heldRates.map((rate, i) => rate / (freeRates[i] as number))),
        unit: "ratio",
        figures: `${perSecond(median(heldRates))} ÷ ${perSecond(median(freeRates))}`,
        target: { floor: 0.85, goal: 0.95, better: "more" },
      },
    ];
  },
};

/** A database with a worker, and whoever appends to it: in windows, between which nothing is left to do. */
async function openFlow({ postgres: server, receiver, progress }: Bench, name: string) {
  const database = await server.createDatabase({ migrated: true });
  const filler = openFiller(database);
  await filler.subscribe({ ...HUNDRED, url: receiver.url });
  const worker = await startWorker(database, { maxInFlight: undefined, awaitReady: true });
  let appended = 0;
  let windows = 0;

  async function append(): Promise<void> {
    const at = appended;
    await filler.append({ ...HUNDRED, deliveries: GROUP, spread: (n) => (at + n) % HUNDRED.subscriptions });
    appended += GROUP;
  }

  return {
    database,
    /** Appends whatever the receiver has got, for one window, and returns the deliveries a second. */
    async measure(): Promise<number> {
      await receiver.expect({ warmUp: 1, total: Number.MAX_SAFE_INTEGER, keepArrivals: false });
      const before = appended;
      const beganAtMs = sharedNowMs();
      let [received, seconds] = [0, 0];
      while (seconds < WINDOW_SECONDS) {
        if (appended - before - received < AHEAD) await append();
        else await delay(LOOK_MS);
        received = await receiver.count();
        seconds = (sharedNowMs() - beganAtMs) / 1_000;
      }
      while ((await receiver.count()) < appended - before) await delay(LOOK_MS);
      windows += 1;
      progress(`pinned: ${name}, window ${windows}: ${perSecond(received / seconds)}`);
      return received / seconds;
    },
    async close(): Promise<void> {
      await filler.close();
      await worker.stop();
      await database.drop();
    },
  };
}

/** A transaction that has looked once and is then forgotten. */
async function openTransaction(database: BenchDatabase): Promise<{ end(): Promise<void> }> {
  const sql = postgres(database.url, { max: 1, onnotice: () => undefined });
  const holding = Promise.withResolvers<void>();
  const begun = Promise.withResolvers<void>();
  const transaction = sql.begin("ISOLATION LEVEL REPEATABLE READ", async (held) => {
    await held`SELECT count(*) FROM nuncio.webhook_subscriptions`;
    begun.resolve();
    await holding.promise;
  });
  await begun.promise;
  return {
    async end() {
      holding.resolve();
      await transaction;
      await sql.end();
    },
  };
}
