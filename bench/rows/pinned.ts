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
/** Windows at each end that are compared. */
const COMPARED = 6;

/**
 * What a transaction costs that stays open and keeps Postgres from clearing away what is dead (a forgotten psql, a dump, a
 * slot): events are appended as fast as they are delivered, first without one, then beside one.
 */
export const pinned: Row = {
  name: "pinned",
  async measure(bench) {
    const database = await bench.postgres.createDatabase({ migrated: true });
    const filler = openFiller(database);
    await filler.subscribe({ ...HUNDRED, url: bench.receiver.url });
    await bench.receiver.expect({ warmUp: 1, total: Number.MAX_SAFE_INTEGER, keepArrivals: false });
    const worker = await startWorker(database, { maxInFlight: undefined, awaitReady: true });
    const flow = keepFlowing(bench, filler.append);

    await flow.measure("pinned: warm-up", WINDOW_SECONDS);
    const free = await flow.measure("pinned: free", WINDOW_SECONDS * COMPARED);
    const pin = await openTransaction(database);
    const held = await flow.measure("pinned: xmin held", bench.size.pinnedSeconds);
    await pin.end();

    await flow.stop();
    await filler.close();
    await worker.stop();
    await database.drop();
    bench.plot({
      name: "pinned",
      title: "Deliveries a second while a transaction is kept open",
      kind: "lines",
      x: "seconds since it was opened (or since the run without began)",
      y: "deliveries/s",
      lines: [
        { label: "with it open", points: held.map((rate, i) => [(i + 1) * WINDOW_SECONDS, rate]) },
        { label: "without", points: free.map((rate, i) => [(i + 1) * WINDOW_SECONDS, rate]) },
      ],
    });
    const last = held.slice(-COMPARED);
    const minutes = bench.size.pinnedSeconds / 60;
    return [
      {
        what: `deliveries and appends with xmin held for ${minutes} minutes (its last one) ÷ without`,
        value: median(last) / median(free),
        unit: "ratio",
        figures: `${perSecond(median(last))} ÷ ${perSecond(median(free))}`,
        target: { floor: 0.85, goal: 0.95, better: "more" },
      },
    ];
  },
};

type Append = ReturnType<typeof openFiller>["append"];

/** Appends whatever the receiver has got; `measure` tells the deliveries a second, window by window. */
function keepFlowing({ receiver, progress }: Bench, append: Append) {
  let appended = 0;
  let isRunning = true;
  const running = (async () => {
    while (isRunning) {
      const received = await receiver.count();
      if (appended - received >= AHEAD) await delay(LOOK_MS);
      else {
        const at = appended;
        await append({ ...HUNDRED, deliveries: GROUP, spread: (n) => (at + n) % HUNDRED.subscriptions });
        appended += GROUP;
      }
    }
  })();
  return {
    async measure(what: string, seconds: number): Promise<number[]> {
      const rates: number[] = [];
      for (let done = 0; done < seconds; done += WINDOW_SECONDS) {
        const [before, beganAtMs] = [await receiver.count(), sharedNowMs()];
        await delay(Math.min(WINDOW_SECONDS, seconds) * 1_000);
        const rate = ((await receiver.count()) - before) / ((sharedNowMs() - beganAtMs) / 1_000);
        rates.push(rate);
        progress(`${what} ${done + WINDOW_SECONDS}/${seconds} s: ${perSecond(rate)}`);
      }
      return rates;
    },
    async stop() {
      isRunning = false;
      await running;
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
