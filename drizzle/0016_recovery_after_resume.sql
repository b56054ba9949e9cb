ALTER TABLE "nuncio"."lane_states" ADD COLUMN "recovery_due" boolean DEFAULT false NOT NULL;
--> statement-breakpoint
-- Writes down what workers have learned of lanes, unless the subscription has changed since, and returns those that have known
-- nothing but failure for too long. As before; and a subscription that was resumed after trouble is said to have recovered with its
-- first success.
CREATE OR REPLACE FUNCTION nuncio.report_lanes(
  lanes integer[], revisions integer[], succeeded_ago_ms bigint[], failed_ago_ms bigint[], failures text[], consecutive_failures integer[],
  failing_for_ms bigint[], held_for_ms bigint[], breaker_for_ms bigint[], breaker_trips smallint[],
  recovering_for_ms bigint[], event_types smallint[], longest_failing_ms bigint
) RETURNS SETOF integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
#variable_conflict use_column
DECLARE
  recovered integer[];
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

  -- Told once: by whoever learns of the first success after a Resume, unless that says so itself.
  WITH told AS (
    UPDATE nuncio.lane_states l SET recovery_due = false
    FROM unnest(lanes, revisions, succeeded_ago_ms, report_lanes.consecutive_failures)
      AS r (lane, revision, succeeded_ago_ms, consecutive_failures)
    JOIN nuncio.webhook_subscriptions s ON s.subscription_key = r.lane AND s.revision <= r.revision
    WHERE l.subscription_key = r.lane AND l.recovery_due AND r.consecutive_failures = 0
      AND now() - r.succeeded_ago_ms * interval '1 millisecond' >= l.recovering_since
    RETURNING l.subscription_key
  )
  SELECT array_agg(t.subscription_key) INTO recovered FROM told t;

  PERFORM nuncio.count_operational_event(r.lane, r.event_type, 0::smallint)
  FROM (
    SELECT * FROM unnest(lanes, event_types) AS e (lane, event_type) WHERE e.event_type IS NOT NULL
    UNION SELECT lane, 3::smallint FROM unnest(recovered) AS t (lane)
    ORDER BY 1, 2
  ) AS r;

  RETURN QUERY
  SELECT l.subscription_key FROM nuncio.lane_states l
  WHERE l.subscription_key = ANY (lanes) AND l.consecutive_failures > 0
    AND l.failing_since <= now() - longest_failing_ms * interval '1 millisecond';
END
$$;
