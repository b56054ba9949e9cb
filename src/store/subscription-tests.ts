import { eq, sql } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import type { Sql } from "postgres";
import { fromOutcomeCode, type Outcome, type PhaseDurations, toOutcomeCode } from "../core/attempt.ts";
import { ResourceExhaustedError } from "../core/errors.ts";
import type { Uuid } from "../core/ids.ts";
import { type DeliveryAttempt, toPhases } from "./deliveries.ts";
import { toStorableText, toWholeMs } from "./outbox/record.ts";
import { subscriptionTests } from "./schema.ts";
import { findRow } from "./subscription-rows.ts";

// A test travels as a row: the server asks by inserting it, a worker takes it and answers in it, the server reads the answer
// and deletes it. Nothing of it is kept.

/** Told to the workers when a test was asked for; a hint, since they look by themselves once in a while. */
export const TEST_CHANNEL = "nuncio_test";

/** A server waits no longer for an answer; nor does a worker take a test that is older. */
export const LONGEST_TEST_MS = 20_000;

/** Asks for a test. Of one subscription only one is on its way at a time; one whose server died ends by its age. */
export async function requestTest(
  orm: PostgresJsDatabase,
  tenantId: string,
  subscriptionUuid: Uuid,
  testUuid: Uuid,
): Promise<void> {
  const { subscriptionKey, tenantKey } = (await findRow(orm, tenantId, subscriptionUuid)).subscription;
  const none = { takenAt: null, startedAt: null };
  const made = await orm
    .insert(subscriptionTests)
    .values({ subscriptionKey, tenantKey, testUuid })
    .onConflictDoUpdate({
      target: subscriptionTests.subscriptionKey,
      set: { testUuid, requestedAt: sql`now()`, ...none },
      setWhere: sql`${subscriptionTests.requestedAt} < now() - ${LONGEST_TEST_MS} * interval '1 millisecond'`,
    })
    .returning({ testUuid: subscriptionTests.testUuid });
  if (made.length === 0) {
    const message = "another test of the subscription is on its way";
    throw new ResourceExhaustedError("TEST_UNDER_WAY", message, { retryAfterMs: LONGEST_TEST_MS });
  }
  await orm.execute(sql`SELECT pg_notify(${TEST_CHANNEL}, '')`);
}

/** The worker's answer once it is there. */
export async function findTestAnswer(orm: PostgresJsDatabase, testUuid: Uuid): Promise<DeliveryAttempt | undefined> {
  const [row] = await orm.select().from(subscriptionTests).where(eq(subscriptionTests.testUuid, testUuid));
  if (!row || row.startedAt === null || row.outcome === null) return undefined;
  return {
    number: 1,
    startedAtMs: row.startedAt.getTime(),
    durationMs: row.durationMs ?? 0,
    phases: toPhases({ dns: row.dnsMs, connect: row.connectMs, first_byte: row.firstByteMs, body: row.bodyMs }),
    outcome: fromOutcomeCode(row.outcome),
    httpStatus: row.httpStatus ?? undefined,
    errorDetail: row.errorDetail ?? "",
    responseExcerpt: row.responseExcerpt ?? "",
    stale: false,
  };
}

export async function removeTest(orm: PostgresJsDatabase, testUuid: Uuid): Promise<void> {
  await orm.delete(subscriptionTests).where(eq(subscriptionTests.testUuid, testUuid));
}

/** A test that is this worker's to make. Both times by the database's clock, in milliseconds since 1970. */
export type TakenTest = {
  readonly subscriptionKey: number;
  readonly testUuid: Uuid;
  readonly takenAtMs: number;
  /** How long its server goes on waiting. */
  readonly remainingMs: number;
};

/** Takes up to `limit` tests over, those of tenants with fewest on their way first; those of servers that wait no longer are removed. */
export async function takeTests(sql: Sql, limit: number): Promise<TakenTest[]> {
  const rows = await sql<{ subscription_key: number; test_uuid: Uuid; taken_ms: number; remaining_ms: number }[]>`
    WITH outlived AS (
      DELETE FROM nuncio.subscription_tests WHERE requested_at < now() - ${LONGEST_TEST_MS * 2} * interval '1 millisecond'
    ), untaken AS (
      SELECT t.subscription_key FROM nuncio.subscription_tests t
      WHERE t.taken_at IS NULL AND t.requested_at >= now() - ${LONGEST_TEST_MS} * interval '1 millisecond'
      -- Who has fewest on their way comes first: many tests of one tenant keep nobody else's waiting.
      ORDER BY (SELECT count(*) FROM nuncio.subscription_tests o WHERE o.tenant_key = t.tenant_key AND o.taken_at IS NOT NULL),
        t.requested_at
      LIMIT ${limit} FOR UPDATE SKIP LOCKED
    )
    UPDATE nuncio.subscription_tests t SET taken_at = now() FROM untaken u WHERE t.subscription_key = u.subscription_key
    RETURNING t.subscription_key, t.test_uuid, extract(epoch FROM now())::float8 * 1000 AS taken_ms,
      ${LONGEST_TEST_MS} - extract(epoch FROM now() - t.requested_at)::float8 * 1000 AS remaining_ms`;
  return rows.map((row) => ({
    subscriptionKey: row.subscription_key,
    testUuid: row.test_uuid,
    takenAtMs: row.taken_ms,
    remainingMs: row.remaining_ms,
  }));
}

/** What a test met. */
export type TestAnswer = {
  readonly startedAtMs: number;
  readonly durationMs: number;
  readonly phases: PhaseDurations;
  readonly outcome: Outcome;
};

export async function answerTest(sql: Sql, testUuid: Uuid, answer: TestAnswer): Promise<void> {
  const { startedAtMs, durationMs, phases, outcome } = answer;
  const whole = (ms: number | undefined) => toWholeMs(ms) ?? null;
  await sql`
    UPDATE nuncio.subscription_tests SET
      started_at = to_timestamp(${startedAtMs}::float8 / 1000), duration_ms = ${Math.round(durationMs)},
      outcome = ${toOutcomeCode(outcome.kind)}, http_status = ${outcome.httpStatus ?? null},
      dns_ms = ${whole(phases.dns)}, connect_ms = ${whole(phases.connect)},
      first_byte_ms = ${whole(phases.first_byte)}, body_ms = ${whole(phases.body)},
      error_detail = ${"detail" in outcome ? outcome.detail : null},
      response_excerpt = ${"excerpt" in outcome ? toStorableText(outcome.excerpt) : null}
    WHERE test_uuid = ${testUuid}`;
}
