import { createServer } from "node:net";
import { type Bench, median, medianRatio, perSecond, type Result, type Row } from "../bench.ts";
import { type DrainOptions, drainOutbox, measureDrain } from "../drain.ts";
import { fillOutbox } from "../nuncio.ts";

const MANY = 10_000;
const ZIPF_TENANTS = 1_000;
const ORDERED = { ordering: "PER_USER" } as const;
const TEN = { ...ORDERED, subscriptions: 10 };
const HUNDRED = { ...ORDERED, subscriptions: 100 };

/** How the rate of deliveries holds with many lanes, with few big tenants among many, with a dead one, with more workers. */
export const scale: Row = {
  name: "scale",
  async measure(bench) {
    const contestants = {
      hundred: () => drainRate(bench, HUNDRED),
      many: () => drainRate(bench, { ...ORDERED, subscriptions: MANY }),
      zipf: () => drainRate(bench, { ...ORDERED, subscriptions: ZIPF_TENANTS, spread: zipf(ZIPF_TENANTS) }),
      joined: () => drainRate(bench, { ...HUNDRED, joined: true }),
      two: () => drainRate(bench, { ...HUNDRED, workers: 2, joined: true }),
      four: () => drainRate(bench, { ...HUNDRED, workers: 4, joined: true }),
      ten: () => drainRate(bench, TEN),
      tenAndDead: () => rateBesideDead(bench),
    };
    const names = Object.keys(contestants) as (keyof typeof contestants)[];
    const rates = Object.fromEntries(names.map((name) => [name, [] as number[]])) as Record<
      (typeof names)[number],
      number[]
    >;
    for (let round = 1; round <= bench.size.rounds; round++) {
      for (const name of names) {
        const rate = await contestants[name]();
        rates[name].push(rate);
        bench.progress(`scale ${round}/${bench.size.rounds}: ${name} ${perSecond(rate)}`);
      }
    }
    const compare = (what: string, ours: number[], other: number[]): Result => ({
      what,
      value: medianRatio(ours, other),
      unit: "ratio",
      figures: `${perSecond(median(ours))} ÷ ${perSecond(median(other))}`,
    });
    return [
      compare(`deliveries, ${MANY.toLocaleString("en-US")} subscriptions ÷ 100, PER_USER`, rates.many, rates.hundred),
      compare(
        `deliveries, ${ZIPF_TENANTS.toLocaleString("en-US")} tenants by Zipf ÷ 100 alike`,
        rates.zipf,
        rates.hundred,
      ),
      compare("deliveries, two workers ÷ one, 100 subscriptions", rates.two, rates.joined),
      compare("deliveries, four workers ÷ one, 100 subscriptions", rates.four, rates.joined),
      compare(
        "deliveries to ten receivers beside an eleventh that is dead, as much due to each ÷ to the ten alone",
        rates.tenAndDead,
        rates.ten,
      ),
    ];
  },
};

async function drainRate(bench: Bench, options: DrainOptions): Promise<number> {
  return (await drainOutbox(bench, options)).deliveriesPerSecond;
}

async function rateBesideDead(bench: Bench): Promise<number> {
  const { postgres, receiver, size } = bench;
  const database = await postgres.createDatabase({ migrated: true });
  const share = Math.round(size.deliveries / TEN.subscriptions);
  const dead = await refusingUrl();
  await fillOutbox(database, {
    ...ORDERED,
    subscriptions: 1,
    deliveries: share,
    url: dead,
    firstTenant: TEN.subscriptions,
  });
  await fillOutbox(database, { ...TEN, deliveries: size.deliveries, url: receiver.url });
  const [row] = await database.admin<{ key: number }[]>`
    SELECT min(subscription_key) AS key FROM nuncio.webhook_subscriptions`;
  const { deliveriesPerSecond } = await measureDrain(bench, database, { rows: `subscription_key <> ${row?.key}` });
  await database.drop();
  return deliveriesPerSecond;
}

/** An address where nobody listens any more. */
export async function refusingUrl(): Promise<string> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return `http://127.0.0.1:${port}/`;
}

/** The k-th of so many gets a share in proportion to 1/k, spread evenly over the run: the first of 1,000 gets 13 in 100. */
function zipf(count: number): (n: number) => number {
  const upTo: number[] = [];
  for (let k = 1, total = 0; k <= count; k += 1) {
    total += 1 / k;
    upTo.push(total);
  }
  const total = upTo.at(-1) as number;
  const golden = (Math.sqrt(5) - 1) / 2;
  return (n) => {
    const point = ((n * golden) % 1) * total;
    let [low, high] = [0, count - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((upTo[middle] as number) < point) low = middle + 1;
      else high = middle;
    }
    return low;
  };
}
