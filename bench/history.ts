import { DeliveryState } from "../gen/nuncio/v1/delivery_pb.ts";
import { connectToNuncio, type Nuncio } from "../src/cli/client.ts";
import { type Bench, median, percentile, type Result } from "./bench.ts";
import { OPERATOR_KEY, startServer, tenantName } from "./nuncio.ts";
import type { BenchDatabase } from "./postgres.ts";

const ASKED = 60;
const WARM_UP = 10;

/** What it takes to look at a long history, through a real server, one question after the other. */
export async function measureHistory(
  { progress, size }: Bench,
  database: BenchDatabase,
  tenant: number,
): Promise<Result[]> {
  const server = await startServer(database);
  const nuncio = connectToNuncio(server.baseUrl, OPERATOR_KEY);
  const results: Result[] = [];
  for (const [question, ask] of Object.entries(await questionsOf(nuncio, tenantName(tenant), size.finished))) {
    const times: number[] = [];
    for (let i = 0; i < ASKED; i++) {
      const beganAtMs = performance.now();
      await ask(i);
      if (i >= WARM_UP) times.push(performance.now() - beganAtMs);
    }
    progress(`history: ${question}: ${median(times).toFixed(1)} ms`);
    results.push({
      what: `${question}, among ${size.finished.toLocaleString("en-US")} finished and ${size.pending.toLocaleString("en-US")} pending deliveries of the same subscription, p50`,
      value: median(times),
      unit: "ms",
      figures: `${times.length} times; p99 ${percentile(times, 0.99).toFixed(1)} ms`,
    });
  }
  nuncio.close();
  await server.stop();
  return results;
}

type Question = (nth: number) => Promise<unknown>;

/** Each asks for another place of the history every time. */
async function questionsOf(
  { deliveries, events }: Nuncio,
  tenantId: string,
  finished: number,
): Promise<Record<string, Question>> {
  const idOf = (nth: number) => `finished_${1 + ((nth * 7_919) % finished)}`;
  const placeOf = async (nth: number) => (await events.getEvent({ tenantId, id: idOf(nth) })).event?.createTime;
  const places = await Promise.all(Array.from({ length: ASKED }, (_, nth) => placeOf(nth)));
  const { deliveries: known } = await deliveries.listDeliveries({
    tenantId,
    states: [DeliveryState.DELIVERED],
    pageSize: ASKED,
  });
  const before = (nth: number) => {
    const createTimeBefore = places[nth];
    return createTimeBefore ? { createTimeBefore } : {};
  };
  return {
    "ListDeliveries, a page of 50 anywhere": (nth) => deliveries.listDeliveries({ tenantId, ...before(nth) }),
    "ListDeliveries, 50 that are delivered": (nth) =>
      deliveries.listDeliveries({ tenantId, states: [DeliveryState.DELIVERED], ...before(nth) }),
    "ListDeliveries, those of a user": (nth) =>
      deliveries.listDeliveries({ tenantId, userId: idOf(nth).replace("finished", "f") }),
    GetDelivery: (nth) => deliveries.getDelivery({ tenantId, id: known[nth % known.length]?.id ?? "" }),
    GetEvent: (nth) => events.getEvent({ tenantId, id: idOf(nth) }),
    "ListEvents, a page of 50 anywhere": (nth) => events.listEvents({ tenantId, ...before(nth) }),
  };
}
