import { describe, expect, it } from "vitest";
import { DeliveryEndReason, DeliveryState } from "../../gen/nuncio/v1/delivery_pb.ts";
import { EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { ErasureState } from "../../gen/nuncio/v1/event_service_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import { eraseBody } from "../../src/core/event-body.ts";
import { nextErasure, stepErasure } from "../../src/store/erasures.ts";
import { useDatabase } from "../support/database.ts";
import { failureOf } from "../support/errors.ts";
import { newTenant } from "../support/fixtures.ts";
import { attemptsIn, startLoop } from "../support/loop.ts";
import { openReceiver } from "../support/receiver.ts";
import { createDependencies, inProcess } from "../support/service.ts";

const db = useDatabase();
const service = inProcess(() => createDependencies(db, db.server));
const NOBODY = "http://127.0.0.1:1024/";
const CANARY = "canary7f3a";

const TYPES = {
  created: EventType.USER_CREATED,
  updated: EventType.USER_UPDATED,
  deactivated: EventType.USER_DEACTIVATED,
  deleted: EventType.USER_DELETED,
} as const;

/** An event whose every field that may hold personal data does. */
function eventOf(tenantId: string, id: string, userId: string, type: keyof typeof TYPES, mark: string) {
  if (type === "deleted") return { id, tenantId, type: TYPES[type], user: { id: userId, externalId: "x_1" } };
  const user = {
    id: userId,
    externalId: "x_1",
    userName: mark,
    displayName: mark,
    name: { givenName: mark, familyName: mark },
    emails: [{ value: `${mark}@example.com`, primary: true }],
    phoneNumbers: [{ value: mark }],
    locale: "de",
    organization: { department: mark, employeeNumber: mark },
    attributes: { costCenter: mark },
    status: type === "deactivated" ? UserStatus.DEACTIVATED : UserStatus.ACTIVE,
  };
  const changes = type === "updated" ? { changed: ["displayName"], previous: { displayName: `old ${mark}` } } : {};
  return { id, tenantId, type: TYPES[type], user, reason: mark, actor: { type: "admin", id: "u_9" }, ...changes };
}

async function publish(event: ReturnType<typeof eventOf>) {
  return service.events.publish({ event });
}

async function subscribe(tenantId: string, webhookSubscription: object): Promise<string> {
  const made = await service.subscriptions.createWebhookSubscription({ tenantId, webhookSubscription });
  return made.webhookSubscription?.id ?? "";
}

/** As a worker does, a few events at a time. */
async function takeStep(batch = 2) {
  const next = await nextErasure(db.worker.hot);
  return next && stepErasure(db.worker.hot, next, batch);
}

async function erase(tenantId: string, userId: string) {
  const { erasure } = await service.events.eraseUser({ tenantId, userId });
  for (let steps = 0; steps < 50; steps += 1) {
    const step = await takeStep();
    if (step?.hasEnded) break;
  }
  return (await service.events.getErasure({ tenantId, id: erasure?.id ?? "" })).erasure;
}

/** Every row of every table that holds the text, in any column. */
async function search(text: string): Promise<string[]> {
  const tables = await db.admin<{ name: string }[]>`
    SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'nuncio' AND c.relkind IN ('r', 'p') AND NOT c.relispartition`;
  expect(tables.length).toBeGreaterThan(12);
  const found: string[] = [];
  for (const { name } of tables) {
    const rows = await db.admin.unsafe(`SELECT t::text AS row FROM ${name} t WHERE t::text LIKE $1`, [`%${text}%`]);
    found.push(...rows.map(({ row }) => `${name} ${row}`));
  }
  return found;
}

describe("EraseUser", () => {
  it("[B50] leaves no datum of the user in any table, and everything of everybody else", async () => {
    const tenant = newTenant();
    const other = "neighbour4c1d";
    // One that quotes what it got in its refusal, which is kept as an excerpt; and one that is down.
    const quoting = await openReceiver(({ body }, response) => response.writeHead(500).end(body));
    await subscribe(tenant, { url: quoting.url, retryPolicy: { schedule: [] } });
    await subscribe(tenant, { url: NOBODY });
    const loop = startLoop(db, { schedule: [3_600_000] });
    await publish(eventOf(tenant, "e_1", "u_1", "created", CANARY));
    await publish(eventOf(tenant, "e_2", "u_1", "updated", CANARY));
    await publish(eventOf(tenant, "e_3", "u_2", "created", other));
    await loop.until((events) => attemptsIn(events).length >= 5);
    await loop.stop();
    await publish(eventOf(tenant, "e_4", "u_1", "updated", CANARY));
    expect((await search(CANARY)).length).toBeGreaterThan(3);
    const others = await search(other);

    const erasure = await erase(tenant, "u_1");
    expect(erasure).toMatchObject({ state: ErasureState.SUCCEEDED, userId: "u_1", erasedCount: 3n });
    expect(erasure?.endTime).toBeDefined();
    expect(await search(CANARY)).toEqual([]);
    expect(await search(other)).toEqual(others);
    const { deliveries } = await service.deliveries.listDeliveries({ tenantId: tenant, userId: "u_1" });
    const states = deliveries.filter(({ state }) => state !== DeliveryState.DEAD_LETTERED);
    expect(states.length).toBeGreaterThan(0);
    for (const delivery of states) {
      expect(delivery).toMatchObject({ state: DeliveryState.CANCELLED, endReason: DeliveryEndReason.ERASED });
      const call = service.deliveries.redriveDelivery({ tenantId: tenant, id: delivery.id });
      expect((await failureOf(call)).reason).toBe("DELIVERY_NOT_REDRIVABLE");
    }
  });

  it("[B50] still delivers deactivated and deleted, with ids alone and in order", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const id = await subscribe(tenant, { url: receiver.url });
    await service.subscriptions.pauseWebhookSubscription({ tenantId: tenant, id });
    const types = ["created", "updated", "deactivated", "deleted"] as const;
    for (const type of types) await publish(eventOf(tenant, `e_${type}`, "u_1", type, CANARY));
    await publish(eventOf(tenant, "e_other", "u_2", "created", "somebody else"));
    expect(await erase(tenant, "u_1")).toMatchObject({ erasedCount: 4n, cancelledCount: 2n });
    await service.subscriptions.resumeWebhookSubscription({ tenantId: tenant, id });
    const loop = startLoop(db);
    await receiver.until(() => receiver.received.length === 3);
    await loop.stop();
    const bodies = receiver.received.map(({ body }) => JSON.parse(body));
    const own = bodies.filter(({ subject }) => subject === "users/u_1");
    expect(own.map(({ type }) => type)).toEqual(["user.deactivated", "user.deleted"]);
    for (const body of own) expect(body.data).toEqual({ user: { id: "u_1", externalId: "x_1" } });
    expect(Number(own[0].usersequence)).toBeLessThan(Number(own[1].usersequence));
    expect(bodies.find(({ subject }) => subject === "users/u_2")?.data.user.userName).toBe("somebody else");
  });

  it("[B50] keeps the id taken, shows the event by its ids, and counts what comes later for the next time", async () => {
    const tenant = newTenant();
    await publish(eventOf(tenant, "e_1", "u_1", "created", CANARY));
    await erase(tenant, "u_1");
    expect(await publish(eventOf(tenant, "e_1", "u_1", "created", "other content"))).toMatchObject({ duplicate: true });
    const { event } = await service.events.getEvent({ tenantId: tenant, id: "e_1" });
    expect(event).toMatchObject({
      id: "e_1",
      type: EventType.USER_CREATED,
      user: { id: "u_1", externalId: "x_1", emails: [] },
    });
    expect(event?.user?.displayName).toBeUndefined();
    expect([event?.reason, event?.actor, event?.previous]).toEqual([undefined, undefined, undefined]);
    await publish(eventOf(tenant, "e_2", "u_1", "created", CANARY));
    expect(await erase(tenant, "u_1")).toMatchObject({ erasedCount: 1n });
    expect(await search(CANARY)).toEqual([]);
  });

  it("waits for what is being sent, and returns the running job when it is asked again", async () => {
    const tenant = newTenant();
    const finish = Promise.withResolvers<void>();
    const receiver = await openReceiver(async (_, response) => {
      await finish.promise;
      response.end();
    });
    await subscribe(tenant, { url: receiver.url });
    const loop = startLoop(db);
    await publish(eventOf(tenant, "e_1", "u_1", "created", CANARY));
    await receiver.until(() => receiver.received.length === 1);
    const { erasure: first } = await service.events.eraseUser({ tenantId: tenant, userId: "u_1" });
    const { erasure: again } = await service.events.eraseUser({ tenantId: tenant, userId: "u_1" });
    expect(again).toEqual(first);
    // What comes meanwhile is meant by whoever asks once more.
    await publish(eventOf(tenant, "e_2", "u_1", "updated", CANARY));
    await service.events.eraseUser({ tenantId: tenant, userId: "u_1" });
    expect(await takeStep(100)).toMatchObject({ hasToWait: true, hasEnded: false });
    expect((await search(CANARY)).length).toBeGreaterThan(0);
    finish.resolve();
    await loop.until((events) => attemptsIn(events).length === 1);
    await loop.stop();
    expect(await erase(tenant, "u_1")).toMatchObject({ id: first?.id, state: ErasureState.SUCCEEDED, erasedCount: 2n });
    expect(await search(CANARY)).toEqual([]);
    const { deliveries } = await service.deliveries.listDeliveries({ tenantId: tenant });
    expect(deliveries.map(({ state }) => state)).toEqual([DeliveryState.CANCELLED, DeliveryState.DELIVERED]);
  });

  it("asks for a user, and touches no other tenant's user of the same id", async () => {
    const [tenant, other] = [newTenant(), newTenant()];
    await publish(eventOf(other, "e_1", "u_1", "created", "untouched1b2c"));
    expect((await failureOf(service.events.eraseUser({ tenantId: tenant, userId: "" }))).fields).toEqual(["user_id"]);
    expect(await erase(tenant, "u_1")).toMatchObject({ state: ErasureState.SUCCEEDED, erasedCount: 0n });
    expect((await search("untouched1b2c")).length).toBe(1);
  });
});

describe("eraseBody", () => {
  it("keeps ids, type, sequence and times, each member's place and its bytes", () => {
    const body =
      '{"specversion":"1.0","usersequence":"00000000000000000042","id":"e","source":"/tenants/acme","type":"user.deactivated",' +
      '"subject":"users/u_1","time":"2026-11-23T10:00:00.000Z","datacontenttype":"application/json",' +
      '"dataschema":"urn:nuncio:schema:user.deactivated:1","tenantid":"acme",' +
      '"data":{"user":{"id":"u_1","displayName":"Zoë","status":"DEACTIVATED"},"reason":"left"}}';
    expect(eraseBody(body)).toBe(`${body.slice(0, body.indexOf('"data":{'))}"data":{"user":{"id":"u_1"}}}`);
  });
});
