import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { describe, expect, it } from "vitest";
import { EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import { ContentType, SubscriptionOrdering, SubscriptionState } from "../../gen/nuncio/v1/webhook_subscription_pb.ts";
import { useDatabase } from "../support/database.ts";
import { failureOf } from "../support/errors.ts";
import { newTenant } from "../support/fixtures.ts";
import { createDependencies, inProcess } from "../support/service.ts";

const db = useDatabase();
const service = inProcess(() => createDependencies(db, db.server, { maxSubscriptionsPerTenant: 10 }));
const url = "https://hooks.example.com/x";

const create = (tenantId: string, webhookSubscription: object = { url }, requestId = "") =>
  service.subscriptions.createWebhookSubscription({ tenantId, webhookSubscription, requestId });

describe("CreateWebhookSubscription", () => {
  it("answers with the subscription and its secret, and shows the secret nowhere else", async () => {
    const tenant = newTenant();
    const { webhookSubscription, signingSecret } = await create(tenant, {
      url,
      eventTypes: [EventType.USER_DELETED],
      description: "d",
      contentType: ContentType.CLOUDEVENTS_JSON,
      headers: { "x-team": "very secret value" },
    });
    expect(signingSecret).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/);
    expect(webhookSubscription).toMatchObject({
      id: expect.stringMatching(/^sub_/),
      tenantId: tenant,
      url,
      eventTypes: [EventType.USER_DELETED],
      state: SubscriptionState.ENABLED,
      ordering: SubscriptionOrdering.PER_USER,
      contentType: ContentType.CLOUDEVENTS_JSON,
      headers: { "x-team": "" },
    });
    const id = webhookSubscription?.id ?? "";
    const read = await service.subscriptions.getWebhookSubscription({ tenantId: tenant, id });
    expect(read.webhookSubscription).toEqual(webhookSubscription);
    expect(JSON.stringify(read, (_, value) => (typeof value === "bigint" ? String(value) : value))).not.toMatch(
      /whsec|very secret/,
    );
  });

  const bad: [string, string][] = [
    ["plain words", "not a url"],
    ["another scheme", "ftp://hooks.example.com/"],
    ["user info", "https://user:pass@hooks.example.com/"],
    ["a fragment", "https://hooks.example.com/#x"],
    ["a low port", "https://hooks.example.com:22/"],
    ["a metadata address", "http://169.254.169.254/latest"],
    ["a private address in hex", "https://0x0a000001/"],
    ["more than 2,048 characters", `https://hooks.example.com/${"x".repeat(2048)}`],
    ["nothing", ""],
  ];
  for (const [what, text] of bad) {
    it(`[B16] refuses ${what} as a URL`, async () => {
      const failure = await failureOf(create(newTenant(), { url: text }));
      expect(failure).toMatchObject({
        code: "InvalidArgument",
        reason: "INVALID_REQUEST",
        fields: ["webhook_subscription.url"],
      });
    });
  }

  it("[B12] refuses an unknown event type, UNSPECIFIED, and a type that is named twice", async () => {
    const eventTypes = [99 as EventType, EventType.UNSPECIFIED, EventType.USER_CREATED, EventType.USER_CREATED];
    const failure = await failureOf(create(newTenant(), { url, eventTypes }));
    expect(failure.fields).toEqual([
      "webhook_subscription.event_types[0]",
      "webhook_subscription.event_types[1]",
      "webhook_subscription.event_types[1]",
    ]);
  });

  it("[B31] refuses headers of ours and values that inject", async () => {
    const failure = await failureOf(create(newTenant(), { url, headers: { "Webhook-Id": "x", "x-a": "a\r\nb: c" } }));
    expect(failure.fields).toEqual([
      'webhook_subscription.headers["Webhook-Id"]',
      'webhook_subscription.headers["x-a"]',
    ]);
  });

  it("keeps the order per user unless told otherwise", async () => {
    const tenant = newTenant();
    const orderingOf = async (subscription: object) =>
      (await create(tenant, subscription)).webhookSubscription?.ordering;
    expect(await orderingOf({ url })).toBe(SubscriptionOrdering.PER_USER);
    expect(await orderingOf({ url, ordering: SubscriptionOrdering.NONE })).toBe(SubscriptionOrdering.NONE);
  });

  it("takes limits of a subscription, and says how it fares", async () => {
    const tenant = newTenant();
    const limits = { rateLimit: { requestsPerSecond: 5 }, maxInFlight: 2 };
    const { webhookSubscription } = await create(tenant, { url, ...limits });
    expect(webhookSubscription).toMatchObject({ ...limits, consecutiveFailures: 0 });
    expect(webhookSubscription?.lastSuccessTime).toBeUndefined();
    const id = webhookSubscription?.id ?? "";
    await db.admin`
      INSERT INTO nuncio.lane_states (subscription_key, tenant_key, last_success_at, last_failure_at, last_failure, consecutive_failures)
      SELECT subscription_key, tenant_key, '2026-01-01Z', '2026-01-02Z', 'HTTP 500', 7 FROM nuncio.webhook_subscriptions
      WHERE 'sub_' || subscription_uuid = ${id}`;
    const health = {
      lastSuccessTime: timestampFromDate(new Date("2026-01-01T00:00:00Z")),
      lastFailure: { time: timestampFromDate(new Date("2026-01-02T00:00:00Z")), detail: "HTTP 500" },
      consecutiveFailures: 7,
    };
    const read = await service.subscriptions.getWebhookSubscription({ tenantId: tenant, id });
    expect(read.webhookSubscription).toMatchObject({ ...limits, ...health });
    const { webhookSubscriptions } = await service.subscriptions.listWebhookSubscriptions({ tenantId: tenant });
    expect(webhookSubscriptions).toMatchObject([health]);
    const paused = await service.subscriptions.pauseWebhookSubscription({ tenantId: tenant, id });
    expect(paused.webhookSubscription).toMatchObject(health);
    const resumed = await service.subscriptions.resumeWebhookSubscription({ tenantId: tenant, id });
    expect(resumed.webhookSubscription).toMatchObject({ consecutiveFailures: 0 });
  });

  it("refuses limits out of range", async () => {
    for (const [maxInFlight, requestsPerSecond] of [
      [0, 0],
      [-1, -1],
      [1_001, 10_001],
    ] as const) {
      const failure = await failureOf(create(newTenant(), { url, maxInFlight, rateLimit: { requestsPerSecond } }));
      expect(failure.fields).toEqual([
        "webhook_subscription.max_in_flight",
        "webhook_subscription.rate_limit.requests_per_second",
      ]);
    }
  });

  it("[B16] keeps the limit per tenant exact under concurrent creates", async () => {
    const tenant = newTenant();
    const answers = await Promise.allSettled(Array.from({ length: 25 }, () => create(tenant)));
    expect(answers.filter(({ status }) => status === "fulfilled")).toHaveLength(10);
    expect(await failureOf(create(tenant))).toMatchObject({
      code: "ResourceExhausted",
      reason: "TOO_MANY_SUBSCRIPTIONS",
      retry: false,
    });
  });

  it("returns the same subscription and secret for the same request id, and refuses another request under it", async () => {
    const tenant = newTenant();
    const answers = await Promise.all(Array.from({ length: 5 }, () => create(tenant, { url }, "r1")));
    expect(new Set(answers.map(({ webhookSubscription }) => webhookSubscription?.id)).size).toBe(1);
    expect(new Set(answers.map(({ signingSecret }) => signingSecret)).size).toBe(1);
    const failure = await failureOf(create(tenant, { url: `${url}/2` }, "r1"));
    expect(failure).toMatchObject({ code: "AlreadyExists", reason: "REQUEST_ID_REUSED" });
    await db.admin`UPDATE nuncio.subscription_requests SET created_at = now() - interval '25 hours'`;
    expect((await create(tenant, { url: `${url}/2` }, "r1")).webhookSubscription?.url).toBe(`${url}/2`);
  });

  it("[B32] leaves no secret and no header value readable in the database", async () => {
    const { signingSecret } = await create(newTenant(), { url, headers: { "x-canary": "canary_header_value" } });
    const tables = await db.admin`SELECT tablename FROM pg_tables WHERE schemaname = 'nuncio'`;
    const raw = Buffer.from(signingSecret.slice(6), "base64");
    for (const { tablename } of tables) {
      const rows = await db.admin.unsafe(`SELECT t::text AS row FROM nuncio.${tablename} t`);
      const text = rows.map(({ row }) => row).join("\n");
      for (const needle of [
        signingSecret,
        signingSecret.slice(6),
        raw.toString("hex"),
        "canary_header_value",
        Buffer.from("canary_header_value").toString("hex"),
      ]) {
        expect(text, tablename).not.toContain(needle);
      }
    }
  });
});

