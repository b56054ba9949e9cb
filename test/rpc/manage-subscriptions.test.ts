import { durationFromMs, timestampDate } from "@bufbuild/protobuf/wkt";
import { Webhook } from "standardwebhooks";
import Stripe from "stripe";
import { describe, expect, it } from "vitest";
import { AttemptOutcome, DeliveryEndReason, DeliveryState } from "../../gen/nuncio/v1/delivery_pb.ts";
import { EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import { ContentType, SubscriptionOrdering, SubscriptionState } from "../../gen/nuncio/v1/webhook_subscription_pb.ts";
import { useDatabase } from "../support/database.ts";
import { failureOf } from "../support/errors.ts";
import { newTenant } from "../support/fixtures.ts";
import { attemptsIn, startLoop, startTests } from "../support/loop.ts";
import { openReceiver, type Received, type Receiver } from "../support/receiver.ts";
import { createDependencies, inProcess } from "../support/service.ts";

const db = useDatabase();
const service = inProcess(() => createDependencies(db, db.server));
const URL_1 = "https://hooks.example.com/1";

async function create(tenantId: string, webhookSubscription: object = { url: URL_1 }) {
  const made = await service.subscriptions.createWebhookSubscription({ tenantId, webhookSubscription });
  return { id: made.webhookSubscription?.id ?? "", secret: made.signingSecret, subscription: made.webhookSubscription };
}

async function update(tenantId: string, webhookSubscription: object, paths: string[] = []) {
  const request = { tenantId, webhookSubscription, updateMask: { paths } };
  return (await service.subscriptions.updateWebhookSubscription(request)).webhookSubscription;
}

let published = 0;

async function publish(tenantId: string, count = 1): Promise<string[]> {
  const ids = Array.from({ length: count }, () => `e_${++published}`);
  const events = ids.map((id) => ({
    id,
    tenantId,
    type: EventType.USER_CREATED,
    user: { id: `u_${id}`, userName: "zoe", status: UserStatus.ACTIVE },
  }));
  await service.events.batchPublish({ events });
  return ids;
}

describe("UpdateWebhookSubscription", () => {
  it("changes what the mask names and nothing else", async () => {
    const tenant = newTenant();
    const headers = { "x-team": "seven" };
    const { id, subscription } = await create(tenant, { url: URL_1, description: "old", maxInFlight: 4, headers });
    const changed = await update(tenant, { id, url: "https://hooks.example.com/2", description: "new" }, [
      "description",
    ]);
    expect(changed).toEqual({ ...subscription, description: "new", updateTime: changed?.updateTime });
    expect(changed?.headers).toEqual({ "x-team": "" });
  });

  it("without a mask changes the fields that are set", async () => {
    const tenant = newTenant();
    const { id } = await create(tenant, { url: URL_1, description: "old", maxInFlight: 4 });
    const changed = await update(tenant, { id, rateLimit: { requestsPerSecond: 7 }, maxInFlight: 2 });
    expect(changed).toMatchObject({
      url: URL_1,
      description: "old",
      maxInFlight: 2,
      rateLimit: { requestsPerSecond: 7 },
    });
  });

  it("takes back to its default what the mask names and the request leaves out", async () => {
    const tenant = newTenant();
    const { id } = await create(tenant, {
      url: URL_1,
      eventTypes: [EventType.USER_DELETED],
      ordering: SubscriptionOrdering.NONE,
      contentType: ContentType.CLOUDEVENTS_JSON,
      headers: { "x-team": "seven" },
      rateLimit: { requestsPerSecond: 7 },
      maxInFlight: 4,
      retryPolicy: { schedule: [durationFromMs(5_000)] },
      description: "d",
    });
    const changed = await update(tenant, { id, url: URL_1 }, ["*"]);
    expect(changed).toMatchObject({
      eventTypes: [],
      ordering: SubscriptionOrdering.PER_USER,
      contentType: ContentType.JSON,
      headers: {},
      description: "",
    });
    expect([changed?.rateLimit, changed?.maxInFlight, changed?.retryPolicy]).toEqual([undefined, undefined, undefined]);
  });

  it("finds all faults of what is named, and none of what is not", async () => {
    const tenant = newTenant();
    const { id } = await create(tenant);
    const bad = {
      id,
      url: "ftp://x",
      maxInFlight: 0,
      headers: { "webhook-id": "x" },
      retryPolicy: { schedule: [durationFromMs(10), durationFromMs(8 * 86_400_000)] },
    };
    const failure = await failureOf(update(tenant, bad, ["headers", "retry_policy.schedule", "state", "nonsense"]));
    expect(failure).toMatchObject({ code: "InvalidArgument", reason: "INVALID_REQUEST" });
    expect(failure.fields.toSorted()).toEqual([
      "update_mask.paths[2]",
      "update_mask.paths[3]",
      'webhook_subscription.headers["webhook-id"]',
      "webhook_subscription.retry_policy.schedule",
      "webhook_subscription.retry_policy.schedule[0]",
    ]);
    expect((await failureOf(update(tenant, { url: "" }, ["url"]))).fields).toEqual([
      "webhook_subscription.id",
      "webhook_subscription.url",
    ]);
  });

  it("knows no other tenant's subscription and no deleted one", async () => {
    const [tenant, other] = [newTenant(), newTenant()];
    const { id } = await create(tenant);
    await create(other);
    const foreign = await failureOf(update(other, { id, description: "mine" }));
    expect(foreign).toMatchObject({ code: "NotFound", reason: "SUBSCRIPTION_NOT_FOUND" });
    await service.subscriptions.deleteWebhookSubscription({ tenantId: tenant, id });
    expect((await failureOf(update(tenant, { id, description: "x" }))).code).toBe("NotFound");
  });

  it("[B15] sends what waits to the new URL with the new headers, and nothing more to the old one, on a busy subscription", async () => {
    const tenant = newTenant();
    const before = await openReceiver();
    const after = await openReceiver();
    const { id } = await create(tenant, { url: before.url, ordering: SubscriptionOrdering.NONE, maxInFlight: 2 });
    await publish(tenant, 300);
    const loop = startLoop(db);
    await before.until(() => before.received.length >= 20);
    await update(tenant, { id, url: after.url, headers: { "x-new": "yes" } });
    const atChange = before.received.length;
    // Each at its place in a minute: two a second at least.
    await after.until(() => after.received.length >= 3);
    expect(before.received.length - atChange).toBeLessThanOrEqual(2);
    expect(after.received.map(({ headers }) => headers["x-new"])).toEqual(after.received.map(() => "yes"));
    await loop.stop();
  });

  it("[B15] holds a busy subscription to a new limit from its next request on", async () => {
    const tenant = newTenant();
    let slow = false;
    const held: (() => void)[] = [];
    const receiver = await openReceiver((_, response) => {
      if (slow) held.push(() => response.end());
      else response.end();
    });
    const { id } = await create(tenant, { url: receiver.url, ordering: SubscriptionOrdering.NONE, maxInFlight: 16 });
    await publish(tenant, 500);
    const loop = startLoop(db);
    await receiver.until(() => receiver.received.length >= 50);
    slow = true;
    await update(tenant, { id, maxInFlight: 1 });
    const change = receiver.received.length;
    // All that began under the old limit ends, and one after the other comes under the new one.
    for (let i = 0; i < 20; i += 1) {
      await receiver.until(() => held.length > 0);
      for (const end of held.splice(0)) end();
    }
    await receiver.until(() => receiver.received.length > change + 18);
    slow = false;
    for (const end of held.splice(0)) end();
    await loop.stop();
    const late = receiver.received.slice(change + 17);
    expect(late.length).toBeGreaterThan(0);
    expect(receiver.open().now).toBe(0);
  });

  it("goes by the subscription's own retry policy, also one without retries", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver((_, response) => response.writeHead(500).end());
    await create(tenant, { url: receiver.url, retryPolicy: { schedule: [] } });
    const [eventId] = await publish(tenant);
    const loop = startLoop(db);
    await loop.until((events) => attemptsIn(events).length === 1);
    await loop.stop();
    const { deliveries } = await service.deliveries.listDeliveries({ tenantId: tenant, eventId: eventId ?? "" });
    expect(deliveries).toMatchObject([
      { state: DeliveryState.DEAD_LETTERED, endReason: DeliveryEndReason.RETRIES_EXHAUSTED, attemptCount: 1 },
    ]);
  });
});

