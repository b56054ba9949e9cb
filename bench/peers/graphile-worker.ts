import { Logger, run } from "graphile-worker";
import { type Handler, openHandler } from "./handler.ts";

export type GraphileRequest = {
  readonly databaseUrl: string;
  readonly url: string;
  readonly atOnce: number;
  readonly handler: Handler;
};

/** graphile-worker as its own performance page sets it up: a local queue, and completions in batches. */
process.on("message", async ({ databaseUrl, url, atOnce, handler }: GraphileRequest) => {
  const { post } = openHandler(handler, url, atOnce);
  await run({
    preset: {
      worker: {
        connectionString: databaseUrl,
        concurrentJobs: atOnce,
        maxPoolSize: 10,
        pollInterval: 1_000,
        localQueue: { size: 500 },
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0,
      },
    },
    logger: new Logger(() => () => undefined),
    noHandleSignals: true,
    taskList: { post: (payload) => post(Buffer.from(JSON.stringify(payload))) },
  });
  process.send?.("started");
});
process.send?.("ready");
