import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { HealthCheckResponse_ServingStatus as ServingStatus } from "../gen/grpc/health/v1/health_pb.ts";
import { type Delivery, DeliveryState } from "../gen/nuncio/v1/delivery_pb.ts";
import { ContentType, SubscriptionOrdering } from "../gen/nuncio/v1/webhook_subscription_pb.ts";
import { connectToNuncio, type Nuncio } from "../src/cli/client.ts";
import { exitWithParent } from "../src/supervisor.ts";
import { compare, matches, type Subscribed } from "./compare.ts";
import { type Gateway, openGateway } from "./gateway.ts";
import { FrontDoor, live } from "./lives.ts";
import { type Cast, Night } from "./night.ts";
import { startOwnNuncio } from "./own-nuncio.ts";
import { inventPeople } from "./people.ts";
import { type Inbox, openReceiver, type Receiver } from "./receiver.ts";
import { say, Ticker, toTable } from "./report.ts";
import { EVENT_TYPES, type UserEventType } from "./user-event.ts";

// A gateway whose people live their lives, a Nuncio that carries the events, a receiver with bad moments; one subscription is
// paused, one gets a new secret, one is dead and is repaired and redriven, one person is erased; and at the end a comparison
// of what was emitted with what was received. Exit 0: there is no difference.
//
//   NUNCIO_DEMO_ADDRESS, NUNCIO_DEMO_OPERATOR_KEY   a Nuncio that runs already and may call 127.0.0.1; else its own
//   NUNCIO_DEMO_PEOPLE                              how many people, default 60

const SEED = 20_261_123;
const PEOPLE_AT_ONCE = 8;
const OWN_READY_TIMEOUT_MS = 60_000;
const GIVEN_READY_TIMEOUT_MS = 10_000;
/** What waited while a subscription was paused or disabled comes due spread over a minute. */
const DELIVERED_TIMEOUT_MS = 120_000;
const POLL_MS = 200;
const PROGRESS_EVERY_MS = 3_000;
const PAGE_SIZE = 100;
const DIFFERENCES_SHOWN = 50;
const EXIT_INTERRUPTED = 130;

/** Ends something that the demo began. Called again it hurries. */
type CleanUp = () => Promise<void> | void;

type Plan = { tenant: string; name: string; eventTypes: readonly UserEventType[]; contentType: ContentType };

const PLANS: readonly Plan[] = [
  { tenant: "acme", name: "directory", eventTypes: [], contentType: ContentType.JSON },
  { tenant: "globex", name: "directory", eventTypes: [], contentType: ContentType.CLOUDEVENTS_JSON },
  { tenant: "initech", name: "directory", eventTypes: [], contentType: ContentType.JSON },
  {
    tenant: "initech",
    name: "access",
    eventTypes: ["user.deactivated", "user.reactivated", "user.deleted"],
    contentType: ContentType.JSON,
  },
];

const CONTENT_TYPES: Readonly<Record<number, string>> = {
  [ContentType.JSON]: "application/json",
  [ContentType.CLOUDEVENTS_JSON]: "application/cloudevents+json; charset=utf-8",
};

type Subscription = Plan & { readonly tenantId: string; readonly id: string; readonly inbox: Inbox };

type Patiently = (ask: () => Promise<boolean>) => Promise<boolean>;

/** Somebody no longer wants to watch. */
class Interruption extends Error {}

process.exitCode = await main();

async function main(): Promise<number> {
  const stop = new AbortController();
  const cleanUps: CleanUp[] = [];
  stopOnSignal(stop, cleanUps);
  try {
    return await demonstrate(stop, cleanUps);
  } catch (error) {
    if (stop.signal.aborted && stop.signal.reason instanceof Interruption) return EXIT_INTERRUPTED;
    const reason = stop.signal.aborted ? stop.signal.reason : error;
    process.stderr.write(`\n${(reason as Error).message}\n`);
    return 1;
  } finally {
    for (const cleanUp of cleanUps.toReversed()) await cleanUp();
  }
}

