import { type Bench, median, medianRatio, perSecond, type Row } from "../bench.ts";
import { drainOutbox, measureDrain } from "../drain.ts";
import { measureHistory } from "../history.ts";
import { fillOutbox } from "../nuncio.ts";
import type { BenchDatabase } from "../postgres.ts";
import { refusingUrl } from "./scale.ts";

const ONE = { subscriptions: 1, ordering: "PER_USER", maxInFlight: 256 } as const;
const STEP = 250_000;
/** Tenants of the rounds; the tenant before them has the backlog. */
const FIRST_TENANT = 1;

/** Deliveries beside all that was delivered before and a backlog for a dead receiver, against an empty database. */
export const backlog: Row = {
  name: "backlog",
  async measure(bench) {
    const { pending, finished, rounds } = bench.size;
    const full = await bench.postgres.createDatabase({ migrated: true });
    await fillOutbox(full, { ...ONE, deliveries: 1, url: await refusingUrl() });
    await repeatPending(bench, full, pending);
    await addFinished(bench, full, finished);
    await full.admin`VACUUM ANALYZE`;
    const history = await measureHistory(bench, full, FIRST_TENANT - 1);

    const rates = { empty: [] as number[], full: [] as number[] };
    for (let round = 1; round <= rounds; round++) {
      const empty = await drainOutbox(bench, ONE);
      rates.empty.push(empty.deliveriesPerSecond);
      rates.full.push(await rateIn(bench, full, FIRST_TENANT + round));
      const [a, b] = [rates.empty.at(-1) as number, rates.full.at(-1) as number];
      bench.progress(`backlog ${round}/${rounds}: empty ${perSecond(a)}, full ${perSecond(b)}`);
    }
    await full.drop();
    return [
      {
        what: `deliveries beside ${inMillions(finished)} finished and ${inMillions(pending)} pending for a dead receiver ÷ in an empty database`,
        value: medianRatio(rates.full, rates.empty),
        unit: "ratio",
        figures: `${perSecond(median(rates.full))} ÷ ${perSecond(median(rates.empty))}`,
        target: { floor: 0.85, goal: 0.95, better: "more" },
      },
      ...history,
    ];
  },
};

async function rateIn(bench: Bench, database: BenchDatabase, tenant: number): Promise<number> {
  const { deliveries } = bench.size;
  await fillOutbox(database, { ...ONE, deliveries, url: bench.receiver.url, firstTenant: tenant });
  const [row] = await database.admin<{ key: number }[]>`
    SELECT max(subscription_key) AS key FROM nuncio.webhook_subscriptions`;
  const { maxInFlight } = ONE;
  const drain = await measureDrain(bench, database, { maxInFlight, rows: `subscription_key = ${row?.key}` });
  return drain.deliveriesPerSecond;
}

/** The one delivery of the dead receiver again and again, each of a user of its own. */
async function repeatPending({ progress }: Bench, { admin }: BenchDatabase, count: number): Promise<void> {
  for (let done = 0; done < count; done += STEP) {
    await admin`
      WITH sample AS (
        SELECT e.*, o.subscription_key, o.expires_at, o.event_type AS type FROM nuncio.outbox o
        JOIN nuncio.events e USING (tenant_key, event_key) ORDER BY o.user_sequence LIMIT 1
      ), added AS (
        INSERT INTO nuncio.events (event_key, tenant_key, event_type, user_sequence, event_id, user_id, body)
        SELECT nuncio.uuid_v7(), tenant_key, event_type, nextval('nuncio.user_sequence'), 'pending_' || n, 'p_' || n, body
        FROM sample, generate_series(${done + 1}::integer, ${Math.min(done + STEP, count)}::integer) AS n
        RETURNING event_key, tenant_key, event_id, event_type, user_id, user_sequence
      ), ids AS (
        INSERT INTO nuncio.event_ids (event_key, tenant_key, event_id) SELECT event_key, tenant_key, event_id FROM added
      )
      INSERT INTO nuncio.outbox (event_key, next_at, expires_at, tenant_key, subscription_key, user_key, user_sequence, event_type)
      SELECT a.event_key, now(), s.expires_at, a.tenant_key, s.subscription_key,
        nuncio.user_key('pending', a.user_id), a.user_sequence, a.event_type
      FROM added a CROSS JOIN sample s`;
    progress(`backlog: ${inMillions(Math.min(done + STEP, count))} pending`);
  }
}

/** What is left of a delivery that succeeded: its event, the id of that, and one attempt. */
async function addFinished({ progress }: Bench, { admin }: BenchDatabase, count: number): Promise<void> {
  for (let done = 0; done < count; done += STEP) {
    await admin`
      WITH sample AS (
        SELECT e.*, o.subscription_key FROM nuncio.outbox o
        JOIN nuncio.events e USING (tenant_key, event_key) ORDER BY o.user_sequence LIMIT 1
      ), added AS (
        INSERT INTO nuncio.events (event_key, tenant_key, event_type, user_sequence, event_id, user_id, body)
        SELECT nuncio.uuid_v7(), tenant_key, event_type, nextval('nuncio.user_sequence'), 'finished_' || n, 'f_' || n, body
        FROM sample, generate_series(${done + 1}::integer, ${Math.min(done + STEP, count)}::integer) AS n
        RETURNING event_key, tenant_key, event_id
      ), ids AS (
        INSERT INTO nuncio.event_ids (event_key, tenant_key, event_id) SELECT event_key, tenant_key, event_id FROM added
      )
      INSERT INTO nuncio.delivery_attempts (event_key, started_at, tenant_key, subscription_key, duration_ms, number, outcome,
        http_status, stale, dns_ms, connect_ms, first_byte_ms, body_ms)
      SELECT a.event_key, now(), a.tenant_key, s.subscription_key, 12, 1, 1, 200, false, 0, 0, 12, 0
      FROM added a CROSS JOIN sample s`;
    if (done % (STEP * 8) === 0) progress(`backlog: ${inMillions(Math.min(done + STEP, count))} finished`);
  }
}

function inMillions(count: number): string {
  return count >= 1_000_000 ? `${count / 1_000_000} million` : count.toLocaleString("en-US");
}
