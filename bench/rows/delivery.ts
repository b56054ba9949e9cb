import { type Bench, median, medianRatio, perSecond, type Result, type Row, sharedNowMs } from "../bench.ts";
import { startPeer } from "../child.ts";
import { type DrainOptions, drainOutbox, untilEmpty, WARM_UP_SHARE } from "../drain.ts";
import { sampleBody } from "../events.ts";
import type { GraphileRequest } from "../peers/graphile-worker.ts";
import type { Handler } from "../peers/handler.ts";
import type { PgBossRequest } from "../peers/pg-boss.ts";
import type { PostLoopRequest } from "../peers/post-loop.ts";

const AT_ONCE = 256;
const ONE: DrainOptions = { subscriptions: 1, ordering: "NONE", maxInFlight: 256 };
const HUNDRED: DrainOptions = { subscriptions: 100, ordering: "NONE", maxInFlight: undefined };

/** A worker that empties a full outbox, beside what could be had without it: a bare loop, and two job queues. */
export const delivery: Row = {
  name: "delivery",
  async measure(bench) {
    const contestants = {
      loop: () => measureLoop(bench, "bare"),
      loopSame: () => measureLoop(bench, "same"),
      one: () => drainRate(bench, ONE),
      hundred: () => drainRate(bench, HUNDRED),
      oneOrdered: () => drainRate(bench, { ...ONE, ordering: "PER_USER" }),
      hundredOrdered: () => drainRate(bench, { ...HUNDRED, ordering: "PER_USER" }),
      graphile: () => measureGraphileWorker(bench, "same"),
      graphileBare: () => measureGraphileWorker(bench, "bare"),
      pgBoss: () => measurePgBoss(bench, { handler: "same", loops: 1 }),
      pgBossBare: () => measurePgBoss(bench, { handler: "bare", loops: 2 }),
    };
    const rates = Object.fromEntries(Object.keys(contestants).map((name) => [name, [] as number[]])) as Rates;
    for (let round = 1; round <= bench.size.rounds; round++) {
      for (const name of Object.keys(contestants) as Contestant[]) {
        const rate = await contestants[name]();
        rates[name].push(rate);
        bench.progress(`delivery ${round}/${bench.size.rounds}: ${name} ${perSecond(rate)}`);
      }
    }
    bench.plot({
      name: "deliveries",
      title: "Deliveries a second, to one receiver on the same two cores",
      kind: "bars",
      unit: "/s",
      bars: LABELS.map(([name, label]) => ({ label, rounds: rates[name], isOurs: name in OURS })),
    });
    return toResults(rates);
  },
};

const OURS = {
  one: "Nuncio, 1 subscription, NONE",
  hundred: "Nuncio, 100 subscriptions, NONE",
  oneOrdered: "Nuncio, 1 subscription, PER_USER",
  hundredOrdered: "Nuncio, 100 subscriptions, PER_USER",
} as const;
const LABELS: readonly (readonly [Contestant, string])[] = [
  ["loop", "bare undici loop, nothing stored"],
  ["loopSame", "the same with the worker's own send"],
  ...(Object.entries(OURS) as [Contestant, string][]),
  ["graphile", "graphile-worker, same handler"],
  ["graphileBare", "graphile-worker, only POSTs"],
  ["pgBoss", "pg-boss, same handler"],
  ["pgBossBare", "pg-boss, two loops, only POSTs"],
];

async function drainRate(bench: Bench, options: DrainOptions): Promise<number> {
  return (await drainOutbox(bench, options)).deliveriesPerSecond;
}

type Contestant =
  | "loop"
  | "loopSame"
  | "one"
  | "hundred"
  | "oneOrdered"
  | "hundredOrdered"
  | "graphile"
  | "graphileBare"
  | "pgBoss"
  | "pgBossBare";
type Rates = Record<Contestant, number[]>;

