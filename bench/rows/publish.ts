import { median, medianRatio, perSecond, type Row } from "../bench.ts";
import { fillOutbox, startServer, startServerWithoutStorage } from "../nuncio.ts";
import { publishFrom } from "../publishing.ts";

const AT_ONCE = 64;

/** What storing costs a Publish: the real server beside the same one without a store. */
export const publish: Row = {
  name: "publish",
  async measure({ postgres, receiver, size, progress }) {
    const database = await postgres.createDatabase({ migrated: true });
    await fillOutbox(database, { subscriptions: 1, ordering: "PER_USER", deliveries: 0, url: receiver.url });
    const real = await startServer(database);
    const bare = await startServerWithoutStorage();
    const rates = { real: [] as number[], bare: [] as number[] };
    const load = (calls: number) => ({ kind: "unary", calls, atOnce: AT_ONCE }) as const;
    for (const { baseUrl } of [real, bare]) await publishFrom(baseUrl, load(Math.ceil(size.calls / 4)));
    for (let round = 1; round <= size.rounds; round++) {
      for (const [name, { baseUrl }] of [["bare", bare] as const, ["real", real] as const]) {
        const { elapsedMs } = await publishFrom(baseUrl, load(size.calls));
        const rate = (size.calls / elapsedMs) * 1_000;
        rates[name].push(rate);
        progress(`publish ${round}/${size.rounds}: ${name} ${perSecond(rate)}`);
      }
    }
    await Promise.all([real.stop(), bare.stop()]);
    await database.drop();
    return [
      {
        what: "Publish, unary, 64 at once ÷ the same handler without storage",
        value: medianRatio(rates.real, rates.bare),
        unit: "ratio",
        figures: `${perSecond(median(rates.real))} ÷ ${perSecond(median(rates.bare))}`,
        target: { floor: 0.7, goal: 0.85, better: "more" },
      },
    ];
  },
};