/** How many signatures each header has, and which of the secrets verify. */
function verify({ body, headers }: Received, secrets: readonly string[]) {
  const flat = Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, String(value)]));
  const passes = (check: () => unknown) => {
    try {
      check();
      return true;
    } catch {
      return false;
    }
  };
  const stripe = new Stripe("sk_test_x").webhooks;
  return {
    signatures: (flat["webhook-signature"] ?? "").split(" ").length,
    identitySignatures: (flat["x-identity-signature"] ?? "").split(",v1=").length - 1,
    standard: secrets.map((secret) => passes(() => new Webhook(secret).verify(body, flat))),
    stripe: secrets.map((secret) =>
      passes(() => stripe.constructEvent(body, flat["x-identity-signature"] ?? "", secret)),
    ),
  };
}

async function nextOf(receiver: Receiver, tenant: string): Promise<Received> {
  const [id] = await publish(tenant);
  await receiver.until(() => receiver.received.some(({ headers }) => headers["webhook-id"] === id));
  return receiver.received.find(({ headers }) => headers["webhook-id"] === id) as Received;
}

describe("RotateWebhookSubscriptionSecret", () => {
  it("[B30] signs with both secrets while the grace period lasts, and not with the old one after it", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const { id, secret: old } = await create(tenant, { url: receiver.url });
    const loop = startLoop(db);
    await nextOf(receiver, tenant);
    const rotated = await service.subscriptions.rotateWebhookSubscriptionSecret({
      tenantId: tenant,
      id,
      gracePeriod: durationFromMs(1_000),
    });
    const secrets = [old, rotated.signingSecret];
    expect(rotated.signingSecret).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/);
    expect(rotated.webhookSubscription?.replacedSecretExpireTime).toBeDefined();
    expect(verify(await nextOf(receiver, tenant), secrets)).toEqual({
      signatures: 2,
      identitySignatures: 2,
      standard: [true, true],
      stripe: [true, true],
    });
    let last = verify(await nextOf(receiver, tenant), secrets);
    while (last.signatures > 1) last = verify(await nextOf(receiver, tenant), secrets);
    expect(last).toEqual({ signatures: 1, identitySignatures: 1, standard: [false, true], stripe: [false, true] });
    const read = await service.subscriptions.getWebhookSubscription({ tenantId: tenant, id });
    expect(read.webhookSubscription?.replacedSecretExpireTime).toBeUndefined();
    await loop.stop();
  });

  it("[B15] ends a leaked secret at once with a grace period of 0, for the next request of a busy worker", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const { id, secret: old } = await create(tenant, { url: receiver.url });
    const loop = startLoop(db);
    await nextOf(receiver, tenant);
    await service.subscriptions.rotateWebhookSubscriptionSecret({ tenantId: tenant, id });
    const gracePeriod = durationFromMs(0);
    const { signingSecret } = await service.subscriptions.rotateWebhookSubscriptionSecret({
      tenantId: tenant,
      id,
      gracePeriod,
    });
    expect(verify(await nextOf(receiver, tenant), [old, signingSecret])).toMatchObject({
      signatures: 1,
      standard: [false, true],
      stripe: [false, true],
    });
    await loop.stop();
  });

  it("keeps the receiver's secret signing when an answer was lost and the rotation is made again, up to five secrets", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const { id, secret: first } = await create(tenant, { url: receiver.url });
    const rotate = () => service.subscriptions.rotateWebhookSubscriptionSecret({ tenantId: tenant, id });
    const loop = startLoop(db);
    await rotate();
    const second = (await rotate()).signingSecret;
    expect(verify(await nextOf(receiver, tenant), [first, second])).toMatchObject({
      signatures: 3,
      standard: [true, true],
    });
    for (let i = 0; i < 2; i += 1) await rotate();
    expect(await failureOf(rotate())).toMatchObject({ code: "FailedPrecondition", reason: "TOO_MANY_SECRETS" });
    expect(verify(await nextOf(receiver, tenant), [first, second])).toMatchObject({
      signatures: 5,
      standard: [true, true],
    });
    await loop.stop();
  });

  it("answers with the time until which the old one signs, a day by default, and refuses more than a week", async () => {
    const tenant = newTenant();
    const { id } = await create(tenant);
    const { webhookSubscription } = await service.subscriptions.rotateWebhookSubscriptionSecret({
      tenantId: tenant,
      id,
    });
    const expire = webhookSubscription?.replacedSecretExpireTime;
    const [row] = await db.admin<{ hours: number }[]>`
      SELECT round(extract(epoch FROM ${expire ? timestampDate(expire).toISOString() : ""}::timestamptz - now()) / 3600)::integer AS hours`;
    expect(row?.hours).toBe(24);
    for (const gracePeriod of [durationFromMs(-1), durationFromMs(7 * 86_400_000 + 1)]) {
      const call = service.subscriptions.rotateWebhookSubscriptionSecret({ tenantId: tenant, id, gracePeriod });
      expect((await failureOf(call)).fields).toEqual(["grace_period"]);
    }
    const other = newTenant();
    const foreign = service.subscriptions.rotateWebhookSubscriptionSecret({ tenantId: other, id });
    expect((await failureOf(foreign)).code).toBe("NotFound");
  });
});