describe("the life of a subscription", () => {
  it("goes from enabled to paused and back, and is gone once deleted", async () => {
    const tenant = newTenant();
    const id = (await create(tenant)).webhookSubscription?.id ?? "";
    const { subscriptions } = service;
    const paused = await subscriptions.pauseWebhookSubscription({ tenantId: tenant, id });
    expect(paused.webhookSubscription).toMatchObject({
      state: SubscriptionState.PAUSED,
      stateReason: "paused_by_request",
    });
    const resumed = await subscriptions.resumeWebhookSubscription({ tenantId: tenant, id });
    expect(resumed.webhookSubscription).toMatchObject({ state: SubscriptionState.ENABLED, stateReason: "" });
    await subscriptions.deleteWebhookSubscription({ tenantId: tenant, id });
    for (const call of [
      "getWebhookSubscription",
      "pauseWebhookSubscription",
      "resumeWebhookSubscription",
      "deleteWebhookSubscription",
    ] as const) {
      expect(await failureOf(subscriptions[call]({ tenantId: tenant, id }))).toMatchObject({
        code: "NotFound",
        reason: "SUBSCRIPTION_NOT_FOUND",
      });
    }
  });

  it("is out of reach for another tenant", async () => {
    const [owner, other] = [newTenant(), newTenant()];
    const id = (await create(owner)).webhookSubscription?.id ?? "";
    await create(other);
    for (const call of [
      "getWebhookSubscription",
      "pauseWebhookSubscription",
      "resumeWebhookSubscription",
      "deleteWebhookSubscription",
    ] as const) {
      expect(await failureOf(service.subscriptions[call]({ tenantId: other, id }))).toMatchObject({ code: "NotFound" });
    }
    expect(
      (await service.subscriptions.getWebhookSubscription({ tenantId: owner, id })).webhookSubscription?.state,
    ).toBe(SubscriptionState.ENABLED);
  });

  it("pausing what is disabled is refused", async () => {
    const tenant = newTenant();
    const id = (await create(tenant)).webhookSubscription?.id ?? "";
    await db.admin`UPDATE nuncio.webhook_subscriptions SET state = 3 WHERE subscription_uuid = ${id.slice(4)}`;
    expect(await failureOf(service.subscriptions.pauseWebhookSubscription({ tenantId: tenant, id }))).toMatchObject({
      code: "FailedPrecondition",
      reason: "SUBSCRIPTION_DISABLED",
    });
  });

  it("[B12] filters events by type, and without a filter takes all", async () => {
    const tenant = newTenant();
    await create(tenant, { url, eventTypes: [EventType.USER_CREATED, EventType.USER_DELETED] });
    await create(tenant, { url });
    const publish = (type: EventType, user: object, changed: string[] = []) =>
      service.events.publish({ event: { tenantId: tenant, type, changed, user: { id: "u", ...user } } });
    expect((await publish(EventType.USER_CREATED, { status: UserStatus.ACTIVE })).deliveries).toBe(2);
    expect((await publish(EventType.USER_UPDATED, { status: UserStatus.ACTIVE }, ["locale"])).deliveries).toBe(1);
    expect((await publish(EventType.USER_DELETED, {})).deliveries).toBe(2);
  });

  it("[B12] gets nothing while disabled, and collects while paused", async () => {
    const tenant = newTenant();
    const id = (await create(tenant)).webhookSubscription?.id ?? "";
    const publish = () =>
      service.events.publish({
        event: { tenantId: tenant, type: EventType.USER_CREATED, user: { id: "u", status: UserStatus.ACTIVE } },
      });
    await service.subscriptions.pauseWebhookSubscription({ tenantId: tenant, id });
    expect((await publish()).deliveries).toBe(1);
    await db.admin`UPDATE nuncio.webhook_subscriptions SET state = 3 WHERE subscription_uuid = ${id.slice(4)}`;
    expect((await publish()).deliveries).toBe(0);
  });
});

