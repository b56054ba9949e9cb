import { describe, expect, it } from "vitest";
import { OperationalEventType } from "../../gen/nuncio/v1/operational_event_pb.ts";
import { END_REASONS } from "../../src/core/delivery.ts";
import { DISABLE_REASONS, fromReasonCode, OPERATIONAL_EVENT_TYPES } from "../../src/core/operational-event.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import { recordAttempts } from "../../src/store/outbox/record.ts";
import { useDatabase } from "../support/database.ts";
import { failureOf } from "../support/errors.ts";
import { addSubscription, draftEvent, newTenant, recordOf, toRow } from "../support/fixtures.ts";
import { createDependencies, inProcess } from "../support/service.ts";

const db = useDatabase();
const service = inProcess(() => createDependencies(db, db.server));

/** Gives up `count` deliveries of a subscription, each in a transaction of its own. */
async function giveUp(tenantId: string, lane: number, count: number, reason: (typeof END_REASONS)[number]) {
  for (let i = 0; i < count; i += 1) {
    await appendEvents(db.server.hot, [toRow(draftEvent(tenantId))], { maxPendingMs: 86_400_000 });
    const quota = [{ lane, quota: 1, sinceMs: Number.NEGATIVE_INFINITY }];
    const claimed = await claimDueDeliveries(db.worker.hot, quota, { leaseMs: 25_000, leaseToken: 1n });
    const decision = { kind: "dead_letter", reason } as const;
    await recordAttempts(
      db.worker.hot,
      claimed.map((one) => recordOf(one, { decision })),
    );
  }
}

describe("ListOperationalEvents", () => {
  it("counts the dead letters of an hour, per subscription and reason, newest first", async () => {
    const tenantId = newTenant();
    const first = await addSubscription(db, tenantId);
    await giveUp(tenantId, first.lane, 3, "RETRIES_EXHAUSTED");
    await giveUp(tenantId, first.lane, 1, "EXPIRED");
    const { operationalEvents, nextPageToken } = await service.operations.listOperationalEvents({ tenantId });
    expect(operationalEvents).toMatchObject([
      {
        id: expect.stringMatching(/^ope_[0-9a-f-]{36}$/),
        tenantId,
        subscriptionId: first.subscription.id,
        type: OperationalEventType.DELIVERY_DEAD_LETTERED,
        reason: "EXPIRED",
        count: 1,
      },
      { reason: "RETRIES_EXHAUSTED", count: 3 },
    ]);
    expect(nextPageToken).toBe("");
    const [{ firstTime, lastTime } = {}] = operationalEvents.slice(1);
    expect(Number(lastTime?.seconds) * 1e9 + (lastTime?.nanos ?? 0)).toBeGreaterThan(
      Number(firstTime?.seconds) * 1e9 + (firstTime?.nanos ?? 0),
    );
  });

  it("begins a new one with each hour", async () => {
    const tenantId = newTenant();
    const { lane } = await addSubscription(db, tenantId);
    await giveUp(tenantId, lane, 2, "EXPIRED");
    await db.admin`
      UPDATE nuncio.operational_events SET hour = hour - interval '1 h' WHERE subscription_key = ${lane}`;
    await giveUp(tenantId, lane, 1, "EXPIRED");
    const { operationalEvents } = await service.operations.listOperationalEvents({ tenantId });
    expect(operationalEvents.map(({ count }) => count)).toEqual([1, 2]);
  });

  it("filters, pages without gap or repeat, and refuses a token of another list", async () => {
    const tenantId = newTenant();
    const [a, b] = [await addSubscription(db, tenantId), await addSubscription(db, tenantId)];
    await giveUp(tenantId, a.lane, 1, "EXPIRED");
    await db.admin`DELETE FROM nuncio.outbox`;
    await giveUp(tenantId, b.lane, 1, "EXPIRED");
    await giveUp(tenantId, b.lane, 1, "ORDER_HOLD");
    const only = { tenantId, subscriptionId: b.subscription.id, types: [OperationalEventType.DELIVERY_DEAD_LETTERED] };
    const first = await service.operations.listOperationalEvents({ ...only, pageSize: 1 });
    const second = await service.operations.listOperationalEvents({
      ...only,
      pageSize: 1,
      pageToken: first.nextPageToken,
    });
    expect([first, second].flatMap((page) => page.operationalEvents.map(({ reason }) => reason))).toEqual([
      "ORDER_HOLD",
      "EXPIRED",
    ]);
    expect(second.nextPageToken).toBe("");
    const foreign = service.operations.listOperationalEvents({ tenantId, pageToken: first.nextPageToken });
    expect(await failureOf(foreign)).toMatchObject({ code: "InvalidArgument", reason: "INVALID_PAGE_TOKEN" });
    const none = await service.operations.listOperationalEvents({
      tenantId,
      types: [OperationalEventType.SUBSCRIPTION_DISABLED],
    });
    expect(none.operationalEvents).toEqual([]);
  });

  it("names every fault of a filter", async () => {
    const types = [0, 99] as OperationalEventType[];
    const failure = await failureOf(
      service.operations.listOperationalEvents({ tenantId: "", pageSize: -1, subscriptionId: "x", types }),
    );
    expect(failure.fields?.toSorted()).toEqual(["page_size", "subscription_id", "tenant_id", "types[0]", "types[1]"]);
  });

  it("[B41] shows a tenant nothing of another", async () => {
    const [owner, other] = [newTenant(), newTenant()];
    const { lane, subscription } = await addSubscription(db, owner);
    await giveUp(owner, lane, 1, "EXPIRED");
    for (const filter of [{}, { subscriptionId: subscription.id }]) {
      expect(
        (await service.operations.listOperationalEvents({ tenantId: other, ...filter })).operationalEvents,
      ).toEqual([]);
    }
  });
});

describe("the reason of an operational event", () => {
  it("is that of its type", () => {
    for (const type of OPERATIONAL_EVENT_TYPES) {
      const reasons = { "delivery.dead_lettered": END_REASONS, "subscription.disabled": DISABLE_REASONS };
      const [first = ""] = type in reasons ? reasons[type as keyof typeof reasons] : [];
      expect(fromReasonCode(type, 1)).toBe(first);
    }
  });
});
