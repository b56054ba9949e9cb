import { randomBytes } from "node:crypto";
import { isFieldSet } from "@bufbuild/protobuf";
import { durationMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import {
  AttemptOutcome,
  AttemptPhasesSchema,
  type Delivery,
  DeliveryEndReason,
  DeliveryState,
} from "../../gen/nuncio/v1/delivery_pb.ts";
import type { ListDeliveriesRequest } from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { EventType } from "../../gen/nuncio/v1/event_pb.ts";
import type { AcceptedEvent } from "../../src/core/event.ts";
import { findScanEnd, NO_FILTER } from "../../src/store/deliveries.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { type ClaimedDelivery, claimDueDeliveries } from "../../src/store/outbox/claim.ts";
import { cancelDeliveriesOfDeletedSubscription } from "../../src/store/outbox/end.ts";
import { type AttemptRecord, recordAttempts } from "../../src/store/outbox/record.ts";
import { deleteSubscription } from "../../src/store/subscription-changes.ts";
import { useDatabase } from "../support/database.ts";
import { failureOf } from "../support/errors.ts";
import { addSubscription, draftEvent, newTenant, recordOf, toRow } from "../support/fixtures.ts";
import { createDependencies, inProcess } from "../support/service.ts";

const db = useDatabase();
const service = inProcess(() => createDependencies(db, db.server));

type Filter = Partial<Omit<ListDeliveriesRequest, "$typeName" | "tenantId">>;

const list = (tenantId: string, filter: Filter = {}) => service.deliveries.listDeliveries({ tenantId, ...filter });
const listAll = async (tenantId: string, filter: Filter = {}) =>
  (await list(tenantId, { pageSize: 1000, ...filter })).deliveries;
const get = async (tenantId: string, id: string) =>
  (await service.deliveries.getDelivery({ tenantId, id })).delivery as Delivery;
const idsOf = (deliveries: readonly Delivery[]) => deliveries.map(({ id }) => id);

async function publish(tenantId: string, count: number, of: (i: number) => Partial<AcceptedEvent> = () => ({})) {
  const events = Array.from({ length: count }, (_, i) => draftEvent(tenantId, of(i)));
  await appendEvents(db.server.hot, events.map(toRow), { maxPendingMs: 7 * 86_400_000 });
}

const claim = (lane: number, quota = 100) =>
  claimDueDeliveries(db.worker.hot, [{ lane, quota, sinceMs: Number.NEGATIVE_INFINITY }], {
    leaseMs: 25_000,
    leaseToken: randomBytes(8).readBigInt64BE(),
  });

const HTTP_500 = { kind: "http_status", httpStatus: 500, detail: "HTTP 500", excerpt: "oh no" } as const;
const DELIVERED = { outcome: { kind: "delivered", httpStatus: 204 }, decision: { kind: "delivered" } } as const;
const RETRY = { outcome: HTTP_500, decision: { kind: "retry", delayMs: 60_000 } } as const;
const GIVE_UP = { outcome: HTTP_500, decision: { kind: "dead_letter", reason: "RETRIES_EXHAUSTED" } } as const;

async function record(
  claimed: readonly ClaimedDelivery[],
  changes: Pick<AttemptRecord, "outcome" | "decision"> & Partial<AttemptRecord>,
) {
  if (claimed.length === 0) return;
  const [row] = await db.admin`
    SELECT tenant_key FROM nuncio.webhook_subscriptions WHERE subscription_key = ${claimed[0]?.subscriptionKey ?? 0}`;
  const records = claimed.map((one) => recordOf(one, { tenantKey: row?.tenant_key, phases: {}, ...changes }));
  await recordAttempts(db.worker.hot, records);
}

const expireLease = (lane: number) => db.admin`
  UPDATE nuncio.outbox SET next_at = now(), lease_expires_at = now() - interval '1 ms'
  WHERE subscription_key = ${lane} AND lease_token IS NOT NULL`;

const TYPES = ["user.created", "user.updated", "user.deleted"] as const;

/** A tenant with deliveries in every state, of three subscriptions, three types and three users. */
async function addDeliveriesInEveryState() {
  const tenant = newTenant();
  const all = await addSubscription(db, tenant);
  const some = await addSubscription(db, tenant, { eventTypes: ["user.created", "user.updated"] });
  const gone = await addSubscription(db, tenant);
  for (let group = 0; group < 6; group += 1) {
    await publish(tenant, 4, (i) => ({
      id: `e_${group}_${i}`,
      type: TYPES[(group + i) % TYPES.length] as (typeof TYPES)[number],
      user: { id: `u_${i % 3}`, status: "ACTIVE" },
    }));
  }
  for (const { lane } of [all, some]) {
    await record(await claim(lane, 4), DELIVERED);
    await record(await claim(lane, 3), GIVE_UP);
    await record(await claim(lane, 2), RETRY);
    await claim(lane, 2);
  }
  await record(await claim(gone.lane, 3), DELIVERED);
  await deleteSubscription(db.server.orm, tenant, gone.uuid);
  await cancelDeliveriesOfDeletedSubscription(db.worker.hot, gone.lane, 100);
  return { tenant, all, some, gone };
}

const STATES = [
  DeliveryState.PENDING,
  DeliveryState.DELIVERING,
  DeliveryState.DELIVERED,
  DeliveryState.DEAD_LETTERED,
  DeliveryState.CANCELLED,
];

/** What the filter means, over deliveries as a client sees them. */
function passes(delivery: Delivery, filter: Filter): boolean {
  const createdAt = delivery.createTime ? timestampMs(delivery.createTime) : Number.NaN;
  return (
    (!filter.subscriptionId || delivery.subscriptionId === filter.subscriptionId) &&
    (!filter.states?.length || filter.states.includes(delivery.state)) &&
    (!filter.eventTypes?.length || filter.eventTypes.includes(delivery.eventType)) &&
    (!filter.eventId || delivery.eventId === filter.eventId) &&
    (!filter.userId || delivery.userId === filter.userId) &&
    (!filter.createTimeAfter || createdAt >= timestampMs(filter.createTimeAfter)) &&
    (!filter.createTimeBefore || createdAt < timestampMs(filter.createTimeBefore))
  );
}

describe("ListDeliveries", () => {
  let made: Awaited<ReturnType<typeof addDeliveriesInEveryState>>;
  let whole: Delivery[];
  beforeAll(async () => {
    made = await addDeliveriesInEveryState();
    whole = await listAll(made.tenant);
  });

  it("shows every delivery once, newest event first, each state among them", async () => {
    const [row] = await db.admin`
      SELECT count(*)::int AS events FROM nuncio.events e JOIN nuncio.tenants t USING (tenant_key)
      WHERE t.tenant_id = ${made.tenant}`;
    const twice = whole.filter(({ eventType }) => eventType !== EventType.USER_DELETED).length;
    expect(row?.events).toBe(24);
    expect(whole).toHaveLength(24 + 24 + 16);
    expect(twice).toBe(3 * 16);
    expect(new Set(idsOf(whole)).size).toBe(whole.length);
    expect(new Set(whole.map(({ state }) => state))).toEqual(new Set(STATES));
    const times = whole.map(({ createTime }) => (createTime ? timestampMs(createTime) : 0));
    expect(times).toEqual([...times].sort((a, b) => b - a));
  });

  it("[B17] walks all pages without gap or repeat while events arrive and deliveries change state", async () => {
    const { tenant, all, some } = await addDeliveriesInEveryState();
    const before = idsOf(await listAll(tenant));
    const walked: string[] = [];
    let pageToken = "";
    let page = 0;
    do {
      const answer = await list(tenant, { pageSize: 3, pageToken });
      walked.push(...idsOf(answer.deliveries));
      pageToken = answer.nextPageToken;
      if (pageToken !== "") expect(answer.deliveries).toHaveLength(3);
      const { lane } = page % 2 === 0 ? all : some;
      await publish(tenant, 2);
      if (page % 4 === 3) await expireLease(lane);
      const claimed = await claim(lane, 4);
      await record(claimed.slice(0, 3), [DELIVERED, GIVE_UP, RETRY][page % 3] as typeof DELIVERED);
      page += 1;
    } while (pageToken !== "");
    expect(page).toBe(Math.ceil(before.length / 3));
    expect(walked).toEqual(before);
  });

  it("[B17] walks a filtered list as it shows it at once", async () => {
    const filter = { states: [DeliveryState.DELIVERED, DeliveryState.CANCELLED], userId: "u_1" };
    const walked: string[] = [];
    let pageToken = "";
    do {
      const answer = await list(made.tenant, { ...filter, pageSize: 3, pageToken });
      walked.push(...idsOf(answer.deliveries));
      pageToken = answer.nextPageToken;
    } while (pageToken !== "");
    expect(walked).toEqual(idsOf(whole.filter((delivery) => passes(delivery, filter))));
    expect(walked.length).toBeGreaterThan(3);
  });

  it.each([{}, { states: [DeliveryState.DELIVERED, DeliveryState.PENDING] }, { userId: "u_1" }])(
    "[B17] turns back through the same pages, filtered by %o, whatever has arrived on top meanwhile",
    async (filter) => {
      const { tenant } = await addDeliveriesInEveryState();
      const pages: string[][] = [];
      let answer = await list(tenant, { ...filter, pageSize: 3 });
      expect(answer.previousPageToken).toBe("");
      for (; ; answer = await list(tenant, { ...filter, pageSize: 3, pageToken: answer.nextPageToken })) {
        pages.push(idsOf(answer.deliveries));
        if (answer.nextPageToken === "") break;
        // The way back from each leads to what was there before.
        await publish(tenant, 1);
      }
      expect(pages.length).toBeGreaterThan(2);
      const back: string[][] = [idsOf(answer.deliveries)];
      for (let turned = 1; turned < pages.length; turned += 1) {
        answer = await list(tenant, { ...filter, pageSize: 3, pageToken: answer.previousPageToken });
        back.unshift(idsOf(answer.deliveries));
        const forth = await list(tenant, { ...filter, pageSize: 3, pageToken: answer.nextPageToken });
        expect(idsOf(forth.deliveries)).toEqual(back[1]);
      }
      expect(back).toEqual(pages);
      // What arrived since lies before the page that was the first.
      let newer = 0;
      while (answer.previousPageToken !== "") {
        answer = await list(tenant, { ...filter, pageSize: 3, pageToken: answer.previousPageToken });
        newer += answer.deliveries.length;
      }
      expect(newer).toBeGreaterThan(0);
    },
  );

  it("answers in time where hardly anything passes, with a page that is cut and goes on", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 1, () => ({ id: "e_rare", type: "user.deleted" }));
    for (let i = 0; i < 24; i += 1) await publish(tenant, 500);
    const whole = await list(tenant, { eventTypes: [EventType.USER_DELETED] });
    expect(idsOf(whole.deliveries)).toHaveLength(1);
    const filter = { ...NO_FILTER, eventTypes: ["user.deleted"] as const };
    const from = { after: undefined, direction: "older" } as const;
    const scanEnd = await findScanEnd(db.server.orm, tenant, filter, from);
    const [row] = await db.admin`
      SELECT event_key FROM nuncio.outbox WHERE subscription_key = ${lane} ORDER BY event_key DESC OFFSET 9999 LIMIT 1`;
    expect(scanEnd).toBe(row?.event_key);
    const locked = await db.admin.reserve();
    // Held for longer than the whole list may take, and let go when the part is read.
    await locked`BEGIN`;
    await locked`LOCK TABLE nuncio.outbox IN ACCESS EXCLUSIVE MODE`;
    const cut = list(tenant, { eventTypes: [EventType.USER_DELETED] });
    await expect
      .poll(
        async () =>
          (await db.admin`SELECT 1 FROM pg_stat_activity WHERE wait_event = 'relation' AND query ILIKE '%OFFSET%'`)
            .length,
      )
      .toBeGreaterThan(0);
    await locked`COMMIT`;
    locked.release();
    const first = await cut;
    expect(first.deliveries).toEqual([]);
    expect(first.previousPageToken).toBe("");
    const second = await list(tenant, { eventTypes: [EventType.USER_DELETED], pageToken: first.nextPageToken });
    expect(idsOf(second.deliveries)).toEqual(idsOf(whole.deliveries));
    expect(second.nextPageToken).toBe("");
  });

  it("gives 50 unless asked for another number, and no token for a page that is the last", async () => {
    const page = await list(made.tenant);
    expect(page.deliveries).toHaveLength(50);
    expect(page.nextPageToken).not.toBe("");
    expect((await list(made.tenant, { pageSize: whole.length })).nextPageToken).toBe("");
    expect((await list(made.tenant, { pageSize: 100_000 })).deliveries).toHaveLength(whole.length);
  });

  it("filters by each criterion alone", async () => {
    const middle = whole[30]?.createTime;
    const filters: Filter[] = [
      ...[made.all, made.some, made.gone].map(({ subscription }) => ({ subscriptionId: subscription.id })),
      ...STATES.map((state) => ({ states: [state] })),
      { eventTypes: [EventType.USER_CREATED] },
      { eventTypes: [EventType.USER_UPDATED, EventType.USER_DELETED] },
      { eventId: "e_2_1" },
      { userId: "u_2" },
      ...(middle ? [{ createTimeAfter: middle }, { createTimeBefore: middle }] : []),
    ];
    expect(filters).toHaveLength(14);
    for (const filter of filters) {
      const expected = whole.filter((delivery) => passes(delivery, filter));
      expect(expected.length).toBeGreaterThan(0);
      expect(expected.length).toBeLessThan(whole.length);
      expect(idsOf(await listAll(made.tenant, filter)), JSON.stringify(filter.states)).toEqual(idsOf(expected));
    }
  });

  it("filters to nothing by what there is not", async () => {
    const filters: Filter[] = [
      { eventTypes: [EventType.USER_REACTIVATED] },
      { eventId: "e" },
      { userId: "U_1" },
      { subscriptionId: "sub_00000000-0000-7000-8000-000000000000" },
      { createTimeBefore: timestampFromMs(0) },
      { createTimeAfter: timestampFromMs(Date.UTC(9999, 11, 31)) },
    ];
    for (const filter of filters) expect(await listAll(made.tenant, filter)).toEqual([]);
  });

  it("filters by any combination as a filter over the whole list does", async () => {
    const time = fc.nat({ max: 63 }).map((i) => whole[i]?.createTime ?? timestampFromMs(0));
    const filters = fc.record(
      {
        subscriptionId: fc.constantFrom(made.all, made.some, made.gone).map(({ subscription }) => subscription.id),
        states: fc.subarray(STATES),
        eventTypes: fc.subarray([EventType.USER_CREATED, EventType.USER_UPDATED, EventType.USER_DELETED]),
        eventId: fc.constantFrom("e_0_0", "e_1_2", "e_5_3"),
        userId: fc.constantFrom("u_0", "u_1", "u_2"),
        createTimeAfter: time,
        createTimeBefore: time,
      },
      { requiredKeys: [] },
    );
    await fc.assert(
      fc.asyncProperty(filters, async (filter) => {
        const expected = whole.filter((delivery) => passes(delivery, filter));
        expect(idsOf(await listAll(made.tenant, filter))).toEqual(idsOf(expected));
      }),
      { numRuns: 150 },
    );
  });

  it("shows times, end reasons and counts that fit the state", async () => {
    for (const delivery of whole) {
      const { state, nextAttemptTime, expireTime, endTime, endReason, attemptCount } = delivery;
      const unfinished = state === DeliveryState.PENDING || state === DeliveryState.DELIVERING;
      expect(nextAttemptTime !== undefined).toBe(state === DeliveryState.PENDING);
      expect([expireTime !== undefined, endTime !== undefined]).toEqual([unfinished, !unfinished]);
      expect(endReason).toBe(
        {
          [DeliveryState.DEAD_LETTERED]: DeliveryEndReason.RETRIES_EXHAUSTED,
          [DeliveryState.CANCELLED]: DeliveryEndReason.SUBSCRIPTION_DELETED,
        }[state as number] ?? DeliveryEndReason.UNSPECIFIED,
      );
      if (state === DeliveryState.DELIVERED || state === DeliveryState.DEAD_LETTERED) expect(attemptCount).toBe(1);
      for (const time of [delivery.createTime, nextAttemptTime, expireTime, endTime]) {
        if (time) expect([Number.isInteger(time.nanos), time.nanos < 1e9, time.nanos >= 0]).toEqual([true, true, true]);
      }
    }
  });

  it("[B17] refuses a token of another tenant, of other filters, and what is no token", async () => {
    const { nextPageToken } = await list(made.tenant, { pageSize: 3 });
    const other = newTenant();
    await addSubscription(db, other);
    const refused = [
      failureOf(list(other, { pageToken: nextPageToken })),
      failureOf(list(made.tenant, { pageToken: nextPageToken, userId: "u_1" })),
      failureOf(list(made.tenant, { pageToken: nextPageToken, states: [DeliveryState.PENDING] })),
      failureOf(list(made.tenant, { pageToken: nextPageToken.slice(0, -1) })),
      failureOf(list(made.tenant, { pageToken: `${nextPageToken}A` })),
      failureOf(list(made.tenant, { pageToken: `${nextPageToken}=` })),
      failureOf(list(made.tenant, { pageToken: "rubbish" })),
      failureOf(list(made.tenant, { pageToken: "\0" })),
    ];
    for (const failure of await Promise.all(refused)) {
      expect(failure).toMatchObject({
        code: "InvalidArgument",
        reason: "INVALID_PAGE_TOKEN",
        fields: ["page_token"],
        retry: false,
      });
    }
    expect((await list(made.tenant, { pageSize: 7, pageToken: nextPageToken })).deliveries).toHaveLength(7);
  });

  it("names every fault of a filter with its path", async () => {
    const failure = await failureOf(
      list("", {
        pageSize: -1,
        subscriptionId: "dlv_x",
        states: [DeliveryState.PENDING, DeliveryState.UNSPECIFIED, 99 as DeliveryState],
        eventTypes: [EventType.UNSPECIFIED],
        eventId: "e".repeat(129),
        userId: "u".repeat(129),
      }),
    );
    expect(failure).toMatchObject({ code: "InvalidArgument", reason: "INVALID_REQUEST" });
    expect([...failure.fields].sort()).toEqual([
      "event_id",
      "event_types[0]",
      "page_size",
      "states[1]",
      "states[2]",
      "subscription_id",
      "tenant_id",
      "user_id",
    ]);
  });
});