describe("ListWebhookSubscriptions", () => {
  it("[B17] walks all pages without a gap or a repeat while others are created", async () => {
    const tenant = newTenant();
    const before: string[] = [];
    for (let i = 0; i < 7; i += 1) before.push((await create(tenant)).webhookSubscription?.id ?? "");
    const seen: string[] = [];
    let pageToken = "";
    do {
      const page = await service.subscriptions.listWebhookSubscriptions({ tenantId: tenant, pageSize: 2, pageToken });
      seen.push(...page.webhookSubscriptions.map(({ id }) => id));
      if (seen.length === 2) await create(tenant);
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(seen).toEqual(before.reverse());
  });

  it("[B17] refuses a malformed token, a foreign one, and a negative size", async () => {
    const tenant = newTenant();
    for (let i = 0; i < 2; i += 1) await create(tenant);
    const { nextPageToken } = await service.subscriptions.listWebhookSubscriptions({ tenantId: tenant, pageSize: 1 });
    for (const request of [
      { tenantId: tenant, pageToken: "rubbish" },
      { tenantId: newTenant(), pageToken: nextPageToken },
    ]) {
      expect(await failureOf(service.subscriptions.listWebhookSubscriptions(request))).toMatchObject({
        code: "InvalidArgument",
        reason: "INVALID_PAGE_TOKEN",
      });
    }
    expect(
      await failureOf(service.subscriptions.listWebhookSubscriptions({ tenantId: tenant, pageSize: -1 })),
    ).toMatchObject({ fields: ["page_size"] });
  });
});
