import { percentile, type Row } from "../bench.ts";
import { fillOutbox, startServer, startWorker } from "../nuncio.ts";
import { publishFrom } from "../publishing.ts";

const PER_SECOND = 500;
/** The first seconds open connections; they are sent but not counted. */
const WARM_UP_SECONDS = 3;

/** From the beginning of a Publish call to the first byte at the receiver, under a steady load. */
export const latency: Row = {
  name: "latency",
  async measure({ postgres, receiver, size, progress }) {
    const database = await postgres.createDatabase({ migrated: true });
    await fillOutbox(database, { subscriptions: 1, ordering: "PER_USER", deliveries: 0, url: receiver.url });
    const server = await startServer(database);
    const worker = await startWorker(database, { maxInFlight: undefined, awaitReady: true });
    // At 500 a second V8 would take minutes to compile what it has long compiled in a server that has been up for an hour.
    progress(`latency: ${size.calls} calls to warm up`);
    const warm = await receiver.expect({ warmUp: 1, total: size.calls + 1, keepArrivals: false });
    await publishFrom(server.baseUrl, { kind: "unary", calls: size.calls, atOnce: 16 });
    await warm.received;
    const seconds = WARM_UP_SECONDS + size.latencySeconds;
    // One more than the load: the publisher's first call, which opens its connection.
    const total = PER_SECOND * seconds + 1;
    const { received } = await receiver.expect({ warmUp: 1, total, keepArrivals: true });
    progress(`latency: ${PER_SECOND}/s for ${seconds} s`);
    const { calls } = await publishFrom(server.baseUrl, { kind: "steady", perSecond: PER_SECOND, seconds });
    const { arrivals } = await received;
    await Promise.all([worker.stop(), server.stop()]);
    await database.drop();

    const arrivedAtMs = new Map<string, number>();
    for (const [id, atMs] of arrivals) if (!arrivedAtMs.has(id)) arrivedAtMs.set(id, atMs);
    const measured = calls.slice(WARM_UP_SECONDS * PER_SECOND);
    const times = measured.map(({ id, beganAtMs }) => (arrivedAtMs.get(id) ?? Number.NaN) - beganAtMs);
    const answers = measured.map(({ beganAtMs, answeredAtMs }) => answeredAtMs - beganAtMs);
    const longest = Math.round(Math.max(...times));
    const figuresAt = (share: number) =>
      `${times.length} events; longest ${longest} ms; Publish alone ${percentile(answers, share).toFixed(1)} ms`;
    return [
      {
        what: "publish → first byte at the receiver, 500/s, p50",
        value: percentile(times, 0.5),
        unit: "ms",
        figures: figuresAt(0.5),
        target: { floor: 10, goal: 5, better: "less" },
      },
      {
        what: "publish → first byte at the receiver, 500/s, p99",
        value: percentile(times, 0.99),
        unit: "ms",
        figures: figuresAt(0.99),
        target: { floor: 40, goal: 20, better: "less" },
      },
    ];
  },
};
