import { Code } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { useOwnPostgres } from "../support/own-postgres.ts";
import { PASSING, startPair, survive as surviveWith } from "../support/survival.ts";

const postgres = useOwnPostgres();
const pair = startPair(postgres);
const survive = (fault: Parameters<typeof surviveWith>[1]) => surviveWith(pair, fault);

describe("nothing accepted is lost, everything drains and nobody is needed", { timeout: 100_000 }, () => {
  it("[B09] [B44] when Postgres is killed and comes back", async () => {
    const { failures } = await survive(async (traffic) => {
      await postgres.kill();
      await traffic.until(({ failures: seen }) => seen.length >= 10);
      await postgres.start();
    });
    expect(failures.filter((code) => !PASSING.includes(code))).toEqual([]);
  });

  it("[B44] when Postgres is restarted in good order", async () => {
    const { failures } = await survive(async (traffic) => {
      await postgres.stop();
      await traffic.until(({ failures: seen }) => seen.length >= 4);
      await postgres.start();
    });
    expect(failures.filter((code) => !PASSING.includes(code))).toEqual([]);
  });

  it("[B44] when its connections are ended at random", async () => {
    await survive(async (traffic) => {
      for (let round = 0; round < 30; round += 1) {
        const before = traffic.accepted.length;
        await postgres.admin`
          SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE application_name LIKE 'nuncio_%' AND datname = current_database() AND pid % 3 = ${round % 3}`;
        await traffic.until(({ accepted }) => accepted.length > before);
      }
    });
  });

  it("[B44] when it vanishes without a word, its connections left open", async () => {
    const { failures } = await survive(async (traffic) => {
      pair.proxy.silence("both");
      await traffic.until(({ failures: seen }) => seen.length >= 12);
      // It is there again, and knows nothing of the old connections: they stay silent for ever.
      pair.proxy.abandon();
    });
    expect(failures.filter((code) => !PASSING.includes(code))).toEqual([]);
  });

  it("[B08] [B44] when connections are cut between a commit and its answer", async () => {
    await survive(async (traffic, tenant) => {
      for (let round = 0; round < 5; round += 1) {
        const before = traffic.accepted.length;
        await pair.proxy.silenceAfter(tenant);
        pair.proxy.cut();
        pair.proxy.silence("none");
        await traffic.until(({ accepted }) => accepted.length > before);
      }
    });
  });

  it("[B09] when it takes no writes: UNAVAILABLE, and never a false OK", async () => {
    const { failures } = await survive(async (traffic) => {
      // Ours goes on writing, to end it again.
      await postgres.admin`SET default_transaction_read_only = off`;
      await postgres.admin`ALTER SYSTEM SET default_transaction_read_only = on`;
      await postgres.admin`SELECT pg_reload_conf()`;
      await traffic.until(({ failures: seen }) => seen.length >= 20);
      const before = traffic.accepted.length;
      await traffic.until(({ failures: seen }) => seen.length >= 40);
      expect(traffic.accepted.length).toBe(before);
      await postgres.admin`ALTER SYSTEM RESET default_transaction_read_only`;
      await postgres.admin`SELECT pg_reload_conf()`;
    });
    expect(failures.filter((code) => !PASSING.includes(code))).toEqual([]);
    expect(failures).toContain(Code.Unavailable);
  });

  it("[B09] when it is slow: every answer tells the truth", async () => {
    await survive(async (traffic) => {
      const delayed = pair.proxy.delay(400);
      const before = traffic.accepted.length;
      await traffic.until(({ accepted }) => accepted.length >= before + 20);
      delayed.end();
    });
  });
});
