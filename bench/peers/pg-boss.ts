import { PgBoss } from "pg-boss";
import { type Handler, openHandler } from "./handler.ts";

export type PgBossRequest = {
  readonly databaseUrl: string;
  readonly url: string;
  readonly queue: string;
  readonly handler: Handler;
  /** How many batches are on their way at once; pg-boss' default is one. */
  readonly loops: number;
};

const BATCH = 200;

/** pg-boss with batches of 200, and no pause between full ones. */
process.on("message", async ({ databaseUrl, url, queue, handler, loops }: PgBossRequest) => {
  const { post } = openHandler(handler, url, loops * BATCH);
  const boss = new PgBoss({ connectionString: databaseUrl, max: 10 });
  boss.on("error", (error) => process.stderr.write(`${error.message}\n`));
  await boss.start();
  const options = { batchSize: BATCH, localConcurrency: loops, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 };
  await boss.work<object>(queue, options, async (jobs) => {
    await Promise.all(jobs.map(({ data }) => post(Buffer.from(JSON.stringify(data)))));
  });
  process.send?.("started");
});
process.send?.("ready");