describe("TestWebhookSubscription", () => {
  const test = async (tenantId: string, id: string) =>
    (await service.subscriptions.testWebhookSubscription({ tenantId, id })).attempt;

  it("says so when no worker takes it, and knows no other tenant's subscription", async () => {
    const tenant = newTenant();
    const { id } = await create(tenant);
    let nowMs = 0;
    const now = () => {
      nowMs += 5_000;
      return nowMs;
    };
    const impatient = inProcess(() => createDependencies(db, db.server, { now }));
    const failure = await failureOf(impatient.subscriptions.testWebhookSubscription({ tenantId: tenant, id }));
    expect(failure).toMatchObject({ code: "Unavailable", reason: "NO_WORKER", retry: true });
    expect((await failureOf(test(newTenant(), id))).code).toBe("NotFound");
  });

  it("[B18] sends a signed ping through a worker and returns what the receiver answered", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver((_, response) => response.writeHead(202).end("thanks"));
    const { id, secret } = await create(tenant, { url: receiver.url, headers: { "x-team": "seven" } });
    startTests(db);
    expect(await test(tenant, id)).toMatchObject({ number: 1, outcome: AttemptOutcome.DELIVERED, httpStatus: 202 });
    const [request] = receiver.received as [Received];
    expect(verify(request, [secret])).toMatchObject({ signatures: 1, standard: [true], stripe: [true] });
    expect(JSON.parse(request.body)).toMatchObject({
      type: "nuncio.ping",
      tenantid: tenant,
      data: { subscriptionId: id },
    });
    expect(request.headers).toMatchObject({ "x-identity-attempt": "1", "x-team": "seven" });
    expect(request.headers["webhook-id"]).toBe(JSON.parse(request.body).id);
  });

  it("[B18] returns a failure as it was, and leaves no trace in health, order or history", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver((_, response) => response.writeHead(410).end("go away"));
    const { id, subscription } = await create(tenant, { url: receiver.url });
    startTests(db);
    expect(await test(tenant, id)).toMatchObject({
      outcome: AttemptOutcome.HTTP_STATUS,
      httpStatus: 410,
      responseExcerpt: "go away",
    });
    const read = await service.subscriptions.getWebhookSubscription({ tenantId: tenant, id });
    expect(read.webhookSubscription).toEqual(subscription);
    const counts = await db.admin`
      SELECT (SELECT count(*) FROM nuncio.subscription_tests)::integer AS tests,
        (SELECT count(*) FROM nuncio.delivery_attempts a JOIN nuncio.tenants t USING (tenant_key) WHERE tenant_id = ${tenant})::integer AS attempts,
        (SELECT count(*) FROM nuncio.lane_states l JOIN nuncio.tenants t USING (tenant_key) WHERE tenant_id = ${tenant})::integer AS lanes`;
    expect(counts).toEqual([{ tests: 0, attempts: 0, lanes: 0 }]);
  });

  it("tests a paused subscription, and says why a request did not get there", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const { id } = await create(tenant, { url: receiver.url });
    await service.subscriptions.pauseWebhookSubscription({ tenantId: tenant, id });
    startTests(db);
    expect(await test(tenant, id)).toMatchObject({ outcome: AttemptOutcome.DELIVERED });
    await receiver.close();
    expect(await test(tenant, id)).toMatchObject({
      outcome: AttemptOutcome.CONNECT_FAILED,
      errorDetail: expect.stringContaining("ECONNREFUSED"),
    });
    const read = await service.subscriptions.getWebhookSubscription({ tenantId: tenant, id });
    expect(read.webhookSubscription?.state).toBe(SubscriptionState.PAUSED);
  });

  it("makes one test of a subscription at a time", async () => {
    const tenant = newTenant();
    const asked = Promise.withResolvers<void>();
    const answered = Promise.withResolvers<void>();
    const receiver = await openReceiver(async (_, response) => {
      asked.resolve();
      await answered.promise;
      response.end();
    });
    const { id } = await create(tenant, { url: receiver.url });
    startTests(db);
    const first = test(tenant, id);
    await asked.promise;
    expect(await failureOf(test(tenant, id))).toMatchObject({
      code: "ResourceExhausted",
      reason: "TEST_UNDER_WAY",
      retry: true,
    });
    answered.resolve();
    expect(await first).toMatchObject({ outcome: AttemptOutcome.DELIVERED });
    expect(await test(tenant, id)).toMatchObject({ outcome: AttemptOutcome.DELIVERED });
  });
});
