import { expect, it } from "vitest";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import { countOutbox } from "../../src/store/outbox/totals.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, toRow } from "../support/fixtures.ts";

const db = useDatabase();

it("tells what is pending, waiting, delivering and due, and leaves out of the due whoever is down or held", async () => {
  expect(await countOutbox(db.worker.hot)).toEqual({
    pending: 0,
    waiting: 0,
    delivering: 0,
    due: 0,
    oldestDueSeconds: 0,
  });
  const lanes: number[] = [];
  for (let i = 0; i < 3; i += 1) {
    const tenant = newTenant();
    lanes.push((await addSubscription(db, tenant, { ordering: "PER_USER" })).lane);
    const rows = ["u_1", "u_1", "u_2"].map((id) => toRow(draftEvent(tenant, { user: { id, status: "ACTIVE" } })));
    await appendEvents(db.server.hot, rows, { maxPendingMs: 86_400_000 });
  }
  const [first = 0, second = 0, third = 0] = lanes;
  await claimDueDeliveries(db.worker.hot, [{ lane: first, quota: 1, sinceMs: Number.NEGATIVE_INFINITY }], {
    leaseMs: 60_000,
    leaseToken: 7n,
  });
  await db.admin`UPDATE nuncio.outbox SET next_at = now() - interval '100 s' WHERE next_at <= now() AND subscription_key <> ${second}`;
  await db.admin`
    INSERT INTO nuncio.lane_states (subscription_key, tenant_key, breaker_until)
    SELECT subscription_key, tenant_key, now() FROM nuncio.webhook_subscriptions WHERE subscription_key = ${third}`;
  const totals = await countOutbox(db.worker.hot);
  expect(totals).toMatchObject({ pending: 5, waiting: 3, delivering: 1, due: 3 });
  expect(Math.floor(totals.oldestDueSeconds / 10)).toBe(10);
});
