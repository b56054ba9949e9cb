/** The code, broken in one place. */
export type Mutant = {
  /** What it does wrong, as whoever runs it would say. */
  readonly name: string;
  readonly file: string;
  /** Stands once in the file. */
  readonly from: string;
  readonly to: string;
  /** Where it ought to be noticed. */
  readonly tests: readonly string[];
};

const ORDER_SQL = "drizzle/0007_order_and_endings.sql";
const PROMOTE_SQL = "drizzle/0011_bounded_promotion.sql";
/** Record as it is now, and the index of what is due. */
const HOT_SQL = "drizzle/0014_plans_that_hold.sql";
const APPEND_SQL = "drizzle/0018_order_floors.sql";
/** Claim and looks as they are now. */
const CLAIM_SQL = "drizzle/0017_leases_stay_in_place.sql";

/** Every guarantee that a careless change could take away without anybody seeing it. `npm run mutants` tries each. */
export const MUTANTS: readonly Mutant[] = [
  {
    name: "a record that asks for no token",
    file: HOT_SQL,
    from: "AND q.event_key = a.event_key AND q.lease_token = a.lease_token",
    to: "AND q.event_key = a.event_key",
    tests: ["test/store/outbox.test.ts"],
  },
  {
    name: "a delivery that counts as delivered once its request is written",
    file: "src/delivery/send.ts",
    from: `else this.#enter("first_byte");`,
    to: `else this.#finish({ kind: "delivered", httpStatus: 200 });`,
    tests: ["test/delivery/loop.test.ts"],
  },
  {
    name: "a request that begins on a lease too short for it",
    file: "src/core/delivery.ts",
    from: "const room = leaseRemainingMs - LEASE_MARGIN_MS;",
    to: "const room = leaseRemainingMs + requestTimeoutMs;",
    tests: ["test/delivery/loop.test.ts"],
  },
  {
    name: "a worker that relies on NOTIFY",
    file: "src/delivery/lane-keeper.ts",
    from: "else this.lanes.sight(sighting, nowMs(), { isPartial: !isWhole });\n        }\n        lanes += seen.length;",
    to: "}\n        lanes += seen.length;",
    tests: ["test/delivery/loop.test.ts"],
  },
  {
    name: "a record that promotes without the users' locks",
    file: HOT_SQL,
    from: `  failed_keys bigint[];
BEGIN
  PERFORM nuncio.lock_users(user_keys);
`,
    to: `  failed_keys bigint[];
BEGIN
`,
    tests: ["test/store/interleavings.test.ts"],
  },
  {
    name: "a publish that appends without the users' locks",
    file: APPEND_SQL,
    from: `  );
  PERFORM nuncio.lock_users(user_keys);
`,
    to: `  );
`,
    tests: ["test/store/interleavings.test.ts"],
  },
  {
    name: "users' locks in any order",
    file: ORDER_SQL,
    from: `(SELECT DISTINCT (u.user_key & 8191)::integer AS stripe FROM unnest(user_keys) AS u (user_key)
    WHERE u.user_key IS NOT NULL ORDER BY 1)`,
    to: `(SELECT (u.user_key & 8191)::integer AS stripe FROM unnest(user_keys) AS u (user_key)
    WHERE u.user_key IS NOT NULL ORDER BY random())`,
    tests: ["test/store/interleavings.test.ts"],
  },
  {
    name: "a commit that does not wait for the disk",
    file: "src/store/database.ts",
    from: "nuncio_server: true,",
    to: "nuncio_server: false,",
    tests: ["test/store/outbox.test.ts"],
  },
  {
    name: "an end without a dead letter",
    file: HOT_SQL,
    from: "FROM held h WHERE h.end_reason IS NOT NULL",
    to: "FROM held h WHERE false",
    tests: ["test/store/outbox.test.ts"],
  },
  {
    name: "a drain that forgets what is not written yet",
    file: "src/delivery/loop.ts",
    from: "    await this.#recorder.flush();\n",
    to: "",
    tests: ["test/delivery/loop.test.ts"],
  },
  {
    name: "an id that is unique over all tenants",
    file: "drizzle/0000_create_nuncio.sql",
    from: `CONSTRAINT "event_ids_tenant_key_event_id_pk" PRIMARY KEY("tenant_key","event_id")`,
    to: `CONSTRAINT "event_ids_tenant_key_event_id_pk" PRIMARY KEY("event_id")`,
    tests: ["test/store/outbox.test.ts"],
  },
  {
    name: "a row that may kill workers for ever",
    file: "src/core/delivery.ts",
    from: "export const LOST_CLAIMS_ENDED = 10;",
    to: "export const LOST_CLAIMS_ENDED = 10_000;",
    tests: ["test/store/outbox.test.ts"],
  },
  {
    name: "a follower that is due at once",
    file: APPEND_SQL,
    from: "m.order_key IS NOT NULL AND (m.is_behind OR earlier.found IS NOT NULL) AS waits",
    to: "m.order_key IS NOT NULL AND m.is_behind AS waits",
    tests: ["test/store/order.test.ts"],
  },
  {
    name: "an end after which nobody goes on",
    file: "src/store/outbox/end.ts",
    from: "...(await promoteFollowers(tx, candidates))",
    to: "...(await promoteFollowers(tx, []))",
    tests: ["test/store/order.test.ts"],
  },
  {
    name: "who leaves ends what was never tried",
    file: ORDER_SQL,
    from: "WHERE q.failures > 0 AND (q.lease_token IS NULL OR q.lease_expires_at <= now())",
    to: "WHERE (q.lease_token IS NULL OR q.lease_expires_at <= now())",
    tests: ["test/store/order.test.ts"],
  },
  {
    name: "an order hold that runs on while a subscription is paused",
    file: "src/store/outbox/end.ts",
    from: "AND behind.user_sequence > q.user_sequence AND l.stopped_since IS NULL",
    to: "AND behind.user_sequence > q.user_sequence",
    tests: ["test/store/order.test.ts"],
  },
  {
    name: "a worker that claims from everybody's lanes",
    file: "src/delivery/lanes.ts",
    from: "ownerOf(lane.key, this.#workers) === this.#options.worker",
    to: "ownerOf(lane.key, this.#workers) !== undefined",
    tests: ["test/delivery/simulation.test.ts"],
  },
  {
    name: "a breaker that never opens",
    file: "src/core/breaker.ts",
    from: "const opens = isProbe || (breaker.openUntilMs === undefined && isFailing);",
    to: "const opens = isProbe && isFailing && false;",
    tests: ["test/delivery/simulation.test.ts"],
  },
  {
    name: "a breaker that a single poison event opens",
    file: "src/core/breaker.ts",
    from: "failedEvents.length >= EVENTS_TO_OPEN;",
    to: "true;",
    tests: ["test/core/lane-rules.test.ts"],
  },
  {
    name: "unproven receivers that may have every slot",
    file: "src/core/fair-shares.ts",
    from: "const UNPROVEN_PART = 0.25;",
    to: "const UNPROVEN_PART = 1;",
    tests: ["test/delivery/simulation.test.ts"],
  },
  {
    name: "a rate limit that nobody asks",
    file: "src/delivery/lane.ts",
    from: "if (this.#limit) room = Math.min(room, Math.floor(refill(this.#limit, nowMs).tokens));",
    to: "",
    tests: ["test/delivery/simulation.test.ts"],
  },
  {
    name: "a new owner that forgets what the one before has on its way",
    file: "src/delivery/lane.ts",
    from: "if (mustCount) this.#foreign = undefined;",
    to: "",
    tests: ["test/delivery/lanes.test.ts"],
  },
  {
    name: "a 410 that disables whatever else succeeds",
    file: "drizzle/0008_lane_control.sql",
    from: "AND l.last_success_at > now() - unless_success_ms * interval '1 millisecond');\n  IF NOT FOUND",
    to: "AND false);\n  IF NOT FOUND",
    tests: ["test/store/lane-states.test.ts"],
  },
  {
    name: "a claim that passes over what a look has found meanwhile",
    file: "src/delivery/lane.ts",
    from: "Math.min(found.dueAtMs - MARGIN_MS, this.#foundMs)",
    to: "found.dueAtMs - MARGIN_MS",
    tests: ["test/delivery/lanes.test.ts"],
  },
  {
    name: "a promotion that begins behind the row that waits",
    file: PROMOTE_SQL,
    from: "AND q.user_sequence >= u.from_sequence",
    to: "AND q.user_sequence > u.from_sequence + 1000",
    tests: ["test/store/order.test.ts"],
  },
  {
    name: "a limit that holds for later claims only",
    file: "src/delivery/loop.ts",
    from: "else if (!isAlone && this.#lanes.isOverLimit(delivery.subscriptionKey, this.#deps.nowMs()))",
    to: "else if (false)",
    tests: ["test/delivery/limits.test.ts"],
  },
  {
    name: "a replaced secret that signs for as long as its worker remembers it",
    file: "src/delivery/targets.ts",
    from: "endsAtMs === undefined || databaseTimeMs < endsAtMs",
    to: "true",
    tests: ["test/rpc/manage-subscriptions.test.ts"],
  },
  {
    name: "a bulk redrive that brings an old state after a new one",
    file: "drizzle/0012_redrive.sql",
    from: "coalesce(n.user_sequence > c.user_sequence, false) AS is_overtaken",
    to: "false AS is_overtaken",
    tests: ["test/rpc/redrive.test.ts"],
  },
  {
    name: "an erasure that forgets what is being sent",
    file: "drizzle/0013_erasure.sql",
    from: "AND q.event_key = ANY (keys) AND q.lease_expires_at > now();\n  left_behind",
    to: "AND false;\n  left_behind",
    tests: ["test/rpc/erase-user.test.ts"],
  },
  {
    name: "an erased id that may be published anew",
    file: "drizzle/0013_erasure.sql",
    from: "UPDATE nuncio.event_ids i SET content_hash = NULL",
    to: "UPDATE nuncio.event_ids i SET content_hash = i.content_hash",
    tests: ["test/rpc/erase-user.test.ts"],
  },
  {
    name: "an update that reaches into another tenant",
    file: "src/store/subscription-rows.ts",
    from: "      eq(tenants.tenantId, tenantId),\n      eq(webhookSubscriptions.subscriptionUuid, subscriptionUuid),",
    to: "      eq(webhookSubscriptions.subscriptionUuid, subscriptionUuid),",
    tests: ["test/rpc/authorization.test.ts"],
  },
  {
    name: "an append that takes what another lane has of the user for its own",
    file: APPEND_SQL,
    from: "AND (q.user_key, q.subscription_key) <= (m.order_key, m.subscription_key) LIMIT 1",
    to: "AND q.user_key <= m.order_key LIMIT 1",
    tests: ["test/store/order.test.ts"],
  },
  {
    name: "a claim that takes what is leased",
    file: CLAIM_SQL,
    from: `AND q.next_at < 'infinity' AND (q.lease_expires_at IS NULL OR q.lease_expires_at <= now())
        AND q.lost_claims`,
    to: `AND q.next_at < 'infinity'
        AND q.lost_claims`,
    tests: ["test/store/outbox.test.ts"],
  },
  {
    name: "a claim that touches an index",
    file: CLAIM_SQL,
    from: "SET lease_expires_at = now() + lease_ms",
    to: "SET next_at = q.next_at + interval '1 microsecond', lease_expires_at = now() + lease_ms",
    tests: ["test/store/outbox.test.ts"],
  },
  {
    name: "a worker that never looks for what another's leases leave",
    file: "src/delivery/lane.ts",
    from: "nowMs < this.#foreign.untilMs) return false;\n    this.#foreign = { count: 0, untilMs: 0 };\n    return true;",
    to: "nowMs < this.#foreign.untilMs) return false;\n    this.#foreign = { count: 0, untilMs: 0 };\n    return false;",
    tests: ["test/delivery/lanes.test.ts"],
  },
  {
    name: "a floor over what is being appended",
    file: "src/store/outbox/order-floor.ts",
    from: "if (row === undefined || row.still > 0) return false;",
    to: "if (row === undefined) return false;",
    tests: ["test/store/order-floor.test.ts"],
  },
  {
    name: "a floor from a note that the database has lost",
    file: "src/store/outbox/order-floor.ts",
    from: `UPDATE nuncio.order_floors f SET lanes_behind = found.lanes FROM found
        WHERE f.user_sequence = \${sequence}::bigint AND f.lanes_behind IS NULL
        RETURNING f.user_sequence`,
    to: `INSERT INTO nuncio.order_floors AS f (user_sequence, lanes_behind)
        SELECT \${sequence}::bigint, found.lanes FROM found
        ON CONFLICT (user_sequence) DO UPDATE SET lanes_behind = excluded.lanes_behind
        RETURNING f.user_sequence`,
    tests: ["test/store/order-floor.test.ts"],
  },
  {
    name: "a floor that forgets who is behind",
    file: APPEND_SQL,
    from: "CASE WHEN floor IS NULL OR m.subscription_key = ANY (behind) THEN 0 ELSE floor END",
    to: "coalesce(floor, 0)",
    tests: ["test/store/order-floor.test.ts"],
  },
  {
    name: "an append that knows no floor",
    file: APPEND_SQL,
    from: "CASE WHEN floor IS NULL OR m.subscription_key = ANY (behind) THEN 0 ELSE floor END",
    to: "0",
    tests: ["test/store/order-floor.test.ts"],
  },
  {
    name: "a hot statement that any index may serve",
    file: HOT_SQL,
    from: `CREATE INDEX "outbox_due" ON "nuncio"."outbox" USING btree ("subscription_key","next_at") WHERE "nuncio"."outbox"."next_at" < 'infinity';`,
    to: `CREATE INDEX "outbox_due" ON "nuncio"."outbox" USING btree ("subscription_key");`,
    tests: ["test/store/plans.test.ts"],
  },
  {
    name: "a readiness that does not see that nothing is recorded",
    file: "src/delivery/loop.ts",
    from: "if (this.#recorder.standsStillMs > STALL_MS)",
    to: "if (false)",
    tests: ["test/delivery/readiness.test.ts"],
  },
  {
    name: "a server whose commits all fail and that calls itself ready",
    file: "src/store/outbox/group-commit.ts",
    from: "      this.#failedAtMs = this.#options.nowMs();\n",
    to: "      this.#stuckSinceMs = undefined;\n",
    tests: ["test/delivery/readiness.test.ts"],
  },
  {
    name: "a check of a signature that forgets the time",
    file: "src/core/verification.ts",
    from: "if (untimely === undefined) return match;",
    to: "if (untimely === undefined || match.fault === undefined) return match;",
    tests: ["test/core/verification.test.ts"],
  },
  {
    name: "a page before that begins in the wrong place",
    file: "src/rpc/list-deliveries.ts",
    from: "found.slice(-limit)",
    to: "found.slice(0, limit)",
    tests: ["test/rpc/deliveries.test.ts"],
  },
  {
    name: "a trace that ends at the server",
    file: "src/rpc/interceptors/trace-calls.ts",
    from: `    if (span.traceparent !== undefined) request.header.set("traceparent", span.traceparent);\n`,
    to: "",
    tests: ["test/e2e/traces.test.ts"],
  },
  {
    name: "a terminal that obeys what others have written",
    file: "src/cli/output.ts",
    from: `.replace(DECEIVING, "\\uFFFD")`,
    to: "",
    tests: ["test/cli/commands.test.ts"],
  },
  {
    name: "a claim that passes by what took long to commit, though it was announced",
    file: "src/delivery/lane.ts",
    from: "    this.#goBackTo(sinceMs);\n",
    to: "    this.#goBackTo(Math.max(sinceMs, this.#claimedMs - UNDATED_MS));\n",
    tests: ["test/delivery/loop.test.ts"],
  },
  {
    name: "a lane that is taken over where it was first seen",
    file: "src/delivery/lane.ts",
    from: `      this.#sinceMs = Number.NEGATIVE_INFINITY;
      this.#claimedMs = Number.POSITIVE_INFINITY;
`,
    to: "",
    tests: ["test/delivery/lanes.test.ts"],
  },
  {
    name: "a promotion in a lane of another worker that nobody hears of",
    file: "src/delivery/loop.ts",
    from: "    this.#deps.wakeUp.announce(ofOthers, sinceMs);\n",
    to: "",
    tests: ["test/delivery/lane-keeper.test.ts"],
  },
  {
    name: "a listener that does not say what it may have missed",
    file: "src/delivery/listen.ts",
    from: "    // Whenever we come here again.\n    mayHaveMissed = true;\n",
    to: "",
    tests: ["test/delivery/listen.test.ts"],
  },
];