async function demonstrate(stop: AbortController, cleanUps: CleanUp[]): Promise<number> {
  const { signal } = stop;
  const count = readPeopleCount();
  const startedAt = performance.now();
  const nuncio = await findOrStartNuncio(stop, cleanUps);
  say(`Nuncio serves at ${nuncio.address} (${seconds(startedAt)})`);

  const ticker = new Ticker();
  const receiver = await openReceiver((arrival) => ticker.show(arrival));
  cleanUps.push(() => receiver.close());
  const gateway = await openGateway(nuncio.events);
  cleanUps.push(() => gateway.close());
  const subscriptions = await subscribe(nuncio, receiver, cleanUps);

  const livesFrom = performance.now();
  say(
    `${count} people sign up, change, leave and return at ${gateway.address}; about a third of all first attempts fail:`,
  );
  const night = new Night(nuncio, castOf(subscriptions));
  await liveAll(gateway, tenantIdsOf(subscriptions), count, night, signal);
  await night.end();
  ticker.summarise();
  say(`The lives are over (${seconds(livesFrom)}).`);
  const patiently = (ask: () => Promise<boolean>) => until(signal, DELIVERED_TIMEOUT_MS, ask);
  await patiently(async () => gateway.waiting() === 0);
  await night.repair(patiently);
  say("Waiting until everything is delivered; what waited for a resumed subscription comes due over a minute …");
  const delivered = await untilDelivered(nuncio, gateway, subscriptions, signal);
  say(`${delivered ? "Everything is delivered" : "Not everything is delivered"} (${seconds(livesFrom)})`);
  await eraseSomebody(gateway, night, patiently);
  return report(nuncio, gateway, subscriptions, signal);
}

/** Each has a tenant of its own, so that the others show what such a night is to everybody else. */
function castOf(subscriptions: readonly Subscription[]): Cast {
  const find = (tenant: string, name: string) => {
    const { inbox, tenantId, id } = subscriptions.find(
      (one) => one.tenant === tenant && one.name === name,
    ) as Subscription;
    return { name: `${tenant}/${name}`, inbox, tenantId, id };
  };
  return { paused: find("acme", "directory"), rotated: find("globex", "directory"), dead: find("initech", "access") };
}

/** The first who was deleted: the gateway has forgotten them, and asks Nuncio to do the same. */
async function eraseSomebody({ emissions }: Gateway, night: Night, patiently: Patiently): Promise<void> {
  const gone = emissions.find(({ event }) => event.type === "user.deleted")?.event;
  if (gone !== undefined) await night.erase(gone.tenantId, gone.user.id, patiently);
}

// The parts

async function findOrStartNuncio(stop: AbortController, cleanUps: CleanUp[]): Promise<Nuncio> {
  const { NUNCIO_DEMO_ADDRESS: address, NUNCIO_DEMO_OPERATOR_KEY: key } = process.env;
  if (address) {
    if (!key) throw new Error("NUNCIO_DEMO_OPERATOR_KEY is missing: a key of the Nuncio at NUNCIO_DEMO_ADDRESS");
    return connect(address, key, GIVEN_READY_TIMEOUT_MS, stop.signal, cleanUps);
  }
  say("Starting a Nuncio for this demo: Postgres, migrations, server, worker …");
  const own = await startOwnNuncio();
  cleanUps.push(() => {
    say("Stopping Nuncio …");
    return own.stop();
  });
  own.ended.catch((error) => stop.abort(error));
  return connect(own.address, own.operatorKey, OWN_READY_TIMEOUT_MS, stop.signal, cleanUps);
}

/** Resolves once it serves. */
async function connect(
  addressOrUrl: string,
  operatorKey: string,
  timeoutMs: number,
  signal: AbortSignal,
  cleanUps: CleanUp[],
): Promise<Nuncio> {
  const nuncio = connectToNuncio(addressOrUrl, operatorKey);
  cleanUps.push(() => nuncio.close());
  const { health, address } = nuncio;
  let lastFailure = "";
  const serving = await until(signal, timeoutMs, async () => {
    try {
      const { status } = await health.check({}, { signal, timeoutMs: 2_000 });
      lastFailure = nameOf(ServingStatus, status);
      return status === ServingStatus.SERVING;
    } catch (error) {
      // It is not there yet; what it is in the end is in the message below.
      lastFailure = (error as Error).message;
      return false;
    }
  });
  if (!serving) throw new Error(`The Nuncio at ${address} does not serve: ${lastFailure}`);
  return nuncio;
}

