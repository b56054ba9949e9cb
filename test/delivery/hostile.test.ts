import { expect, it } from "vitest";
import type { OutcomeKind } from "../../src/core/attempt.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, toRow } from "../support/fixtures.ts";
import { HOSTILITIES, type Hostility, openHostile } from "../support/hostile-receiver.ts";
import { attemptsIn, startLoop } from "../support/loop.ts";
import { openReceiver } from "../support/receiver.ts";

const db = useDatabase();

const OUTCOMES: Record<Hostility, OutcomeKind> = {
  silent: "timeout",
  resetting: "connection_reset",
  hangingUp: "connection_reset",
  drippingBody: "http_status",
  drippingHeaders: "timeout",
  endless: "http_status",
  headerBomb: "protocol_error",
  notHttp: "protocol_error",
  breakingOff: "http_status",
  askingForSilence: "http_status",
};

const KINDS = Object.keys(HOSTILITIES) as Hostility[];
const EVENTS = 20;
/** Long enough for whatever ends by itself, also on a machine that is busy with other tests. */
const TIMEOUT_MS = 1_500;

async function publish(tenant: string, count: number): Promise<void> {
  const rows = Array.from({ length: count }, (_, i) =>
    toRow(draftEvent(tenant, { user: { id: `u_${i}`, status: "ACTIVE" } })),
  );
  await appendEvents(db.server.hot, rows, { maxPendingMs: 86_400_000 });
}

it("[B21] every kind of hostile receiver at once costs its neighbour nothing, and each is found out for what it is", async () => {
  const lanes = new Map<number, Hostility>();
  for (const kind of KINDS) {
    const tenant = newTenant();
    const { lane } = await addSubscription(db, tenant, { url: (await openHostile(kind)).url });
    lanes.set(lane, kind);
    await publish(tenant, EVENTS);
  }
  const tenant = newTenant();
  const healthy = await openReceiver();
  await addSubscription(db, tenant, { url: healthy.url });
  await publish(tenant, 200);

  const loop = startLoop(db, { requestTimeoutMs: TIMEOUT_MS, schedule: [3_600_000] });
  const kindsIn = (events: typeof loop.events) =>
    new Set(attemptsIn(events).flatMap(({ record }) => lanes.get(record.subscriptionKey) ?? []));
  await healthy.until(() => healthy.received.length === 200);
  await loop.until((events) => kindsIn(events as typeof loop.events).size === KINDS.length);
  await loop.stop();

  expect(new Set(healthy.received.map(({ headers }) => headers["webhook-id"])).size).toBe(200);
  for (const { record } of attemptsIn(loop.events)) {
    const kind = lanes.get(record.subscriptionKey);
    if (kind === undefined) continue;
    expect([kind, record.outcome.kind]).toEqual([kind, OUTCOMES[kind]]);
  }
});
