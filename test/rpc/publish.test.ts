import { create } from "@bufbuild/protobuf";
import { WireType } from "@bufbuild/protobuf/wire";
import { describe, expect, it } from "vitest";
import { EventSchema, EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import { openTestDatabase, useDatabase } from "../support/database.ts";
import { describeFailure, failureOf } from "../support/errors.ts";
import { addSubscription, newTenant } from "../support/fixtures.ts";
import { createDependencies, inProcess } from "../support/service.ts";

const db = useDatabase();
const { events, deliveries } = lazily(inProcess(() => createDependencies(db, db.server)));

/** The clients are made at first use: the database is open only inside tests. */
function lazily(service: ReturnType<typeof inProcess>) {
  return {
    events: new Proxy({} as typeof service.events, { get: (_, key) => Reflect.get(service.events, key) }),
    deliveries: new Proxy({} as typeof service.deliveries, { get: (_, key) => Reflect.get(service.deliveries, key) }),
  };
}

const user = { id: "u_1", displayName: "Zoë", status: UserStatus.ACTIVE };
const created = (tenantId: string, id = "") => ({ id, tenantId, type: EventType.USER_CREATED, user });

const countEvents = async (tenantId: string) => {
  const [row] = await db.admin`
    SELECT (SELECT count(*)::int FROM nuncio.events e WHERE e.tenant_key = t.tenant_key) AS events,
      (SELECT count(*)::int FROM nuncio.outbox q WHERE q.tenant_key = t.tenant_key) AS deliveries,
      (SELECT count(*)::int FROM nuncio.event_ids i WHERE i.tenant_key = t.tenant_key) AS ids
    FROM nuncio.tenants t WHERE t.tenant_id = ${tenantId}`;
  return row ?? { events: 0, deliveries: 0, ids: 0 };
};

describe("Publish", () => {
  it("stores the event with a delivery per matching subscription and answers with its id", async () => {
    const tenant = newTenant();
    await addSubscription(db, tenant);
    await addSubscription(db, tenant);
    const response = await events.publish({ event: created(tenant) });
    expect(response).toMatchObject({
      eventId: expect.stringMatching(/^evt_[0-9a-f-]{36}$/),
      duplicate: false,
      deliveries: 2,
    });
    expect(await countEvents(tenant)).toEqual({ events: 1, deliveries: 2, ids: 1 });
  });

  it("[B02] makes one event of 50 concurrent calls with one id and content", async () => {
    const tenant = newTenant();
    await addSubscription(db, tenant);
    const answers = await Promise.all(
      Array.from({ length: 50 }, () => events.publish({ event: created(tenant, "same") })),
    );
    expect(answers.filter(({ duplicate }) => !duplicate)).toHaveLength(1);
    expect(answers.reduce((sum, { deliveries }) => sum + deliveries, 0)).toBe(1);
    expect(await countEvents(tenant)).toEqual({ events: 1, deliveries: 1, ids: 1 });
  });

  it("[B03] refuses the same id with other content and writes nothing", async () => {
    const tenant = newTenant();
    await events.publish({ event: created(tenant, "e") });
    const failure = await failureOf(events.publish({ event: { ...created(tenant, "e"), reason: "other" } }));
    expect(failure).toMatchObject({ code: "AlreadyExists", reason: "EVENT_ID_REUSED", retry: false });
    expect(await countEvents(tenant)).toMatchObject({ events: 1, ids: 1 });
  });

  it("[B04] takes the same id from another tenant", async () => {
    const [a, b] = [newTenant(), newTenant()];
    await addSubscription(db, b);
    await events.publish({ event: created(a, "e") });
    expect(await events.publish({ event: { ...created(b, "e"), reason: "other" } })).toMatchObject({
      duplicate: false,
      deliveries: 1,
    });
  });

  it("[B05] stays idempotent over two servers and over a restart", async () => {
    const tenant = newTenant();
    const pools = [openTestDatabase(db.url, "nuncio_server"), openTestDatabase(db.url, "nuncio_server")];
    const servers = pools.map((pool) => inProcess(() => createDependencies(db, pool)));
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, i) => servers[i % 2]?.events.publish({ event: created(tenant, "same") })),
    );
    expect(answers.filter((answer) => answer?.duplicate === false)).toHaveLength(1);
    await Promise.all(pools.map((pool) => pool.close()));
    const restarted = openTestDatabase(db.url, "nuncio_server");
    const again = await inProcess(() => createDependencies(db, restarted)).events.publish({
      event: created(tenant, "same"),
    });
    expect(again).toMatchObject({ duplicate: true, deliveries: 0 });
    await restarted.close();
  });

  it("[B06] names every fault with its path and writes nothing", async () => {
    const tenant = newTenant();
    const failure = await failureOf(
      events.publish({
        event: {
          id: "a.b",
          tenantId: tenant,
          type: EventType.USER_UPDATED,
          user: { id: "", emails: [{ value: "" }], attributes: { password: "x", other: "y" } },
        },
      }),
    );
    expect(failure).toMatchObject({ code: "InvalidArgument", reason: "INVALID_EVENT" });
    expect(failure.fields).toEqual([
      "event.id",
      "event.user.emails[0].value",
      'event.user.attributes["other"]',
      'event.user.attributes["password"]',
      "event.user.id",
      "event.user.status",
      "event.changed",
    ]);
    expect(await countEvents(tenant)).toEqual({ events: 0, deliveries: 0, ids: 0 });
  });

  it("[B06] refuses an event whose body is too large by its own reason", async () => {
    const roleIds = Array.from({ length: 1000 }, () => "é".repeat(256));
    const failure = await failureOf(events.publish({ event: { ...created(newTenant()), user: { ...user, roleIds } } }));
    expect(failure).toMatchObject({ code: "InvalidArgument", reason: "EVENT_TOO_LARGE", fields: ["event"] });
  });

  it("[B06] refuses a request that is too large, without a hint to try again", async () => {
    const reason = "x".repeat(4_200_000);
    const failure = await failureOf(events.publish({ event: { ...created(newTenant()), reason } }));
    expect(failure).toMatchObject({ code: "ResourceExhausted", reason: "REQUEST_TOO_LARGE", retry: false });
  });

  it("[B56] refuses unknown enum numbers and unknown binary fields by their paths", async () => {
    const unknownEnum = await failureOf(
      events.publish({
        event: { ...created(newTenant()), type: 99 as EventType, user: { id: "u", status: 77 as UserStatus } },
      }),
    );
    expect(unknownEnum.fields).toEqual(["event.type", "event.user.status"]);
    const event = create(EventSchema, created(newTenant()));
    event.$unknown = [{ no: 99, wireType: WireType.Varint, data: Uint8Array.of(1) }];
    expect((await failureOf(events.publish({ event }))).fields).toContain("event.#99");
  });

  it("[B10] accepts, stores and shows an event that no subscription matches", async () => {
    const tenant = newTenant();
    const { eventId, deliveries: count } = await events.publish({ event: created(tenant) });
    expect(count).toBe(0);
    const { event } = await events.getEvent({ tenantId: tenant, id: eventId });
    expect(event).toMatchObject({
      id: eventId,
      tenantId: tenant,
      type: EventType.USER_CREATED,
      user: { id: "u_1", displayName: "Zoë" },
    });
    expect((await deliveries.listDeliveries({ tenantId: tenant })).deliveries).toEqual([]);
  });
});