/** Tenants of this run alone, so that nothing is left over from another one. */
async function subscribe(nuncio: Nuncio, receiver: Receiver, cleanUps: CleanUp[]): Promise<Subscription[]> {
  const run = randomBytes(4).toString("hex");
  const subscriptions: Subscription[] = [];
  for (const plan of PLANS) {
    const name = `${plan.tenant}/${plan.name}`;
    const tenantId = `${plan.tenant}_demo_${run}`;
    const { webhookSubscription, signingSecret } = await nuncio.subscriptions.createWebhookSubscription({
      tenantId,
      webhookSubscription: {
        url: receiver.urlOf(name),
        description: "npm run demo",
        eventTypes: plan.eventTypes.map((type) => EVENT_TYPES[type]),
        contentType: plan.contentType,
        // The receiver goes by `usersequence` and needs no order. With PER_USER a deactivation would also end the
        // user's failed earlier deliveries (SUPERSEDED), and then not every event arrives, which is what we count.
        ordering: SubscriptionOrdering.NONE,
      },
      requestId: `${name.replace("/", ":")}:${run}`,
    });
    const id = webhookSubscription?.id ?? "";
    cleanUps.push(async () => {
      // A Nuncio that goes on running has no use for it; one that doesn't answer any more cannot be told.
      await nuncio.subscriptions
        .deleteWebhookSubscription({ tenantId, id }, { timeoutMs: 2_000 })
        .catch(() => undefined);
    });
    const types = plan.eventTypes.length === 0 ? "every event" : plan.eventTypes.join(", ");
    say(`  ${name.padEnd(18)}  gets ${types} as ${CONTENT_TYPES[plan.contentType]}`);
    subscriptions.push({ ...plan, tenantId, id, inbox: receiver.open(name, signingSecret) });
  }
  return subscriptions;
}

async function liveAll(
  gateway: Gateway,
  tenantIds: readonly string[],
  count: number,
  night: Night,
  signal: AbortSignal,
): Promise<void> {
  const people = inventPeople(count, SEED);
  const doors = tenantIds.map((tenantId) => new FrontDoor(gateway.address, tenantId, signal));
  const waiting = people.keys();
  let over = 0;
  const leadOneAfterTheOther = async () => {
    for (const i of waiting) {
      await live(doors[i % doors.length] as FrontDoor, i, people);
      over += 1;
      night.reached(over / count);
    }
  };
  await Promise.all(Array.from({ length: PEOPLE_AT_ONCE }, leadOneAfterTheOther));
}

/** False if there is still something on its way when the time is up. */
async function untilDelivered(
  nuncio: Nuncio,
  gateway: Gateway,
  subscriptions: readonly Subscription[],
  signal: AbortSignal,
): Promise<boolean> {
  let saidAt = performance.now();
  return until(signal, DELIVERED_TIMEOUT_MS, async () => {
    const unpublished = gateway.waiting();
    const unfinished = await countUnfinished(nuncio, subscriptions, signal);
    if (performance.now() - saidAt >= PROGRESS_EVERY_MS) {
      say(`  … ${unpublished} events to publish, at least ${unfinished} deliveries to make`);
      saidAt = performance.now();
    }
    return unpublished === 0 && unfinished === 0;
  });
}

/** Exact up to one page per tenant, which is enough to see it shrink. */
async function countUnfinished(
  { deliveries }: Nuncio,
  subscriptions: readonly Subscription[],
  signal: AbortSignal,
): Promise<number> {
  const states = [DeliveryState.PENDING, DeliveryState.DELIVERING];
  const pages = await Promise.all(
    tenantIdsOf(subscriptions).map((tenantId) =>
      deliveries.listDeliveries({ tenantId, states, pageSize: PAGE_SIZE }, { signal }),
    ),
  );
  return pages.reduce((sum, page) => sum + page.deliveries.length, 0);
}

