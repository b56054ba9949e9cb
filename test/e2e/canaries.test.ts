import { createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { expect, it } from "vitest";
import { DeliveryState } from "../../gen/nuncio/v1/delivery_pb.ts";
import { DeliveryService } from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { ErasureState, EventService } from "../../gen/nuncio/v1/event_service_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import { WebhookSubscriptionService } from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import { anyFreePort } from "../../src/free-port.ts";
import { useDatabase } from "../support/database.ts";
import { describeFailure } from "../support/errors.ts";
import { startServer, startWorker } from "../support/processes.ts";
import { openReceiver } from "../support/receiver.ts";
import { OPERATOR_KEY } from "../support/service.ts";

const db = useDatabase();
const PERSON = "canary-person-5e1d";
const HEADER = "canary-header-9b2c";

it("[B33] no secret and no personal datum in a log line, a metric or an error, whatever happens", async () => {
  const [serverPort, workerPort] = [await anyFreePort("127.0.0.1"), await anyFreePort("127.0.0.1")];
  const settings = { NUNCIO_LOG_LEVEL: "trace", NUNCIO_RETRY_SCHEDULE: "1h", NUNCIO_POLL_INTERVAL_MS: "50" };
  const [server, worker] = await Promise.all([
    startServer(db.url, { ...settings, NUNCIO_OPERATIONS_LISTEN: `127.0.0.1:${serverPort}` }),
    startWorker(db.url, { ...settings, NUNCIO_WORKER_OPERATIONS_LISTEN: `127.0.0.1:${workerPort}` }),
  ]);
  const bearer: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${OPERATOR_KEY}`);
    return next(request);
  };
  const transport = createConnectTransport({ baseUrl: server.baseUrl, httpVersion: "2", interceptors: [bearer] });
  const events = createClient(EventService, transport);
  const subscriptions = createClient(WebhookSubscriptionService, transport);
  const deliveries = createClient(DeliveryService, transport);
  const tenantId = "acme";
  const errors: unknown[] = [];
  const failing = async (call: Promise<unknown>) => {
    const failure = await call.then(
      () => expect.fail("the call succeeded"),
      (error: unknown) => error,
    );
    errors.push(describeFailure(failure), String(failure), failure);
  };

  // It refuses, and quotes everything that it got.
  const receiver = await openReceiver(({ body, headers }, response) => {
    response.writeHead(500, { "x-quote": String(headers["x-token"]) }).end(JSON.stringify(headers) + body);
  });
  const made = await subscriptions.createWebhookSubscription({
    tenantId,
    webhookSubscription: { url: receiver.url, headers: { "x-token": HEADER } },
  });
  const id = made.webhookSubscription?.id ?? "";
  const rotated = await subscriptions.rotateWebhookSubscriptionSecret({ tenantId, id });
  const secrets = [made.signingSecret, rotated.signingSecret];

  const user = {
    id: "u_1",
    userName: PERSON,
    displayName: PERSON,
    emails: [{ value: `${PERSON}@example.com` }],
    status: UserStatus.ACTIVE,
  };
  const event = { id: "e_1", tenantId, type: EventType.USER_CREATED, user, reason: PERSON };
  await events.publish({ event });
  await worker.line(({ msg }) => msg === "delivery.attempted");
  await failing(events.publish({ event: { ...event, user: { ...user, displayName: `${PERSON} again` } } }));
  await failing(
    events.publish({
      event: { ...event, id: "e_2", changed: [PERSON], user: { ...user, emails: [{ value: PERSON.repeat(500) }] } },
    }),
  );
  await failing(
    subscriptions.updateWebhookSubscription({
      tenantId,
      webhookSubscription: { id, headers: { "x-token": `${HEADER}\r\nx: y` } },
    }),
  );
  await subscriptions.testWebhookSubscription({ tenantId, id });
  const [pending] = (await deliveries.listDeliveries({ tenantId, states: [DeliveryState.PENDING] })).deliveries;
  await deliveries.redriveDelivery({ tenantId, id: pending?.id ?? "" });
  await worker.line(({ msg, attempt }) => msg === "delivery.attempted" && attempt === 2);
  const { erasure } = await events.eraseUser({ tenantId, userId: "u_1" });
  await worker.line(({ msg }) => msg === "erasure.ended");
  const done = await events.getErasure({ tenantId, id: erasure?.id ?? "" });
  expect(done.erasure).toMatchObject({ state: ErasureState.SUCCEEDED, erasedCount: 1n });

  const metrics = await Promise.all(
    [serverPort, workerPort].map(async (port) => (await fetch(`http://127.0.0.1:${port}/metrics`)).text()),
  );
  expect(metrics[0]).toContain("nuncio_published_events_total");
  expect(metrics[1]).toContain("nuncio_delivery_attempts_total");
  for (const { child, ended } of [server, worker]) {
    child.kill("SIGTERM");
    await ended;
  }
  const said = JSON.stringify([
    server.lines,
    worker.lines,
    metrics,
    errors.map(String),
    errors.map((error) => JSON.stringify(error, (_, value) => (typeof value === "bigint" ? String(value) : value))),
  ]);
  expect(said.length).toBeGreaterThan(5_000);
  // The receiver has had them all.
  expect(JSON.stringify(receiver.received)).toContain(PERSON);
  expect(JSON.stringify(receiver.received)).toContain(HEADER);
  for (const canary of [PERSON, HEADER, OPERATOR_KEY, ...secrets, ...secrets.map((secret) => secret.slice(6))]) {
    expect(said.includes(canary) ? `found ${canary}` : "nothing").toBe("nothing");
  }
});