describe("GetEvent", () => {
  it("returns what was published, defaults and previous included", async () => {
    const tenant = newTenant();
    const { eventId } = await events.publish({
      event: {
        tenantId: tenant,
        type: EventType.USER_UPDATED,
        user: { ...user, name: { givenName: "" }, attributes: { costCenter: "7" }, emails: [{ value: "a@b" }] },
        changed: ["name.givenName", "attributes.costCenter", "status"],
        previous: { name: { givenName: "Z" }, status: UserStatus.SUSPENDED },
        actor: { type: "admin" },
        reason: "",
      },
    });
    const { event } = await events.getEvent({ tenantId: tenant, id: eventId });
    expect(event).toMatchObject({
      changed: ["name.givenName", "attributes.costCenter", "status"],
      user: { name: { givenName: "" }, attributes: { costCenter: "7" }, emails: [{ value: "a@b", primary: false }] },
      previous: { name: { givenName: "Z" }, status: UserStatus.SUSPENDED },
      actor: { type: "admin" },
      reason: "",
    });
    expect(event?.occurTime).toBeDefined();
    expect(event?.createTime).toBeDefined();
    expect(event?.userSequence).toBeGreaterThan(0n);
  });

  it("finds nothing of another tenant", async () => {
    const { eventId } = await events.publish({ event: created(newTenant()) });
    const other = newTenant();
    await events.publish({ event: created(other) });
    expect(await failureOf(events.getEvent({ tenantId: other, id: eventId }))).toMatchObject({
      code: "NotFound",
      reason: "EVENT_NOT_FOUND",
    });
  });
});

