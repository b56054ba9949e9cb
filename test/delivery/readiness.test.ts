import postgres from "postgres";
import { describe, expect, it } from "vitest";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { GroupCommit } from "../../src/store/outbox/group-commit.ts";
import { cleanUp } from "../support/clean-up.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, toRow } from "../support/fixtures.ts";
import { startLoop } from "../support/loop.ts";
import { openReceiver } from "../support/receiver.ts";

const db = useDatabase();

async function publish(tenantId: string, count: number) {
  const rows = Array.from({ length: count }, (_, i) =>
    toRow(draftEvent(tenantId, { user: { id: `u_${i}`, status: "ACTIVE" } })),
  );
  await appendEvents(db.server.hot, rows, { maxPendingMs: 86_400_000 });
}

/** A loop on a clock that can be put forward. */
function startShiftedLoop(changes: Parameters<typeof startLoop>[1] = {}) {
  let aheadMs = 0;
  const loop = startLoop(db, { nowMs: () => performance.now() + aheadMs, ...changes });
  return {
    loop,
    putForward: (ms: number) => {
      aheadMs += ms;
    },
  };
}

/** Locks a table until it is let go. */
async function lock(table: string) {
  const sql = postgres(db.url.reveal(), { max: 1 });
  cleanUp(() => sql.end({ timeout: 0 }));
  await sql.unsafe(`BEGIN; LOCK TABLE nuncio.${table} IN ACCESS EXCLUSIVE MODE`);
  return { letGo: () => sql.end({ timeout: 0 }) };
}

describe("a worker is not ready", () => {
  it("before it has looked at the outbox", async () => {
    const loop = startLoop(db);
    expect(loop.findStalls()).toContain("the outbox has not been looked at yet");
    await expect.poll(() => loop.findStalls()).toEqual([]);
    await loop.stop();
  });

  it("while what was attempted cannot be recorded", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    await addSubscription(db, tenant, { url: receiver.url });
    const { loop, putForward } = startShiftedLoop();
    const attempts = await lock("delivery_attempts");
    await publish(tenant, 3);
    await receiver.until(() => receiver.received.length === 3);
    await expect.poll(() => loop.findStalls()).toEqual([]);
    await expect.poll(() => loop.state()).toMatchObject({ inFlight: 0, unrecorded: 3, slots: 64 });
    putForward(16_000);
    expect(loop.findStalls()).toContainEqual(
      expect.stringMatching(/^no attempt could be recorded for 16 s, and 3 wait$/),
    );
    await attempts.letGo();
    await loop.until((events) => events.filter(({ kind }) => kind === "attempted").length === 3);
    await expect.poll(() => loop.findStalls(), { timeout: 20_000 }).toEqual([]);
    await loop.stop();
  });

  it("while it cannot look at the outbox", async () => {
    const { loop, putForward } = startShiftedLoop();
    await loop.until((events) => events.some(({ kind }) => kind === "looked"));
    const outbox = await lock("outbox");
    putForward(30_000);
    await expect
      .poll(() => loop.findStalls().join())
      .toMatch(/^the outbox was last looked at \d+ s ago|the last look at the outbox failed/);
    await outbox.letGo();
    await expect.poll(() => loop.findStalls(), { timeout: 20_000 }).toEqual([]);
    await loop.stop();
  });

  it("while what is due is not claimed though there is room", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    await addSubscription(db, tenant, { url: receiver.url });
    await db.admin`REVOKE EXECUTE ON FUNCTION nuncio.claim_deliveries FROM nuncio_worker`;
    const { loop, putForward } = startShiftedLoop();
    await publish(tenant, 1);
    await loop.until((events) => events.some((event) => event.kind === "failed" && event.step === "claim"));
    putForward(16_000);
    await expect
      .poll(() => loop.findStalls().join())
      .toMatch(/deliveries are due, and no claim was answered for \d+ s/);
    await db.admin`GRANT EXECUTE ON FUNCTION nuncio.claim_deliveries TO nuncio_worker`;
    await receiver.until(() => receiver.received.length === 1);
    await expect.poll(() => loop.findStalls(), { timeout: 20_000 }).toEqual([]);
    await loop.stop();
  });

  it("while its heartbeat does not get through", async () => {
    const { loop, putForward } = startShiftedLoop();
    await loop.until((events) => events.some(({ kind }) => kind === "workers"));
    const workers = await lock("workers");
    putForward(7_000);
    expect(loop.findStalls()).toEqual([expect.stringMatching(/^no heartbeat gets through/)]);
    await workers.letGo();
    await expect.poll(() => loop.findStalls(), { timeout: 20_000 }).toEqual([]);
    await loop.stop();
  });

  it("but is while a receiver takes its time, and more waits for it", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver(() => undefined);
    await addSubscription(db, tenant, { url: receiver.url });
    const { loop, putForward } = startShiftedLoop({ maxInFlight: 1, requestTimeoutMs: 20_000 });
    await publish(tenant, 3);
    await receiver.until(() => receiver.received.length === 1);
    putForward(14_000);
    await loop.until((events) => events.filter(({ kind }) => kind === "looked").length > 1);
    putForward(4_000);
    expect(loop.findStalls().filter((stall) => stall.includes("due"))).toEqual([]);
    await receiver.close();
    await loop.stop();
  });
});

describe("a server is not ready", () => {
  const openGroupCommit = (append: () => Promise<never>) => {
    let nowMs = 60_000;
    const groupCommit = new GroupCommit({
      append,
      onCommitted: () => undefined,
      nowMs: () => nowMs,
      writers: 1,
      groupRows: 10,
      maxQueuedRows: 100,
      maxQueuedBytes: 1_000_000,
      timeoutMs: 60_000,
    });
    return {
      groupCommit,
      publish: () => groupCommit.publish([toRow(draftEvent(newTenant()))]).catch(() => "failed"),
      putForward: (ms: number) => {
        nowMs += ms;
      },
    };
  };

  it("while no commit ends", async () => {
    const commit = Promise.withResolvers<never>();
    const begun = Promise.withResolvers<void>();
    const { groupCommit, publish, putForward } = openGroupCommit(() => {
      begun.resolve();
      return commit.promise;
    });
    expect(groupCommit.findStalls()).toEqual([]);
    const published = publish();
    await begun.promise;
    putForward(5_000);
    expect(groupCommit.findStalls()).toEqual([]);
    putForward(1);
    expect(groupCommit.findStalls()).toEqual(["publishes wait, and no commit has succeeded for 5 s"]);
    commit.reject(new Error("at last"));
    expect(await published).toBe("failed");
    await expect.poll(() => groupCommit.findStalls()).toEqual([]);
  });

  it("while every commit fails for want of Postgres, and is again once nobody has tried for a while", async () => {
    const timeout = Object.assign(new Error("canceling statement"), { code: "57014" });
    const { groupCommit, publish, putForward } = openGroupCommit(() => Promise.reject(timeout));
    for (let i = 0; i < 3; i += 1) {
      expect(await publish()).toBe("failed");
      putForward(3_000);
    }
    expect(groupCommit.findStalls()).toEqual(["publishes wait, and no commit has succeeded for 9 s"]);
    putForward(8_000);
    await expect.poll(() => groupCommit.findStalls()).toEqual([]);
    expect(await publish()).toBe("failed");
    expect(groupCommit.findStalls()).toEqual([]);
  });
});
