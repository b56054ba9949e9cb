import { readFile } from "node:fs/promises";
import type { ServerResponse } from "node:http";
import { createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import postgres from "postgres";
import { beforeAll, describe, expect, it, vi } from "vitest";
import { EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { EventService } from "../../gen/nuncio/v1/event_service_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import { SubscriptionOrdering } from "../../gen/nuncio/v1/webhook_subscription_pb.ts";
import { WebhookSubscriptionService } from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import { parseSubscriptionId } from "../../src/core/ids.ts";
import { anyFreePort } from "../../src/free-port.ts";
import { cleanUp } from "../support/clean-up.ts";
import { useDatabase } from "../support/database.ts";
import { newTenant } from "../support/fixtures.ts";
import { startServer, startWorker } from "../support/processes.ts";
import { HAS_PROMETHEUS, type Prometheus, startPrometheus } from "../support/prometheus.ts";
import { openReceiver, type Receiver } from "../support/receiver.ts";
import { OPERATOR_KEY } from "../support/service.ts";

// The walk through docs/operating.md: what each alert is about is brought about, and it fires.

const RULES = await readFile(new URL("../../docs/prometheus/alerts.yml", import.meta.url), "utf8");
const NAMES = [...RULES.matchAll(/- alert: (\w+)/g)].map(([, name]) => name as string);

/** Only so that nobody has to wait for half an hour or make a million dead rows: the expressions are the same otherwise. */
const SCALED: readonly (readonly [RegExp, string])[] = [
  [/^ +for: .*\n/gm, ""],
  [/\[(1h|15m|10m|5m)\]/g, "[15s]"],
  [/(unrecorded_attempts\)) > 1000/, "$1 > 2"],
  [/(queue_events\)) > 10000/, "$1 > 100"],
  [/(snapshot_seconds\)) > 1800/, "$1 > 2"],
  [/(dead_rows\)) > 1e6/, "$1 > 1e4"],
];

const db = useDatabase();