describe("BatchPublish", () => {
  it("[B11] lets one bad event fail alone, and answers in the order of the events", async () => {
    const tenant = newTenant();
    await addSubscription(db, tenant);
    const { results } = await events.batchPublish({
      events: [
        created(tenant, "a"),
        { ...created(tenant), user: { id: "" } },
        created(tenant, "b"),
        { ...created(tenant, "a"), reason: "x" },
        created(tenant, "a"),
      ],
    });
    expect(results.map(({ result }) => result.case)).toEqual(["success", "failure", "success", "failure", "success"]);
    expect(
      results.map(({ result }) =>
        result.case === "success" ? [result.value.eventId, result.value.duplicate] : result.value?.code,
      ),
    ).toEqual([["a", false], 3, ["b", false], 6, ["a", true]]);
    expect(await countEvents(tenant)).toEqual({ events: 2, deliveries: 2, ids: 2 });
  });

  it("[B11] stores two equal ids of one batch as one event, and gives each user's events ascending sequences", async () => {
    const tenant = newTenant();
    const { results } = await events.batchPublish({
      events: Array.from({ length: 1000 }, (_, i) => created(tenant, `e${i % 500}`)),
    });
    const duplicates = results.filter(({ result }) => result.case === "success" && result.value.duplicate);
    expect(duplicates).toHaveLength(500);
    const rows = await db.admin`
      SELECT e.event_id FROM nuncio.events e JOIN nuncio.tenants t USING (tenant_key)
      WHERE t.tenant_id = ${tenant} ORDER BY e.user_sequence`;
    expect(rows.map((row) => row.event_id)).toEqual(Array.from({ length: 500 }, (_, i) => `e${i}`));
  });

  it("[B06] refuses no event and more than a thousand", async () => {
    expect(await failureOf(events.batchPublish({ events: [] }))).toMatchObject({
      reason: "INVALID_REQUEST",
      fields: ["events"],
    });
    const many = Array.from({ length: 1001 }, () => created("t"));
    expect(await failureOf(events.batchPublish({ events: many }))).toMatchObject({
      reason: "INVALID_REQUEST",
      fields: ["events"],
    });
  });

  it("carries the details of each failure", async () => {
    const { results } = await events.batchPublish({ events: [{ ...created(newTenant()), id: "." }] });
    const [first] = results;
    const status = first?.result.case === "failure" ? first.result.value : undefined;
    expect(status?.details.map(({ typeUrl }) => typeUrl)).toEqual([
      "type.googleapis.com/google.rpc.ErrorInfo",
      "type.googleapis.com/google.rpc.BadRequest",
    ]);
    expect(() => describeFailure(new Error("not of the wire"))).toThrow("not of the wire");
  });
});
