import { setTimeout as delay } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { type Client, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { v7 as uuidV7 } from "uuid";
import { type Event, EventSchema } from "../../gen/nuncio/v1/event_pb.ts";
import { EventService } from "../../gen/nuncio/v1/event_service_pb.ts";
import { sharedNowMs } from "../bench.ts";
import { wireEvent } from "../events.ts";

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
  /** Of a steady load: event id and when its call began, by the shared clock. */
  readonly began: readonly (readonly [id: string, atMs: number])[];
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
  const client = connect(request);
  const { load, tenantId } = request;
  await client().publish({ event: wireEvent(tenantId, `evt_${uuidV7()}`) });
  // Made before the clock starts: this process shares the cores with what is measured.
  const count = load.kind === "batch" ? load.batches * load.events : load.kind === "unary" ? load.calls : 0;
  const events = Array.from({ length: count }, () => create(EventSchema, wireEvent(tenantId, `evt_${uuidV7()}`)));
  const beganAtMs = sharedNowMs();
  const began: [string, number][] = [];
  if (load.kind === "unary") {
    await repeat(load.calls, load.atOnce, async () => {
      await client().publish({ event: events.pop() as Event });
    });
  } else if (load.kind === "batch") {
    await repeat(load.batches, load.atOnce, async () => {
      const { results } = await client().batchPublish({ events: events.splice(-load.events) });
      const failed = results.find(({ result }) => result.case !== "success");
      if (failed) throw new Error(`an event of the batch failed: ${JSON.stringify(failed.result.value)}`);
    });
  } else {
    // An open loop: who is late catches up, and a slow answer holds nothing back.
    const calls: Promise<unknown>[] = [];
    while (calls.length < load.perSecond * load.seconds) {
      const due = Math.floor(((sharedNowMs() - beganAtMs) / 1_000) * load.perSecond);
      while (calls.length < Math.min(due, load.perSecond * load.seconds)) {
        const id = `evt_${uuidV7()}`;
        began.push([id, sharedNowMs()]);
        calls.push(client().publish({ event: wireEvent(tenantId, id) }));
      }
      await delay(1);
    }
    await Promise.all(calls);
  }
  return { elapsedMs: sharedNowMs() - beganAtMs, began };
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
