import { type AddressInfo, createServer, type Socket } from "node:net";
import { type Bench, median, percentile, type Result, type Row } from "../bench.ts";
import { fillOutbox, startServer, startWorker } from "../nuncio.ts";
import type { BenchDatabase } from "../postgres.ts";
import { publishFrom } from "../publishing.ts";

const PER_SECOND = 50;
/** Subscriptions of the one tenant that publishes. */
const HEALTHY = 9;
const BACKLOG = 100_000;
const WARM_UP_SECONDS = 3;
/** Long enough for a hanging receiver to be found out (its requests end after 15 s), and as long again. */
const SECONDS = 30;

type Trouble = (database: BenchDatabase, holeUrl: string) => Promise<void>;

const TROUBLES = {
  alone: async () => undefined,
  // One of ten receivers takes every request and never answers.
  hanging: (database, url) => fillOutbox(database, { subscriptions: 1, ordering: "PER_USER", deliveries: 0, url }),
  // Another tenant has a backlog for a receiver that never answers.
  blackHole: (database, url) =>
    fillOutbox(database, { subscriptions: 1, ordering: "PER_USER", deliveries: BACKLOG, url, firstTenant: 1 }),
} satisfies Record<string, Trouble>;

/** What healthy receivers notice of one that hangs, and of another tenant's backlog for one that does. */
export const isolation: Row = {
  name: "isolation",
  async measure(bench) {
    const hole = await openHole();
    const p99 = { alone: [] as number[], hanging: [] as number[], blackHole: [] as number[] };
    for (let round = 1; round <= bench.size.rounds; round++) {
      for (const name of Object.keys(TROUBLES) as (keyof typeof TROUBLES)[]) {
        const ms = await measureP99(bench, (database) => TROUBLES[name](database, hole.url));
        p99[name].push(ms);
        bench.progress(`isolation ${round}/${bench.size.rounds}: ${name} p99 ${ms.toFixed(1)} ms`);
      }
    }
    hole.close();
    const compare = (trouble: number[]): Pick<Result, "value" | "unit" | "figures"> => ({
      value: median(trouble.map((ms, round) => ms / (p99.alone[round] as number))),
      unit: "ratio",
      figures: `${median(trouble).toFixed(1)} ms ÷ ${median(p99.alone).toFixed(1)} ms`,
    });
    return [
      {
        what: `healthy receivers' p99 while 1 of ${HEALTHY + 1} hangs ÷ alone`,
        ...compare(p99.hanging),
        target: { floor: 2, goal: 1.3, better: "less" },
      },
      {
        what: `a tenant's p99 beside another's ${BACKLOG.toLocaleString("en-US")} rows due to a black hole ÷ alone`,
        ...compare(p99.blackHole),
        target: { floor: 1.5, goal: 1.3, better: "less" },
      },
    ];
  },
};

/** From the beginning of a Publish call to the first byte at each healthy receiver. */
async function measureP99({ postgres, receiver }: Bench, make: (database: BenchDatabase) => Promise<void>) {
  const database = await postgres.createDatabase({ migrated: true });
  for (let i = 0; i < HEALTHY; i++) {
    const url = `${receiver.url}/${i}`;
    await fillOutbox(database, { subscriptions: 1, ordering: "PER_USER", deliveries: 0, url });
  }
  await make(database);
  const server = await startServer(database);
  const worker = await startWorker(database, { maxInFlight: undefined, awaitReady: true });
  const seconds = WARM_UP_SECONDS + SECONDS;
  // One event more than the load: the publisher's first call, which opens its connection.
  const total = (PER_SECOND * seconds + 1) * HEALTHY;
  const { received } = await receiver.expect({ warmUp: 1, total, keepArrivals: true });
  const { calls } = await publishFrom(server.baseUrl, { kind: "steady", perSecond: PER_SECOND, seconds });
  const { arrivals } = await received;
  await Promise.all([worker.stop(), server.stop()]);
  await database.drop();

  const beganAtMs = new Map(calls.slice(WARM_UP_SECONDS * PER_SECOND).map((call) => [call.id, call.beganAtMs]));
  const times = arrivals.flatMap(([id, atMs]) => {
    const began = beganAtMs.get(id);
    return began === undefined ? [] : [atMs - began];
  });
  return percentile(times, 0.99);
}

/** Takes every connection, and never says a word. */
async function openHole(): Promise<{ url: string; close(): void }> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
    socket.resume();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    close() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}
