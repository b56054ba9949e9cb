import { median, perSecond, type Row } from "../bench.ts";
import { fillOutbox, startServer } from "../nuncio.ts";
import { publishFrom } from "../publishing.ts";

const EVENTS = 200;
const AT_ONCE = 4;

/** Events per second in batches, one subscription matching. */
export const batchPublish: Row = {
  name: "batch-publish",
  async measure({ postgres, receiver, size, progress }) {
    const database = await postgres.createDatabase({ migrated: true });
    await fillOutbox(database, { subscriptions: 1, ordering: "PER_USER", deliveries: 0, url: receiver.url });
    const server = await startServer(database);
    const load = (batches: number) => ({ kind: "batch", batches, events: EVENTS, atOnce: AT_ONCE }) as const;
    await publishFrom(server.baseUrl, load(Math.ceil(size.batches / 4)));
    const rates: number[] = [];
    for (let round = 1; round <= size.rounds; round++) {
      const { elapsedMs } = await publishFrom(server.baseUrl, load(size.batches));
      const rate = ((size.batches * EVENTS) / elapsedMs) * 1_000;
      rates.push(rate);
      progress(`batch-publish ${round}/${size.rounds}: ${perSecond(rate)}`);
    }
    await server.stop();
    await database.drop();
    return [
      {
        what: "BatchPublish, 200 events a batch, 4 at once, one subscription matching, PER_USER",
        value: median(rates),
        unit: "events/s",
        figures: rates.map(perSecond).join(", "),
        target: { floor: 15_000, goal: 30_000, better: "more" },
      },
    ];
  },
};
