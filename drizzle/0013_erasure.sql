CREATE TABLE "nuncio"."erasures" (
	"erasure_uuid" uuid PRIMARY KEY NOT NULL,
	"tenant_key" integer NOT NULL,
	"user_id" text NOT NULL,
	"state" smallint NOT NULL,
	"erased_count" bigint DEFAULT 0 NOT NULL,
	"cancelled_count" bigint DEFAULT 0 NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"stepped_at" timestamp with time zone DEFAULT now() NOT NULL,
	"ended_at" timestamp with time zone
);
--> statement-breakpoint
CREATE UNIQUE INDEX "erasures_running" ON "nuncio"."erasures" USING btree ("tenant_key","user_id") WHERE "state" = 1;
--> statement-breakpoint
-- Empties events of one tenant's user down to the bodies that are given, in the caller's transaction, which holds the user's
-- lock. What is being sent right now is left for a later call, and so is its event: a request under way has the old bytes.
--
-- Pending deliveries end as ERASED (6), but for user.deactivated and user.deleted (3, 5), which go on with the new body; what
-- waited behind them comes due. The hash goes, so that the id stays taken whatever is published under it; so do what
-- receivers answered, in which they may have quoted what they got.
CREATE FUNCTION nuncio.erase_events(tenant integer, keys uuid[], bodies text[], OUT erased integer, OUT cancelled integer,
  OUT due_lanes integer[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  tenants_lanes integer[];
  busy uuid[];
  ended_lanes integer[];
  ended_users bigint[];
BEGIN
  due_lanes := '{}';
  SELECT coalesce(array_agg(s.subscription_key ORDER BY s.subscription_key), '{}') INTO tenants_lanes
  FROM nuncio.webhook_subscriptions s WHERE s.tenant_key = tenant;

  -- Locked in the order of the primary key, as everywhere.
  PERFORM FROM nuncio.outbox q
  WHERE q.subscription_key = ANY (tenants_lanes) AND q.event_key = ANY (keys)
  ORDER BY q.subscription_key, q.event_key FOR UPDATE;

  SELECT coalesce(array_agg(DISTINCT q.event_key), '{}') INTO busy
  FROM nuncio.outbox q
  JOIN nuncio.events e ON e.tenant_key = tenant AND e.event_key = q.event_key AND e.event_type NOT IN (3, 5)
  WHERE q.subscription_key = ANY (tenants_lanes) AND q.event_key = ANY (keys) AND q.lease_expires_at > now();

  WITH gone AS (
    DELETE FROM nuncio.outbox q USING nuncio.events e
    WHERE q.subscription_key = ANY (tenants_lanes) AND q.event_key = ANY (keys) AND q.event_key <> ALL (busy)
      AND e.tenant_key = tenant AND e.event_key = q.event_key AND e.event_type NOT IN (3, 5)
    RETURNING q.event_key, q.subscription_key, q.attempt, q.user_key
  ), buried AS (
    INSERT INTO nuncio.dead_letters (event_key, tenant_key, subscription_key, attempt, end_reason)
    SELECT g.event_key, tenant, g.subscription_key, g.attempt, 6 FROM gone g ORDER BY g.subscription_key, g.event_key
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
    WHERE e.tenant_key = tenant AND e.event_key = n.event_key AND e.event_key <> ALL (busy)
    RETURNING e.event_id
  ), unhashed AS (
    UPDATE nuncio.event_ids i SET content_hash = NULL FROM emptied e WHERE i.tenant_key = tenant AND i.event_id = e.event_id
  )
  SELECT count(*) INTO erased FROM emptied;

  UPDATE nuncio.delivery_attempts a SET response_excerpt = NULL
  WHERE a.subscription_key = ANY (tenants_lanes) AND a.event_key = ANY (keys) AND a.event_key <> ALL (busy)
    AND a.response_excerpt IS NOT NULL;
END
$$;
--> statement-breakpoint
REVOKE ALL ON FUNCTION nuncio.erase_events FROM PUBLIC;--> statement-breakpoint
GRANT EXECUTE ON FUNCTION nuncio.erase_events, nuncio.user_key, nuncio.least_uuid_at TO nuncio_worker;--> statement-breakpoint
GRANT SELECT, INSERT ON nuncio.erasures TO nuncio_server;--> statement-breakpoint
GRANT SELECT, UPDATE ON nuncio.erasures TO nuncio_worker;