function toResults(rates: Rates): Result[] {
  const compare = (ours: Contestant, other: Contestant): Pick<Result, "value" | "unit" | "figures"> => ({
    value: medianRatio(rates[ours], rates[other]),
    unit: "ratio",
    figures: `${perSecond(median(rates[ours]))} ÷ ${perSecond(median(rates[other]))}`,
  });
  const toLoop = { floor: 0.33, goal: 0.42, better: "more" } as const;
  const toLoopOrdered = { floor: 0.28, goal: 0.36, better: "more" } as const;
  const toGraphile = { floor: 1.3, goal: 1.5, better: "more" } as const;
  const toPgBoss = { floor: 2.5, goal: 3, better: "more" } as const;
  return [
    { what: "deliveries, 1 subscription ÷ bare undici POST loop", ...compare("one", "loop"), target: toLoop },
    { what: "deliveries, 100 subscriptions ÷ bare undici POST loop", ...compare("hundred", "loop"), target: toLoop },
    {
      what: "the loop with the worker's own send, nothing stored ÷ bare undici POST loop",
      ...compare("loopSame", "loop"),
    },
    { what: "the same, 1 subscription, PER_USER", ...compare("oneOrdered", "loop"), target: toLoopOrdered },
    { what: "the same, 100 subscriptions, PER_USER", ...compare("hundredOrdered", "loop"), target: toLoopOrdered },
    {
      what: "deliveries, 1 subscription ÷ graphile-worker, same handler",
      ...compare("one", "graphile"),
      target: toGraphile,
    },
    { what: "deliveries, 100 subscriptions ÷ the same", ...compare("hundred", "graphile"), target: toGraphile },
    { what: "deliveries, 1 subscription ÷ graphile-worker that only POSTs", ...compare("one", "graphileBare") },
    { what: "deliveries, 1 subscription ÷ pg-boss, same handler", ...compare("one", "pgBoss"), target: toPgBoss },
    { what: "deliveries, 100 subscriptions ÷ the same", ...compare("hundred", "pgBoss"), target: toPgBoss },
    { what: "deliveries, 1 subscription ÷ pg-boss with two loops that only POSTs", ...compare("one", "pgBossBare") },
  ];
}

async function measureLoop({ receiver, size }: Bench, handler: Handler): Promise<number> {
  // A loop of a second or less measures its own start.
  const requests = size.deliveries * 2;
  const warmUp = Math.round(requests * WARM_UP_SHARE);
  const { received } = await receiver.expect({ warmUp, total: requests, keepArrivals: false });
  const loop = startPeer<PostLoopRequest, string>("post-loop.ts");
  await loop.ready;
  await loop.ask({ url: receiver.url, body: sampleBody(), atOnce: AT_ONCE, requests, handler });
  const { warmAtMs, lastAtMs } = await received;
  await loop.stop();
  return ((requests - warmUp) / (lastAtMs - warmAtMs)) * 1_000;
}

async function measureGraphileWorker(
  { postgres, receiver, size: { deliveries } }: Bench,
  handler: Handler,
): Promise<number> {
  const { makeWorkerUtils } = await import("graphile-worker");
  const database = await postgres.createDatabase({ migrated: false });
  const utils = await makeWorkerUtils({ connectionString: database.url });
  await utils.migrate();
  const payload = JSON.parse(sampleBody());
  for (let done = 0; done < deliveries; done += 1_000) {
    const count = Math.min(1_000, deliveries - done);
    await utils.addJobs(Array.from({ length: count }, () => ({ identifier: "post", payload })));
  }
  await utils.release();
  await database.admin`VACUUM ANALYZE`;

  const warmUp = Math.round(deliveries * WARM_UP_SHARE);
  const { received } = await receiver.expect({ warmUp, total: deliveries, keepArrivals: false });
  const worker = startPeer<GraphileRequest, string>("graphile-worker.ts");
  await worker.ready;
  await worker.ask({ databaseUrl: database.url, url: receiver.url, atOnce: AT_ONCE, handler });
  const { warmAtMs } = await received;
  await untilEmpty(database.admin, "graphile_worker._private_jobs");
  const emptyAtMs = sharedNowMs();
  await worker.stop();
  await database.drop();
  return ((deliveries - warmUp) / (emptyAtMs - warmAtMs)) * 1_000;
}

async function measurePgBoss(
  { postgres, receiver, size: { deliveries } }: Bench,
  how: Pick<PgBossRequest, "handler" | "loops">,
): Promise<number> {
  const { PgBoss } = await import("pg-boss");
  const queue = "deliveries";
  const database = await postgres.createDatabase({ migrated: false });
  const boss = new PgBoss({ connectionString: database.url, max: 1 });
  await boss.start();
  await boss.createQueue(queue);
  const data = JSON.parse(sampleBody());
  for (let done = 0; done < deliveries; done += 1_000) {
    await boss.insert(
      queue,
      Array.from({ length: Math.min(1_000, deliveries - done) }, () => ({ data })),
    );
  }
  await boss.stop();
  await database.admin`VACUUM ANALYZE`;

  const warmUp = Math.round(deliveries * WARM_UP_SHARE);
  const { received } = await receiver.expect({ warmUp, total: deliveries, keepArrivals: false });
  const worker = startPeer<PgBossRequest, string>("pg-boss.ts");
  await worker.ready;
  await worker.ask({ databaseUrl: database.url, url: receiver.url, queue, ...how });
  const { warmAtMs } = await received;
  await untilEmpty(database.admin, "pgboss.job", `name = '${queue}' AND state < 'completed'`);
  const emptyAtMs = sharedNowMs();
  await worker.stop();
  await database.drop();
  return ((deliveries - warmUp) / (emptyAtMs - warmAtMs)) * 1_000;
}
