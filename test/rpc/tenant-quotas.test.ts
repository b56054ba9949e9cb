import { describe, expect, it } from "vitest";
import { EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import type { PublishOutcome } from "../../src/rpc/dependencies.ts";
import { type Quota, TenantQuotas } from "../../src/rpc/tenant-quotas.ts";
import { countPending } from "../../src/store/pending.ts";
import { useDatabase } from "../support/database.ts";
import { failureOf } from "../support/errors.ts";
import { addSubscription, newTenant } from "../support/fixtures.ts";
import { createDependencies, inProcess } from "../support/service.ts";

const db = useDatabase();

/** A service with these quotas, under a clock that is set by hand. */
function withQuotas(limits: { eventsPerSecond?: number; maxPending?: number }) {
  const clock = { ms: 0 };
  const refusals: Quota[] = [];
  const outcomes: PublishOutcome[] = [];
  const quotas = new TenantQuotas({
    eventsPerSecond: 0,
    maxPending: 0,
    ...limits,
    nowMs: () => clock.ms,
    onRefused: (quota) => refusals.push(quota),
  });
  const onPublished = (outcome: PublishOutcome) => outcomes.push(outcome);
  const service = inProcess(() => createDependencies(db, db.server, { quotas, onPublished }));
  return { clock, refusals, outcomes, quotas, service };
}

let published = 0;
const eventOf = (tenantId: string, id = `e_${++published}`) => ({
  id,
  tenantId,
  type: EventType.USER_CREATED,
  user: { id: `u_${id}`, status: UserStatus.ACTIVE },
});

describe("events per second", () => {
  it("lets a second's worth through at once, then one by one, and says when to come again", async () => {
    const { service, clock, refusals, outcomes, quotas } = withQuotas({ eventsPerSecond: 2 });
    const [tenant, other] = [newTenant(), newTenant()];
    const publish = (tenantId: string) => service.events.publish({ event: eventOf(tenantId) });
    await publish(tenant);
    expect(quotas.highestShares().rate).toBe(0.5);
    await publish(tenant);
    expect(await failureOf(publish(tenant))).toMatchObject({
      code: "ResourceExhausted",
      reason: "RATE_EXCEEDED",
      retry: true,
    });
    expect(quotas.highestShares().rate).toBe(1);
    await publish(other);
    clock.ms = 499;
    expect((await failureOf(publish(tenant))).reason).toBe("RATE_EXCEEDED");
    clock.ms = 500;
    await publish(tenant);
    expect(refusals).toEqual(["rate", "rate"]);
    expect(outcomes).toEqual(["accepted", "accepted", "accepted", "accepted"]);
  });

  it("refuses in a batch whatever comes behind the first that is over it, and nobody else's", async () => {
    const { service } = withQuotas({ eventsPerSecond: 2 });
    const [tenant, other] = [newTenant(), newTenant()];
    const events = [tenant, tenant, other, tenant, tenant, other].map((tenantId) => eventOf(tenantId));
    const { results } = await service.events.batchPublish({ events });
    expect(results.map(({ result }) => result.case)).toEqual([
      "success",
      "success",
      "success",
      "failure",
      "failure",
      "success",
    ]);
  });
});

describe("pending deliveries", () => {
  it("are counted by the database, and what is appended meanwhile comes on top", async () => {
    const { service, refusals, quotas } = withQuotas({ maxPending: 4 });
    const tenant = newTenant();
    for (let i = 0; i < 2; i += 1) await addSubscription(db, tenant);
    const publish = () => service.events.publish({ event: eventOf(tenant) });
    await publish();
    expect(quotas.highestShares().pending).toBe(0.5);
    await publish();
    expect(await failureOf(publish())).toMatchObject({
      code: "ResourceExhausted",
      reason: "TOO_MANY_PENDING",
      retry: true,
    });
    expect(refusals).toEqual(["pending"]);

    expect((await countPending(db.server.hot, 4)).get(tenant)).toBe(4);
    expect((await countPending(db.server.hot, 5)).get(tenant)).toBeUndefined();
    await db.admin`DELETE FROM nuncio.outbox`;
    quotas.counted(await countPending(db.server.hot, 1));
    await publish();
  });
});

it("limits nothing unless it is told to", async () => {
  const { service, quotas } = withQuotas({});
  const tenant = newTenant();
  const { results } = await service.events.batchPublish({
    events: Array.from({ length: 1_000 }, () => eventOf(tenant)),
  });
  expect(results.every(({ result }) => result.case === "success")).toBe(true);
  expect(quotas.highestShares()).toEqual({ rate: 0, pending: 0 });
});
