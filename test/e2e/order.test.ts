import { describe, expect, it } from "vitest";
import type { EventType } from "../../src/core/event.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, toRow } from "../support/fixtures.ts";
import { seeded } from "../support/interleavings.ts";
import { startWorker } from "../support/processes.ts";
import { openReceiver } from "../support/receiver.ts";

const db = useDatabase();
const USERS = 1_000;
const EVENTS_PER_USER = 20;
const WORKERS = 8;
/** Short, so that a killed worker's rows come back while the test waits: lease ≥ timeout + 5 s. */
const QUICK = {
  NUNCIO_LEASE_MS: "6000",
  NUNCIO_REQUEST_TIMEOUT_MS: "1000",
  NUNCIO_POLL_INTERVAL_MS: "100",
  NUNCIO_WORKER_CONCURRENCY: "32",
  NUNCIO_MAX_IN_FLIGHT: "32",
  // Long enough that three failures in ten never use it up.
  NUNCIO_RETRY_SCHEDULE: Array.from({ length: 30 }, () => "20ms").join(","),
};

describe("the order of a user, over eight workers", () => {
  it("[B37] holds while three requests in ten fail and workers are killed", { timeout: 240_000 }, async () => {
    const tenant = newTenant();
    const random = seeded(37);
    const failures = { total: 0, inARow: 0 };
    /** The order in which each (path, user)'s events first succeeded. */
    const succeeded = new Map<string, string[]>();
    const seen = new Set<string>();
    const receiver = await openReceiver(({ body, path }, response) => {
      // Three in ten, but never so many in a row that a breaker would take the receiver for dead.
      if (failures.inARow < 6 && random(10) < 3) {
        failures.total += 1;
        failures.inARow += 1;
        response.writeHead(500).end();
        return;
      }
      failures.inARow = 0;
      response.end();
      const { id, subject, usersequence } = JSON.parse(body) as Record<"id" | "subject" | "usersequence", string>;
      if (seen.has(`${path} ${id}`)) return;
      seen.add(`${path} ${id}`);
      const key = `${path} ${subject}`;
      succeeded.set(key, [...(succeeded.get(key) ?? []), usersequence]);
    });
    const subscribe = (path: string, eventTypes: EventType[]) =>
      addSubscription(db, tenant, { url: `${receiver.url}/${path}`, ordering: "PER_USER", eventTypes });
    await subscribe("all", []);
    await subscribe("some", ["user.reactivated"]);

    const workers = await Promise.all(Array.from({ length: WORKERS }, () => startWorker(db.url, QUICK)));
    const rows = Array.from({ length: USERS * EVENTS_PER_USER }, (_, i) =>
      toRow(
        draftEvent(tenant, {
          type: i % 5 === 0 ? "user.reactivated" : "user.updated",
          changed: ["displayName"],
          user: { id: `u_${random(USERS)}`, displayName: `${i}` },
        }),
      ),
    );
    const expected = rows.length * 1.2;
    const publishing = (async () => {
      for (let i = 0; i < rows.length; i += 200) {
        await appendEvents(db.server.hot, rows.slice(i, i + 200), { maxPendingMs: 86_400_000 });
      }
    })();
    for (const share of [0.2, 0.4, 0.6]) {
      await receiver.until(() => seen.size >= expected * share);
      workers.pop()?.child.kill("SIGKILL");
      workers.unshift(await startWorker(db.url, QUICK));
    }
    await publishing;
    await receiver.until(() => seen.size === expected);

    expect(failures.total).toBeGreaterThan(expected / 5);
    const outOfOrder = [...succeeded].filter(([, sequences]) => sequences.some((s, i) => s < (sequences[i - 1] ?? "")));
    expect(outOfOrder).toEqual([]);
    const left = async () => (await db.admin`SELECT FROM nuncio.outbox`).length;
    await expect.poll(left, { timeout: 20_000 }).toBe(0);
    expect(await db.admin`SELECT * FROM nuncio.dead_letters`).toEqual([]);
  });
});
