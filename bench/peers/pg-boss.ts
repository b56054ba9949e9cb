import { PgBoss } from "pg-boss";
import { openPost } from "./post.ts";

export type PgBossRequest = { readonly databaseUrl: string; readonly url: string; readonly queue: string };

const BATCH = 200;

/** pg-boss with batches of 200 and no pause between full ones; two loops, so that one fetches while the other posts. */
process.on("message", async ({ databaseUrl, url, queue }: PgBossRequest) => {
  const { post } = openPost(url, 2 * BATCH);
  const boss = new PgBoss({ connectionString: databaseUrl, max: 10 });
  boss.on("error", (error) => process.stderr.write(`${error.message}\n`));
  await boss.start();
  const options = { batchSize: BATCH, localConcurrency: 2, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 };
  await boss.work<object>(queue, options, async (jobs) => {
    await Promise.all(jobs.map(({ data }) => post(Buffer.from(JSON.stringify(data)))));
  });
  process.send?.("started");
});
process.send?.("ready");
