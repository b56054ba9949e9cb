import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { expect, it } from "vitest";
import { EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { EventService } from "../../gen/nuncio/v1/event_service_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import { WebhookSubscriptionService } from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import { cleanUp } from "../support/clean-up.ts";
import { useDatabase } from "../support/database.ts";
import { startServer, startWorker } from "../support/processes.ts";
import { openReceiver } from "../support/receiver.ts";
import { OPERATOR_KEY } from "../support/service.ts";

const db = useDatabase();
const TRACE = "4bf92f3577b34da6a3ce929d0e0e4736";
const PUBLISHER = "00f067aa0ba902b7";
const PERSON = "canary-person-77aa";

type Span = {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly attributes: readonly { key: string; value: Record<string, unknown> }[];
  readonly status: { code?: number };
};
type Export = {
  resourceSpans: {
    resource: { attributes: { key: string; value: { stringValue?: string } }[] };
    scopeSpans: { spans: Span[] }[];
  }[];
};

/** Takes OTLP over HTTP as JSON, and keeps all of it. */
async function openCollector() {
  const bodies: string[] = [];
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
    bodies.push(Buffer.concat(chunks).toString("utf8"));
    response.writeHead(200, { "content-type": "application/json" }).end("{}");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  cleanUp(() => server.close());
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    bodies,
    spans: () =>
      bodies.flatMap((body) =>
        (JSON.parse(body) as Export).resourceSpans.flatMap(({ resource, scopeSpans }) => {
          const service = resource.attributes.find(({ key }) => key === "service.name")?.value.stringValue;
          return scopeSpans.flatMap(({ spans }) => spans.map((span) => ({ ...span, service })));
        }),
      ),
  };
}

it("a trace goes from the publisher through server and worker to the receiver, with ids and codes alone", async () => {
  const collector = await openCollector();
  const otel = { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, OTEL_EXPORTER_OTLP_PROTOCOL: "http/json" };
  const settings = { NUNCIO_RETRY_SCHEDULE: "50ms", NUNCIO_POLL_INTERVAL_MS: "50", ...otel };
  const [server, worker] = await Promise.all([startServer(db.url, settings), startWorker(db.url, settings)]);
  const interceptor: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${OPERATOR_KEY}`);
    if (request.method.name === "Publish") request.header.set("traceparent", `00-${TRACE}-${PUBLISHER}-01`);
    return next(request);
  };
  const transport = createConnectTransport({ baseUrl: server.baseUrl, httpVersion: "2", interceptors: [interceptor] });
  const events = createClient(EventService, transport);
  const receiver = await openReceiver((_, response) => {
    response.writeHead(receiver.received.length === 1 ? 500 : 204).end(PERSON);
  });
  const url = `${receiver.url}?token=canary-token`;
  await createClient(WebhookSubscriptionService, transport).createWebhookSubscription({
    tenantId: "acme",
    webhookSubscription: { url, headers: { "x-token": "canary-header" } },
  });
  const user = { id: "u_1", displayName: PERSON, status: UserStatus.ACTIVE };
  await events.publish({ event: { id: "e_1", tenantId: "acme", type: EventType.USER_CREATED, user } });
  await events
    .publish({ event: { id: "e_1", tenantId: "acme", type: EventType.USER_DELETED, user } })
    .catch(() => undefined);
  await receiver.until(() => receiver.received.length === 2);
  await worker.line(({ msg, attempt }) => msg === "delivery.attempted" && attempt === 2);
  for (const { child, ended } of [server, worker]) {
    child.kill("SIGTERM");
    expect(await ended).toMatchObject({ code: 0 });
  }

  const spans = collector.spans().filter(({ traceId }) => traceId === TRACE);
  const [publish, refused] = spans.filter(({ name }) => name === "nuncio.v1.EventService/Publish");
  expect(publish).toMatchObject({ service: "nuncio-server", parentSpanId: PUBLISHER, status: {} });
  expect(refused).toMatchObject({ parentSpanId: PUBLISHER, status: { code: 2 } });
  const attempts = spans.filter(({ name }) => name === "deliver");
  expect(attempts).toHaveLength(2);
  for (const attempt of attempts)
    expect(attempt).toMatchObject({ service: "nuncio-worker", parentSpanId: publish?.spanId });
  expect(attempts.map(({ status }) => status.code ?? 0)).toEqual([2, 0]);
  const valuesOf = (span: Span | undefined) =>
    Object.fromEntries(span?.attributes.map(({ key, value }) => [key, Object.values(value)[0]]) ?? []);
  expect(valuesOf(attempts[0])).toMatchObject({
    "nuncio.event_id": "e_1",
    "http.response.status_code": 500,
    "error.type": "http_status",
  });
  expect(receiver.received.map(({ headers }) => headers.traceparent)).toEqual(
    attempts.map(({ spanId }) => `00-${TRACE}-${spanId}-01`),
  );
  for (const canary of [PERSON, "canary-token", "canary-header", OPERATOR_KEY, receiver.url]) {
    expect(collector.bodies.join("\n").includes(canary) ? `found ${canary}` : "nothing").toBe("nothing");
  }
});
