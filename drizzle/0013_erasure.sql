CREATE TABLE "nuncio"."erasures" (
	"erasure_uuid" uuid PRIMARY KEY NOT NULL,
	"tenant_key" integer NOT NULL,
	"user_id" text NOT NULL,
	"state" smallint NOT NULL,
	"erased_count" bigint DEFAULT 0 NOT NULL,
	"cancelled_count" bigint DEFAULT 0 NOT NULL,
	"erase_before" timestamp with time zone DEFAULT now() NOT NULL,
	"scanned_key" uuid,
	"left_behind" boolean DEFAULT false NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"stepped_at" timestamp with time zone DEFAULT now() NOT NULL,
	"ended_at" timestamp with time zone
);
--> statement-breakpoint
CREATE UNIQUE INDEX "erasures_running" ON "nuncio"."erasures" USING btree ("tenant_key","user_id") WHERE "state" = 1;
--> statement-breakpoint
-- Empties events of one tenant's user down to the bodies that are given, in the caller's transaction, which holds the user's
-- lock. An event of which a delivery is being sent right now is left for a later call, since that request has the old bytes
-- and its answer may quote them: `left_behind` counts those. Whatever of it is pending elsewhere goes all the same.
--
-- Pending deliveries end as ERASED (6), but for user.deactivated and user.deleted (3, 5), which go on with the new body; what
-- waited behind them comes due. A redrive of what was delivered simply goes. The hash goes, so that the id stays taken
-- whatever is published under it; so do what receivers answered, in which they may have quoted what they got.
CREATE FUNCTION nuncio.erase_events(tenant integer, keys uuid[], bodies text[], OUT erased integer, OUT cancelled integer,
  OUT left_behind integer, OUT due_lanes integer[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  all_lanes integer[];
  leaving uuid[];
  busy uuid[];
  ended_lanes integer[];
  ended_users bigint[];
BEGIN
  due_lanes := '{}';
  SELECT coalesce(array_agg(s.subscription_key ORDER BY s.subscription_key), '{}') INTO all_lanes
  FROM nuncio.webhook_subscriptions s WHERE s.tenant_key = tenant;
  SELECT coalesce(array_agg(k.event_key), '{}') INTO leaving
  FROM unnest(keys) AS k (event_key)
  CROSS JOIN LATERAL (
    SELECT e.event_type FROM nuncio.events e WHERE e.tenant_key = tenant AND e.event_key = k.event_key LIMIT 1
  ) AS e
  WHERE e.event_type IN (3, 5);

  -- Locked in the order of the primary key, as everywhere.
  PERFORM FROM nuncio.outbox q
  WHERE q.subscription_key = ANY (all_lanes) AND q.event_key = ANY (keys)
  ORDER BY q.subscription_key, q.event_key FOR UPDATE;

  SELECT coalesce(array_agg(DISTINCT q.event_key), '{}') INTO busy
  FROM nuncio.outbox q
  WHERE q.subscription_key = ANY (all_lanes) AND q.event_key = ANY (keys) AND q.lease_expires_at > now();
  left_behind := cardinality(busy);

  WITH gone AS (
    DELETE FROM nuncio.outbox q
    WHERE q.subscription_key = ANY (all_lanes) AND q.event_key = ANY (keys) AND q.event_key <> ALL (leaving)
      AND (q.lease_expires_at IS NULL OR q.lease_expires_at <= now())
    RETURNING q.event_key, q.subscription_key, q.attempt, q.user_key, q.redrive
  ), buried AS (
    INSERT INTO nuncio.dead_letters (event_key, tenant_key, subscription_key, attempt, end_reason)
    SELECT g.event_key, tenant, g.subscription_key, g.attempt, 6 FROM gone g
    WHERE NOT (g.redrive AND EXISTS (SELECT FROM nuncio.delivery_attempts a
      WHERE a.subscription_key = g.subscription_key AND a.event_key = g.event_key AND a.outcome = 1 AND NOT a.stale))
    ORDER BY g.subscription_key, g.event_key
    ON CONFLICT (subscription_key, event_key) DO UPDATE
      SET ended_at = excluded.ended_at, attempt = excluded.attempt, end_reason = excluded.end_reason
  )
  SELECT count(*), array_agg(g.subscription_key) FILTER (WHERE g.user_key IS NOT NULL),
    array_agg(g.user_key) FILTER (WHERE g.user_key IS NOT NULL)
  INTO cancelled, ended_lanes, ended_users FROM gone g;
  IF ended_lanes IS NOT NULL THEN
    due_lanes := ARRAY(SELECT nuncio.promote_followers(ended_lanes, ended_users));
  END IF;

  WITH emptied AS (
    UPDATE nuncio.events e SET body = n.body, traceparent = NULL, erased = true
    FROM unnest(keys, bodies) AS n (event_key, body)
    WHERE e.tenant_key = tenant AND e.event_key = n.event_key AND n.event_key <> ALL (busy)
    RETURNING e.event_id
  ), unhashed AS (
    UPDATE nuncio.event_ids i SET content_hash = NULL FROM emptied e WHERE i.tenant_key = tenant AND i.event_id = e.event_id
  )
  SELECT count(*) INTO erased FROM emptied;

  UPDATE nuncio.delivery_attempts a SET response_excerpt = NULL
  WHERE a.subscription_key = ANY (all_lanes) AND a.event_key = ANY (keys) AND a.event_key <> ALL (busy)
    AND a.response_excerpt IS NOT NULL AND a.started_at < now() + interval '1 minute'
    AND a.started_at >= (SELECT min(nuncio.uuid_time(k.event_key)) - interval '1 minute' FROM unnest(keys) AS k (event_key));
END
$$;
--> statement-breakpoint
REVOKE ALL ON FUNCTION nuncio.erase_events FROM PUBLIC;--> statement-breakpoint
GRANT EXECUTE ON FUNCTION nuncio.erase_events, nuncio.user_key, nuncio.least_uuid_at TO nuncio_worker;--> statement-breakpoint
GRANT SELECT, INSERT, UPDATE (erase_before, scanned_key, left_behind) ON nuncio.erasures TO nuncio_server;--> statement-breakpoint
GRANT SELECT, UPDATE ON nuncio.erasures TO nuncio_worker;