/** Shows the figures and every difference; the exit code. */
async function report(
  nuncio: Nuncio,
  gateway: Gateway,
  subscriptions: readonly Subscription[],
  signal: AbortSignal,
): Promise<number> {
  const people = new Map(
    await Promise.all(
      tenantIdsOf(subscriptions).map(
        async (tenantId) => [tenantId, await new FrontDoor(gateway.address, tenantId, signal).everyone()] as const,
      ),
    ),
  );
  const subscribed = await Promise.all(
    subscriptions.map(async (subscription): Promise<Subscribed> => {
      const listed = await listAll(nuncio, subscription, signal);
      return {
        name: subscription.inbox.name,
        tenantId: subscription.tenantId,
        eventTypes: subscription.eventTypes,
        contentType: CONTENT_TYPES[subscription.contentType] ?? "",
        received: subscription.inbox.received,
        beliefs: subscription.inbox.beliefs,
        faults: subscription.inbox.faults,
        wasDisabled: subscription.id === castOf(subscriptions).dead.id,
        listed: listed.map(({ eventId, state }) => ({ eventId, state: nameOf(DeliveryState, state) })),
      };
    }),
  );
  const { emissions } = gateway;
  const rows = subscriptions.map((subscription) => ({
    tenant: subscription.tenant,
    subscription: subscription.name,
    emitted: emissions.filter(({ event }) => matches(subscription, event)).length,
    delivered: subscription.inbox.received.length,
    attempts: subscription.inbox.attempts,
    failedFirst: subscription.inbox.failedFirstAttempts,
    duplicates: subscription.inbox.duplicates,
  }));
  say(`\n${toTable(rows)}\n`);

  const differences = compare({ emissions, subscriptions: subscribed, people });
  if (differences.length === 0) {
    say(
      `No differences: each of ${emissions.length} events reached every matching subscription exactly once after ` +
        "de-duplication, unchanged, and every receiver knows what the gateway knows.",
    );
    return 0;
  }
  say(`${differences.length} differences:`);
  for (const difference of differences.slice(0, DIFFERENCES_SHOWN)) say(`  - ${difference}`);
  if (differences.length > DIFFERENCES_SHOWN) say(`  … and ${differences.length - DIFFERENCES_SHOWN} more`);
  return 1;
}

async function listAll({ deliveries }: Nuncio, subscription: Subscription, signal: AbortSignal): Promise<Delivery[]> {
  const all: Delivery[] = [];
  const { tenantId, id: subscriptionId } = subscription;
  let pageToken = "";
  do {
    const page = await deliveries.listDeliveries(
      { tenantId, subscriptionId, pageSize: PAGE_SIZE, pageToken },
      { signal },
    );
    all.push(...page.deliveries);
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  return all;
}

// The frame

/** The first Ctrl-C stops everything that the demo started; a second one makes it hurry. */
function stopOnSignal(stop: AbortController, cleanUps: readonly CleanUp[]): void {
  const interrupt = (why: string) => stop.abort(new Interruption(why));
  const onSignal = (name: string) => {
    if (!stop.signal.aborted) return interrupt(name);
    for (const cleanUp of cleanUps) void cleanUp();
  };
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(name, onSignal);
  exitWithParent(() => interrupt("the launcher is gone"));
  for (const output of [process.stdout, process.stderr]) output.on("error", () => interrupt("the terminal is gone"));
}

/** Asks until the answer is yes, or the time is up. */
async function until(signal: AbortSignal, timeoutMs: number, ask: () => Promise<boolean>): Promise<boolean> {
  const giveUpAt = performance.now() + timeoutMs;
  while (!(await ask())) {
    if (performance.now() > giveUpAt) return false;
    await delay(POLL_MS, undefined, { signal });
  }
  return true;
}

function tenantIdsOf(subscriptions: readonly Subscription[]): string[] {
  return [...new Set(subscriptions.map(({ tenantId }) => tenantId))];
}

function readPeopleCount(): number {
  const text = process.env.NUNCIO_DEMO_PEOPLE ?? "60";
  const count = Number(text);
  if (!Number.isInteger(count) || count < 1 || count > 10_000) {
    throw new Error(`NUNCIO_DEMO_PEOPLE is a whole number from 1 to 10000, not ${JSON.stringify(text)}`);
  }
  return count;
}

/** The generated enums know their numbers, not their names. */
function nameOf(members: Readonly<Record<string, number>>, value: number): string {
  return Object.keys(members).find((name) => members[name] === value) ?? String(value);
}

function seconds(since: number): string {
  return `${((performance.now() - since) / 1000).toFixed(1)} s`;
}
