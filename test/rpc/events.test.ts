import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, it } from "vitest";
import { type Event, EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import { useDatabase } from "../support/database.ts";
import { failureOf } from "../support/errors.ts";
import { addSubscription, newTenant } from "../support/fixtures.ts";
import { createDependencies, inProcess } from "../support/service.ts";

const db = useDatabase();
const service = inProcess(() => createDependencies(db, db.server));
let published = 0;

async function publish(tenantId: string, userIds: readonly string[], groupIds: string[] = []): Promise<string[]> {
  const ids = userIds.map(() => `e_${++published}`);
  const { results } = await service.events.batchPublish({
    events: userIds.map((id, i) => ({
      id: ids[i] as string,
      tenantId,
      type: EventType.USER_CREATED,
      user: { id, groupIds, status: UserStatus.ACTIVE },
    })),
  });
  expect(results.map(({ result }) => result.case)).toEqual(ids.map(() => "success"));
  return ids;
}

async function walk(
  tenantId: string,
  request: object,
  pageSize: number,
  between: () => Promise<unknown> = async () => 0,
) {
  const seen: Event[] = [];
  const sizes: number[] = [];
  for (let pageToken = ""; ; ) {
    const page = await service.events.listEvents({ tenantId, pageSize, pageToken, ...request });
    seen.push(...page.events);
    sizes.push(page.events.length);
    pageToken = page.nextPageToken;
    if (pageToken === "") return { ids: seen.map(({ id }) => id), sizes, seen };
    await between();
  }
}

describe("ListEvents", () => {
  it("[B17] walks through all events, newest first, with no gap and no repeat while others come in", async () => {
    const tenant = newTenant();
    const first = await publish(tenant, ["u_1", "u_2", "u_3", "u_4", "u_5"]);
    const second = await publish(tenant, ["u_1", "u_2"]);
    await publish(newTenant(), ["u_1"]);
    const { ids, sizes } = await walk(tenant, {}, 2, () => publish(tenant, ["u_9"]));
    expect(new Set(ids.slice(0, 2))).toEqual(new Set(second));
    expect(ids.toSorted()).toEqual([...first, ...second].toSorted());
    expect(sizes).toEqual([2, 2, 2, 1]);
  });

  it("goes by user, type and time", async () => {
    const tenant = newTenant();
    const [a, b, c] = await publish(tenant, ["u_1", "u_2", "u_1"]);
    expect((await walk(tenant, { userId: "u_1" }, 1)).ids.toSorted()).toEqual([a, c].toSorted());
    expect((await walk(tenant, { userId: "nobody" }, 1)).ids).toEqual([]);
    expect((await walk(tenant, { eventTypes: [EventType.USER_DELETED] }, 1)).ids).toEqual([]);
    const { seen } = await walk(tenant, { eventTypes: [EventType.USER_CREATED] }, 10);
    expect(seen.map(({ id }) => id).toSorted()).toEqual([a, b, c].toSorted());
    const at = seen[0]?.createTime ? timestampMs(seen[0].createTime) : 0;
    expect((await walk(tenant, { createTimeAfter: timestampFromMs(at + 1) }, 10)).ids).toEqual([]);
    expect((await walk(tenant, { createTimeBefore: timestampFromMs(at + 1) }, 10)).ids).toHaveLength(3);
  });

  it("ends a page of large events sooner, and misses none of them", async () => {
    const tenant = newTenant();
    const made: string[] = [];
    const groups = Array.from({ length: 1_000 }, (_, i) => `${i}`.padStart(120, "g"));
    for (let i = 0; i < 45; i += 1) made.push(...(await publish(tenant, [`u_${i}`], groups)));
    const { ids, sizes } = await walk(tenant, {}, 100);
    expect(sizes).toEqual([34, 11]);
    expect(ids.toSorted()).toEqual(made.toSorted());
  });

  it("[B17] refuses a token of another tenant or another filter, and a negative page size", async () => {
    const [tenant, other] = [newTenant(), newTenant()];
    await publish(tenant, ["u_1", "u_2"]);
    const { nextPageToken: pageToken } = await service.events.listEvents({ tenantId: tenant, pageSize: 1 });
    const bad = { code: "InvalidArgument", reason: "INVALID_PAGE_TOKEN" };
    expect(await failureOf(service.events.listEvents({ tenantId: other, pageToken }))).toMatchObject(bad);
    expect(await failureOf(service.events.listEvents({ tenantId: tenant, pageToken, userId: "u_1" }))).toMatchObject(
      bad,
    );
    expect((await failureOf(service.events.listEvents({ tenantId: tenant, pageSize: -1 }))).fields).toEqual([
      "page_size",
    ]);
  });
});

describe("GetEvent", () => {
  it("shows the deliveries of the event, and none of its neighbours", async () => {
    const tenant = newTenant();
    const subscriptions = [await addSubscription(db, tenant), await addSubscription(db, tenant)];
    const [id = ""] = await publish(tenant, ["u_1", "u_2"]);
    const { deliveries } = await service.events.getEvent({ tenantId: tenant, id });
    expect(deliveries.map(({ eventId }) => eventId)).toEqual([id, id]);
    expect(deliveries.map(({ subscriptionId }) => subscriptionId).toSorted()).toEqual(
      subscriptions.map(({ subscription }) => subscription.id).toSorted(),
    );
  });
});

describe("[B17] ListDeliveries of one user", () => {
  it("finds them among everybody else's by the user's events", async () => {
    const tenant = newTenant();
    await addSubscription(db, tenant);
    const all = Array.from({ length: 300 }, (_, i) => (i % 100 === 0 ? "rare" : `u_${i}`));
    const ids = (await publish(tenant, all)).filter((_, i) => all[i] === "rare");
    const seen: string[] = [];
    let pageToken = "";
    do {
      const page = await service.deliveries.listDeliveries({
        tenantId: tenant,
        userId: "rare",
        pageSize: 1,
        pageToken,
      });
      seen.push(...page.deliveries.map(({ eventId }) => eventId));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(seen.toSorted()).toEqual(ids.toSorted());
  });
});
