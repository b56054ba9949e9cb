CREATE TABLE "nuncio"."workers" (
	"worker_uuid" uuid PRIMARY KEY NOT NULL,
	"heartbeat_at" timestamp with time zone NOT NULL
);
--> statement-breakpoint
ALTER TABLE "nuncio"."webhook_subscriptions" ADD COLUMN "max_in_flight" integer;--> statement-breakpoint
ALTER TABLE "nuncio"."webhook_subscriptions" ADD COLUMN "requests_per_second" integer;--> statement-breakpoint
-- Counts something that happened to a subscription, in the row of its hour.
CREATE FUNCTION nuncio.count_operational_event(lane integer, event_type smallint, why smallint) RETURNS void
LANGUAGE sql SET search_path = pg_catalog SET timezone = 'UTC' AS $$
  INSERT INTO nuncio.operational_events AS e (
    operational_event_uuid, tenant_key, subscription_key, type, reason, hour, count, first_at, last_at)
  SELECT nuncio.uuid_v7(), s.tenant_key, s.subscription_key, event_type, why, date_trunc('hour', now()), 1, now(), now()
  FROM nuncio.webhook_subscriptions s WHERE s.subscription_key = lane
  ON CONFLICT (subscription_key, type, reason, hour) DO UPDATE
    SET count = e.count + 1, last_at = excluded.last_at
$$;
--> statement-breakpoint
-- Writes down what a worker has learned about lanes: how they are, until when they are held, whether their breaker is open.
-- Returns those that have known nothing but failure for `longest_failing_ms`.
--
-- Times are distances from now in milliseconds, since a worker's clock may be wrong. Where two workers report on one lane
-- while it changes hands, the later success and the longer hold win; for the rest the last word counts: hints, all of it.
-- What was learned before the subscription last changed is forgotten: a change is a new beginning.
CREATE FUNCTION nuncio.report_lanes(
  lanes integer[], revisions integer[], succeeded_ago_ms bigint[], failed_ago_ms bigint[], failures text[], consecutive_failures integer[],
  failing_for_ms bigint[], held_for_ms bigint[], breaker_for_ms bigint[], breaker_trips smallint[],
  recovering_for_ms bigint[], event_types smallint[], longest_failing_ms bigint
) RETURNS SETOF integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
#variable_conflict use_column
BEGIN
  INSERT INTO nuncio.lane_states AS l (
    subscription_key, tenant_key, stopped_since, held_until, breaker_until, breaker_trips, recovering_since,
    last_success_at, last_failure_at, last_failure, consecutive_failures, failing_since)
  SELECT s.subscription_key, s.tenant_key,
    CASE WHEN s.state <> 1 OR r.breaker_for_ms IS NOT NULL THEN now() END,
    now() + r.held_for_ms * interval '1 millisecond', now() + r.breaker_for_ms * interval '1 millisecond', r.breaker_trips,
    now() - r.recovering_for_ms * interval '1 millisecond', now() - r.succeeded_ago_ms * interval '1 millisecond',
    now() - r.failed_ago_ms * interval '1 millisecond', r.failure, r.consecutive_failures,
    now() - r.failing_for_ms * interval '1 millisecond'
  FROM unnest(lanes, revisions, succeeded_ago_ms, failed_ago_ms, failures, consecutive_failures, failing_for_ms, held_for_ms,
    breaker_for_ms, breaker_trips, recovering_for_ms)
    AS r (lane, revision, succeeded_ago_ms, failed_ago_ms, failure, consecutive_failures, failing_for_ms, held_for_ms,
      breaker_for_ms, breaker_trips, recovering_for_ms)
  JOIN nuncio.webhook_subscriptions s ON s.subscription_key = r.lane AND s.revision <= r.revision
  ORDER BY s.subscription_key
  -- Else a Resume that commits while this waits for its lane would be undone: the lock makes the revision judged anew.
  FOR SHARE OF s
  ON CONFLICT (subscription_key) DO UPDATE SET
    stopped_for = l.stopped_for
      + CASE WHEN excluded.stopped_since IS NULL THEN coalesce(now() - l.stopped_since, '0') ELSE '0' END,
    stopped_since = CASE WHEN excluded.stopped_since IS NOT NULL THEN coalesce(l.stopped_since, excluded.stopped_since) END,
    held_until = greatest(l.held_until, excluded.held_until),
    breaker_until = excluded.breaker_until, breaker_trips = excluded.breaker_trips,
    recovering_since = greatest(l.recovering_since, excluded.recovering_since),
    last_success_at = greatest(l.last_success_at, excluded.last_success_at),
    last_failure_at = greatest(l.last_failure_at, excluded.last_failure_at),
    last_failure = coalesce(excluded.last_failure, l.last_failure),
    consecutive_failures = excluded.consecutive_failures, failing_since = excluded.failing_since;

  PERFORM nuncio.count_operational_event(r.lane, r.event_type, 0::smallint)
  FROM (SELECT * FROM unnest(lanes, event_types) AS e (lane, event_type) WHERE e.event_type IS NOT NULL ORDER BY 1) AS r;

  RETURN QUERY
  SELECT l.subscription_key FROM nuncio.lane_states l
  WHERE l.subscription_key = ANY (lanes) AND l.consecutive_failures > 0
    AND l.failing_since <= now() - longest_failing_ms * interval '1 millisecond';
END
$$;
--> statement-breakpoint
-- Disables an enabled subscription, unless it has had a success within `unless_success_ms`. Once it returns, no claim commits
-- that has not seen it; what is pending is held.
CREATE FUNCTION nuncio.disable_subscription(lane integer, why smallint, why_text text, unless_success_ms bigint)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(7102, lane);
  UPDATE nuncio.webhook_subscriptions s
  SET state = 3, state_reason = why_text, revision = s.revision + 1, updated_at = now()
  WHERE s.subscription_key = lane AND s.state = 1 AND s.deleted_at IS NULL AND NOT EXISTS (
    SELECT FROM nuncio.lane_states l
    WHERE l.subscription_key = lane AND l.last_success_at > now() - unless_success_ms * interval '1 millisecond');
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  INSERT INTO nuncio.lane_states AS l (subscription_key, tenant_key, stopped_since)
  SELECT s.subscription_key, s.tenant_key, now() FROM nuncio.webhook_subscriptions s WHERE s.subscription_key = lane
  ON CONFLICT (subscription_key) DO UPDATE SET stopped_since = coalesce(l.stopped_since, now());
  PERFORM nuncio.count_operational_event(lane, 1::smallint, why);
  RETURN true;
END
$$;
--> statement-breakpoint
REVOKE ALL ON FUNCTION nuncio.count_operational_event, nuncio.report_lanes, nuncio.disable_subscription FROM PUBLIC;--> statement-breakpoint
GRANT EXECUTE ON FUNCTION nuncio.report_lanes, nuncio.disable_subscription TO nuncio_worker;--> statement-breakpoint
GRANT SELECT, INSERT, UPDATE, DELETE ON nuncio.workers TO nuncio_worker;