describe.skipIf(!HAS_PROMETHEUS)("each alert (needs a Prometheus: apt-get install prometheus)", () => {
  let prometheus: Prometheus;
  let events: ReturnType<typeof eventsClient>;
  let subscriptions: ReturnType<typeof subscriptionsClient>;
  let worker: Awaited<ReturnType<typeof startWorker>>;
  const tested = new Set<string>();

  beforeAll(async () => {
    const [operations, workerOperations] = [await anyFreePort("127.0.0.1"), await anyFreePort("127.0.0.1")];
    const settings = {
      NUNCIO_OPERATIONS_LISTEN: `127.0.0.1:${operations}`,
      NUNCIO_WORKER_OPERATIONS_LISTEN: `127.0.0.1:${workerOperations}`,
      NUNCIO_WORKER_CONCURRENCY: "4",
      NUNCIO_REQUEST_TIMEOUT_MS: "20000",
      NUNCIO_LEASE_MS: "30000",
      NUNCIO_POLL_INTERVAL_MS: "100",
      NUNCIO_RETRY_SCHEDULE: "100ms",
      NUNCIO_ORDER_HOLD: "2s",
      NUNCIO_MAX_PENDING_PER_TENANT: "100",
      NUNCIO_LOG_LEVEL: "fatal",
    };
    const server = await startServer(db.url, { ...settings, NUNCIO_LOG_LEVEL: "info" });
    worker = await startWorker(db.url, { ...settings, NUNCIO_LOG_LEVEL: "info" });
    events = eventsClient(server.baseUrl);
    subscriptions = subscriptionsClient(server.baseUrl);
    const rules = SCALED.reduce((text, [from, to]) => text.replace(from, to), RULES);
    prometheus = await startPrometheus([`127.0.0.1:${operations}`, `127.0.0.1:${workerOperations}`], rules);
    // A counter tells what is new only once it was seen before.
    const isSeen = async () => expect(await prometheus.knows("nuncio_workers")).toBe(true);
    await vi.waitFor(isSeen, { timeout: 20_000 });
  }, 120_000);

  const isFiring = async (name: string) => (await prometheus.firing()).has(name);

  /** Quiet before, whatever the tests before have left behind; then it is brought about, and it fires. */
  const fires = async (name: string, bringAbout: () => Promise<unknown> = async () => undefined) => {
    tested.add(name);
    await expect.poll(() => isFiring(name), { timeout: 60_000, interval: 250 }).toBe(false);
    await bringAbout();
    await expect.poll(() => isFiring(name), { timeout: 60_000, interval: 250 }).toBe(true);
  };

  const subscribe = async (url: string, ordering: SubscriptionOrdering = SubscriptionOrdering.NONE) => {
    const tenantId = newTenant();
    const { webhookSubscription } = await subscriptions.createWebhookSubscription({
      tenantId,
      webhookSubscription: { url, ordering },
    });
    const id = webhookSubscription?.id ?? "";
    const [row] = await db.admin`
      SELECT subscription_key FROM nuncio.webhook_subscriptions WHERE subscription_uuid = ${parseSubscriptionId(id) ?? ""}`;
    return {
      tenantId,
      id,
      lane: row?.subscription_key as number,
      publish: (count: number, userId?: string) =>
        events.batchPublish({
          events: Array.from({ length: count }, (_, i) => ({
            tenantId,
            type: EventType.USER_CREATED,
            user: { id: userId ?? `u_${i}`, status: UserStatus.ACTIVE },
          })),
        }),
      pause: () => subscriptions.pauseWebhookSubscription({ tenantId, id }),
      resume: () => subscriptions.resumeWebhookSubscription({ tenantId, id }),
      remove: () => subscriptions.deleteWebhookSubscription({ tenantId, id }),
    };
  };

  /** Answers 200 to the first request, and holds every later one until it is let go. */
  const openHolding = async () => {
    const held: ServerResponse[] = [];
    let isHolding = false;
    const receiver = await openReceiver((_, response) => {
      if (isHolding) held.push(response);
      else response.end();
    });
    return {
      receiver,
      held,
      hold: () => {
        isHolding = true;
      },
      letGo: () => {
        isHolding = false;
        for (const response of held.splice(0)) response.end();
      },
    };
  };

  /** A receiver that has succeeded once, so that it may have all slots, and keeps every request from then on. */
  const withOneDelivered = async () => {
    const holding = await openHolding();
    const subscription = await subscribe(holding.receiver.url);
    await subscription.publish(1);
    await holding.receiver.until(() => holding.receiver.received.length === 1);
    holding.hold();
    const fill = async (count: number) => {
      await subscription.publish(count);
      await holding.receiver.until(() => holding.held.length === Math.min(count, 4));
    };
    return { ...holding, subscription, fill };
  };

  const answering = (status: number): Promise<Receiver> =>
    openReceiver((_, response) => response.writeHead(status).end());

  /** A connection that holds something until it is closed. */
  const holdOpen = async (statement: string, application = "somebody") => {
    const sql = postgres(db.url.reveal(), { max: 1, connection: { application_name: application } });
    cleanUp(() => sql.end({ timeout: 0 }));
    await sql.unsafe(`BEGIN ISOLATION LEVEL REPEATABLE READ; ${statement}`);
    return { end: () => sql.end({ timeout: 0 }) };
  };

  let early: Awaited<ReturnType<typeof subscribe>>;

  beforeAll(async () => {
    early = await subscribe((await answering(200)).url);
    await early.pause();
    await early.publish(10);
  });

  it("NuncioDeliveriesGivenUp, NuncioReceiversBroken", async () => {
    const subscription = await subscribe((await answering(500)).url);
    await fires("NuncioDeliveriesGivenUp", () => subscription.publish(1));
    await fires("NuncioReceiversBroken", () => subscription.publish(20));
    await subscription.remove();
  }, 120_000);

  it("NuncioSubscriptionDisabled", async () => {
    const subscription = await subscribe((await answering(410)).url);
    await fires("NuncioSubscriptionDisabled", () => subscription.publish(1));
  }, 90_000);

  it("NuncioSlotsFull, NuncioNothingIsSent", async () => {
    const { subscription, letGo, held, receiver, fill } = await withOneDelivered();
    await fires("NuncioSlotsFull", () => fill(30));
    await fires(
      "NuncioNothingIsSent",
      () => db.admin`
        UPDATE nuncio.outbox SET next_at = now() - interval '5 minutes'
        WHERE subscription_key = ${subscription.lane} AND lease_token IS NULL`,
    );
    letGo();
    await receiver.until(() => receiver.received.length === 31);
    expect(held).toEqual([]);
  }, 120_000);

  it("NuncioRecordsGoStale, NuncioLeasesLost", async () => {
    const { subscription, letGo, fill } = await withOneDelivered();
    await fill(4);
    await fires("NuncioLeasesLost", async () => {
      await db.admin`
        UPDATE nuncio.outbox SET lease_token = lease_token + 1, next_at = now(), lease_expires_at = now()
        WHERE subscription_key = ${subscription.lane}`;
      await fires("NuncioRecordsGoStale", async () => letGo());
    });
  }, 120_000);

  it("NuncioSlow", async () => {
    // It has waited since the first of these tests began.
    await fires("NuncioSlow", early.resume);
  }, 120_000);

  it("NuncioStranded", async () => {
    const subscription = await subscribe((await answering(200)).url, SubscriptionOrdering.PER_USER);
    await subscription.pause();
    await subscription.publish(2, "u_1");
    await fires(
      "NuncioStranded",
      () => db.admin`DELETE FROM nuncio.outbox WHERE subscription_key = ${subscription.lane} AND next_at < 'infinity'`,
    );
    await subscription.remove();
  }, 90_000);

  it("NuncioQuotaNear", async () => {
    const subscription = await subscribe((await answering(200)).url);
    await subscription.pause();
    await fires("NuncioQuotaNear", () => subscription.publish(95));
    await subscription.remove();
  }, 90_000);

  it("NuncioAttemptsUnrecorded", async () => {
    const receiver = await answering(200);
    const subscription = await subscribe(receiver.url);
    const lock = await holdOpen("LOCK TABLE nuncio.delivery_attempts IN ACCESS EXCLUSIVE MODE");
    await fires("NuncioAttemptsUnrecorded", () => subscription.publish(8));
    await lock.end();
  }, 90_000);

  it("NuncioWorkerStepsFail", async () => {
    const subscription = await subscribe((await answering(200)).url);
    await db.admin`REVOKE EXECUTE ON FUNCTION nuncio.claim_deliveries FROM nuncio_worker`;
    await fires("NuncioWorkerStepsFail", () => subscription.publish(1));
    await db.admin`GRANT EXECUTE ON FUNCTION nuncio.claim_deliveries TO nuncio_worker`;
  }, 90_000);

  it("NuncioPublishesQueue, NuncioCallsFail", async () => {
    let failing: NodeJS.Timeout | undefined;
    const subscription = await subscribe((await answering(200)).url);
    const lock = await holdOpen("LOCK TABLE nuncio.event_ids IN ACCESS EXCLUSIVE MODE");
    const publishes: Promise<unknown>[] = [];
    await fires("NuncioPublishesQueue", async () => {
      for (let i = 0; i < 20; i += 1) publishes.push(subscription.publish(90).catch(() => undefined));
    });
    await lock.end();
    await Promise.all(publishes);
    await fires("NuncioCallsFail", async () => {
      await db.admin`ALTER FUNCTION nuncio.append_events RENAME TO append_events_away`;
      failing = setInterval(() => {
        const user = { id: "u_1", status: UserStatus.ACTIVE };
        events
          .publish({ event: { tenantId: subscription.tenantId, type: EventType.USER_CREATED, user } })
          .catch(() => undefined);
      }, 200);
    });
    clearInterval(failing);
    await db.admin`ALTER FUNCTION nuncio.append_events_away RENAME TO append_events`;
  }, 120_000);

  it("NuncioLongTransaction, NuncioDeadRows, NuncioConnectionsBusy", async () => {
    let pin: Awaited<ReturnType<typeof holdOpen>> | undefined;
    await fires("NuncioConnectionsBusy", async () => {
      pin = await holdOpen("SELECT count(*) FROM nuncio.outbox", "nuncio_worker");
    });
    await expect.poll(() => isFiring("NuncioLongTransaction"), { timeout: 60_000 }).toBe(true);
    tested.add("NuncioLongTransaction");
    const { lane } = await subscribe("http://127.0.0.1:9009/");
    await fires("NuncioDeadRows", async () => {
      await db.admin`
        INSERT INTO nuncio.outbox (event_key, next_at, expires_at, tenant_key, subscription_key)
        SELECT gen_random_uuid(), now() + interval '1 day', now() + interval '1 day', 1, ${lane}::integer FROM generate_series(1, 12000)`;
      await db.admin`DELETE FROM nuncio.outbox WHERE subscription_key = ${lane}`;
    });
    await pin?.end();
  }, 120_000);

  it("NuncioNoWorker", async () => {
    await fires("NuncioNoWorker", async () => {
      worker.child.kill("SIGTERM");
      await worker.ended;
    });
  }, 120_000);

  it("no alert was left out", () => {
    expect([...tested].toSorted()).toEqual(NAMES.toSorted());
  });
});

describe("the alerting rules", () => {
  it("stand in docs/operating.md, each with its first three steps", async () => {
    const page = await readFile(new URL("../../docs/operating.md", import.meta.url), "utf8");
    const rows = [...page.matchAll(/^\| \*\*(Nuncio\w+)\*\* +\|(.+)\|$/gm)];
    expect(rows.map(([, name]) => name)).toEqual(NAMES);
    for (const [, name, steps = ""] of rows)
      expect(
        steps.split(/(?<!\\)\|/).filter((step) => step.trim()),
        name,
      ).toHaveLength(3);
  });
});

function transportTo(baseUrl: string) {
  const bearer: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${OPERATOR_KEY}`);
    return next(request);
  };
  return createConnectTransport({ baseUrl, httpVersion: "2", interceptors: [bearer] });
}

function eventsClient(baseUrl: string) {
  return createClient(EventService, transportTo(baseUrl));
}

function subscriptionsClient(baseUrl: string) {
  return createClient(WebhookSubscriptionService, transportTo(baseUrl));
}
