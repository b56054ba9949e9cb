import { expect, it } from "vitest";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, toRow } from "../support/fixtures.ts";
import { startLoop } from "../support/loop.ts";
import { openReceiver } from "../support/receiver.ts";

const db = useDatabase();

it("[B15] hands back what a claim has brought over a limit that has changed since it was planned", async () => {
  const tenant = newTenant();
  const receiver = await openReceiver((_, response) => response.writeHead(200));
  const { lane } = await addSubscription(db, tenant, { url: receiver.url, maxInFlight: 16 });
  const rows = Array.from({ length: 16 }, () => toRow(draftEvent(tenant)));
  await appendEvents(db.server.hot, rows, { maxPendingMs: 86_400_000 });
  // The change falls between the plan of the first claim, which is for all 16, and the claim itself.
  let isFirst = true;
  const sql = new Proxy(db.worker.hot, {
    apply(target, self, args: [TemplateStringsArray]) {
      const run = () => Reflect.apply(target, self, args);
      if (!isFirst || !args[0].join("").includes("nuncio.claim_deliveries") || args[0].join("").includes("true,"))
        return run();
      isFirst = false;
      return db.admin`
        UPDATE nuncio.webhook_subscriptions SET max_in_flight = 2, revision = revision + 1 WHERE subscription_key = ${lane}`.then(
        run,
      );
    },
  });
  const loop = startLoop(db, { sql });
  await loop.until((events) => events.some((event) => event.kind === "released"));
  await receiver.until(() => receiver.received.length === 2);
  const leased = await db.admin`SELECT FROM nuncio.outbox WHERE lease_token IS NOT NULL`;
  expect(leased).toHaveLength(2);
  expect(loop.events.flatMap((event) => (event.kind === "released" ? [event.count] : []))).toEqual([14]);
  expect(
    await claimDueDeliveries(db.admin, [{ lane, quota: 20, sinceMs: Number.NEGATIVE_INFINITY }], {
      leaseMs: 1,
      leaseToken: 9n,
    }),
  ).toHaveLength(14);
  await receiver.close();
});
