import { setTimeout as delay } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { type Client, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { v7 as uuidV7 } from "uuid";
import { type Event, EventSchema } from "../../gen/nuncio/v1/event_pb.ts";
import { EventService } from "../../gen/nuncio/v1/event_service_pb.ts";
import { sharedNowMs } from "../bench.ts";
import { wireEvent } from "../events.ts";
import { openRawPublisher } from "./raw-publisher.ts";

export type PublisherRequest = {
  readonly baseUrl: string;
  readonly key: string;
  readonly tenantId: string;
  readonly connections: number;
  readonly load:
    | { readonly kind: "unary"; readonly calls: number; readonly atOnce: number }
    | { readonly kind: "batch"; readonly batches: number; readonly events: number; readonly atOnce: number }
    | { readonly kind: "steady"; readonly perSecond: number; readonly seconds: number };
};

export type PublisherAnswer = {
  readonly elapsedMs: number;
  /** Of a steady load: each call's event, when it began and when it was answered, by the shared clock. */
  readonly calls: readonly { readonly id: string; readonly beganAtMs: number; readonly answeredAtMs: number }[];
};

function connect({ baseUrl, key, connections }: PublisherRequest): () => Client<typeof EventService> {
  const bearer: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
  const clients = Array.from({ length: connections }, () =>
    createClient(
      EventService,
      createConnectTransport({ baseUrl, httpVersion: "2", useBinaryFormat: true, interceptors: [bearer] }),
    ),
  );
  let turn = 0;
  return () => clients[turn++ % connections] as Client<typeof EventService>;
}

async function run(request: PublisherRequest): Promise<PublisherAnswer> {
  const { load } = request;
  return load.kind === "steady" ? runSteadily(request, load) : runFlatOut(request, load);
}

type Steady = Extract<PublisherRequest["load"], { kind: "steady" }>;
type FlatOut = Exclude<PublisherRequest["load"], Steady>;

async function runFlatOut(request: PublisherRequest, load: FlatOut): Promise<PublisherAnswer> {
  const client = connect(request);
  const { tenantId } = request;
  await client().publish({ event: wireEvent(tenantId, `evt_${uuidV7()}`) });
  // Made before the clock starts: this process shares the cores with what is measured.
  const count = load.kind === "batch" ? load.batches * load.events : load.calls;
  const events = Array.from({ length: count }, () => create(EventSchema, wireEvent(tenantId, `evt_${uuidV7()}`)));
  const beganAtMs = sharedNowMs();
  if (load.kind === "unary") {
    await repeat(load.calls, load.atOnce, async () => {
      await client().publish({ event: events.pop() as Event });
    });
  } else {
    await repeat(load.batches, load.atOnce, async () => {
      const { results } = await client().batchPublish({ events: events.splice(-load.events) });
      const failed = results.find(({ result }) => result.case !== "success");
      if (failed) throw new Error(`an event of the batch failed: ${JSON.stringify(failed.result.value)}`);
    });
  }
  return { calls: [], elapsedMs: sharedNowMs() - beganAtMs };
}

/** An open loop: who is late catches up, and a slow answer holds nothing back. */
async function runSteadily({ baseUrl, key, tenantId }: PublisherRequest, load: Steady): Promise<PublisherAnswer> {
  const publisher = await openRawPublisher(baseUrl, key, tenantId);
  await publisher.publish(`evt_${uuidV7()}`);
  const total = load.perSecond * load.seconds;
  const startedAtMs = sharedNowMs();
  const calls: Promise<PublisherAnswer["calls"][number]>[] = [];
  while (calls.length < total) {
    const due = Math.floor(((sharedNowMs() - startedAtMs) / 1_000) * load.perSecond);
    while (calls.length < Math.min(due, total)) {
      const id = `evt_${uuidV7()}`;
      const beganAtMs = sharedNowMs();
      calls.push(publisher.publish(id).then(() => ({ id, beganAtMs, answeredAtMs: sharedNowMs() })));
    }
    await delay(1);
  }
  const answered = await Promise.all(calls);
  await publisher.close();
  return { calls: answered, elapsedMs: sharedNowMs() - startedAtMs };
}

async function repeat(times: number, atOnce: number, work: () => Promise<void>): Promise<void> {
  let left = times;
  const loop = async () => {
    while (left-- > 0) await work();
  };
  await Promise.all(Array.from({ length: atOnce }, loop));
}

process.on("message", async (request: PublisherRequest) => {
  process.send?.(await run(request));
});
process.send?.("ready");