describe("GetDelivery", () => {
  it("shows the delivery as the list does, in every state", async () => {
    const { tenant } = await addDeliveriesInEveryState();
    for (const state of STATES) {
      const [listed] = await listAll(tenant, { states: [state] });
      const { attempts, ...delivery } = await get(tenant, listed?.id ?? "");
      expect({ ...delivery, attempts: [] }).toEqual(listed);
      expect(attempts.length > 0).toBe(state === DeliveryState.DELIVERED || state === DeliveryState.DEAD_LETTERED);
    }
  });

  it("shows the attempts in order, with phases, excerpt and which are stale", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 1);
    const first = await claim(lane);
    await record(first, {
      ...RETRY,
      phases: { dns: 0.2, connect: 3, first_byte: 40, body: 1_500 },
      durationMs: 1_543.6,
    });
    await db.admin`UPDATE nuncio.outbox SET next_at = now() WHERE subscription_key = ${lane}`;
    const second = await claim(lane);
    await expireLease(lane);
    const third = await claim(lane);
    await record(second, { ...DELIVERED, phases: { connect: 5 } });
    await record(third, {
      ...GIVE_UP,
      outcome: { kind: "timeout", detail: "timeout in connect" },
    } as never);
    const [listed] = await listAll(tenant);
    expect(listed).toMatchObject({ state: DeliveryState.DEAD_LETTERED, attemptCount: 3, attempts: [] });
    const { attempts } = await get(tenant, listed?.id ?? "");
    expect(attempts).toMatchObject([
      {
        number: 1,
        outcome: AttemptOutcome.HTTP_STATUS,
        httpStatus: 500,
        errorDetail: "HTTP 500",
        responseExcerpt: "oh no",
        stale: false,
      },
      {
        number: 2,
        outcome: AttemptOutcome.DELIVERED,
        httpStatus: 204,
        errorDetail: "",
        responseExcerpt: "",
        stale: true,
      },
      { number: 3, outcome: AttemptOutcome.TIMEOUT, errorDetail: "timeout in connect", stale: false },
    ]);
    expect(attempts[2]?.httpStatus).toBeUndefined();
    const phases = attempts[0]?.phases;
    const times = [phases?.dns, phases?.connect, phases?.firstByte, phases?.body, attempts[0]?.duration];
    expect(times.map((time) => time && durationMs(time))).toEqual([0, 3, 40, 1_500, 1_544]);
    const unset = AttemptPhasesSchema.fields.filter((field) => !isFieldSet(attempts[1]?.phases as never, field));
    expect(unset.map(({ name }) => name)).toEqual(["dns", "first_byte", "body"]);
    for (const { startTime } of attempts) {
      expect(Number.isInteger(startTime?.nanos)).toBe(true);
      expect(Math.abs(Date.now() - (startTime ? timestampMs(startTime) : 0))).toBeLessThan(60_000);
    }
  });

  it("shows the newest 100 attempts", async () => {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant);
    await publish(tenant, 1);
    const [claimed] = await claim(lane);
    const stale = Array.from({ length: 105 }, (_, i) => ({
      ...(claimed as ClaimedDelivery),
      leaseToken: 1n,
      attempt: i + 1,
    }));
    await record(stale, RETRY);
    const [listed] = await listAll(tenant);
    const { attempts } = await get(tenant, listed?.id ?? "");
    expect(attempts.map(({ number }) => number)).toEqual(Array.from({ length: 100 }, (_, i) => i + 6));
  });

  it("finds neither another tenant's, nor one that never was, nor what is no id", async () => {
    const tenant = newTenant();
    await addSubscription(db, tenant);
    await publish(tenant, 1);
    const [listed] = await listAll(tenant);
    const id = listed?.id ?? "";
    const other = newTenant();
    await addSubscription(db, other);
    await publish(other, 1);
    const [foreign] = await listAll(other);
    const halves = `${id.slice(0, 30)}${foreign?.id.slice(30)}`;
    for (const unknown of [foreign?.id ?? "", halves, id.toUpperCase(), `${id}a`, id.slice(4), "dlv_"]) {
      expect(await failureOf(get(tenant, unknown)), unknown).toMatchObject({
        code: "NotFound",
        reason: "DELIVERY_NOT_FOUND",
        retry: false,
      });
    }
    for (const unusable of ["", "\0"]) {
      expect(await failureOf(get(tenant, unusable))).toMatchObject({ reason: "INVALID_REQUEST", fields: ["id"] });
    }
  });
});
