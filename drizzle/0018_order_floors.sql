-- What an append need not look through: see `raiseOrderFloor` in src/store/outbox/order-floor.ts and ADR 14.
CREATE TABLE "nuncio"."order_floors" (
	"user_sequence" bigint PRIMARY KEY NOT NULL,
	"lanes_behind" integer[]
);
--> statement-breakpoint
GRANT SELECT ON nuncio.order_floors TO nuncio_server;--> statement-breakpoint
GRANT SELECT, INSERT, UPDATE, DELETE ON nuncio.order_floors TO nuncio_worker;--> statement-breakpoint
GRANT SELECT ON SEQUENCE nuncio.user_sequence TO nuncio_worker;--> statement-breakpoint
-- Stores events with one outbox row per matching subscription, in the caller's transaction. Returns one row per event
-- that is new; an event that is missing from the answer has an id that its tenant has used before. `lanes` are those where
-- something may be due now.
--
-- It holds each user's lock until the commit: so the sequence of a user grows in the order of commits, and where a
-- subscription keeps the user's order, a row is due only if it is the first; every other waits behind it at infinity.
--
-- Every statement of a plpgsql function has its own snapshot: what is read after the locks is what was committed by then.
CREATE OR REPLACE FUNCTION nuncio.append_events(
  tenant_ids text[], event_ids text[], event_types smallint[], user_ids text[],
  content_hashes text[], -- SHA-256 in hex
  traceparents text[],
  body_tails text[], -- the body behind the sequence's digits
  max_pending_ms bigint
) RETURNS TABLE (ordinal integer, user_sequence bigint, deliveries integer, lanes integer[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
-- A plan that is made while the outbox is small is kept while it grows.
SET enable_bitmapscan = off SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
  clock bytea;
  user_keys bigint[];
  leaving_lanes integer[];
  leaving_keys bigint[];
  floor bigint;
  behind integer[];
BEGIN
  INSERT INTO nuncio.tenants (tenant_id)
  SELECT DISTINCT t.tenant_id FROM unnest(tenant_ids) AS t (tenant_id)
  WHERE NOT EXISTS (SELECT FROM nuncio.tenants k WHERE k.tenant_id = t.tenant_id)
  ORDER BY t.tenant_id
  ON CONFLICT DO NOTHING;

  user_keys := ARRAY(
    SELECT nuncio.user_key(u.tenant_id, u.user_id)
    FROM unnest(tenant_ids, user_ids) WITH ORDINALITY AS u (tenant_id, user_id, place) ORDER BY u.place
  );
  PERFORM nuncio.lock_users(user_keys);

  -- Up to here nothing is pending that keeps an order, but in the lanes behind.
  SELECT f.user_sequence, f.lanes_behind INTO floor, behind
  FROM nuncio.order_floors f WHERE f.lanes_behind IS NOT NULL ORDER BY f.user_sequence DESC LIMIT 1;

  -- The 48 bits that a UUIDv7 begins with, one reading for the whole group; its order inside follows from the ordinal.
  clock := substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3);

  RETURN QUERY
  WITH input AS MATERIALIZED (
    SELECT i.*, k.tenant_key,
      -- RFC 9562 UUIDv7: 48 bits of milliseconds, version 7, 12 bits of counter, and a random tail.
      encode(clock || int2send((28672 + i.ordinal % 4096)::smallint)
        || substring(uuid_send(gen_random_uuid()) FROM 9), 'hex')::uuid AS event_key
    FROM unnest(tenant_ids, event_ids, event_types, user_ids, user_keys, content_hashes, traceparents, body_tails)
      WITH ORDINALITY
      AS i (tenant_id, event_id, event_type, user_id, user_key, content_hash, traceparent, body_tail, ordinal)
    JOIN nuncio.tenants k ON k.tenant_id = i.tenant_id
  ), fresh AS (
    INSERT INTO nuncio.event_ids (event_key, tenant_key, event_id, content_hash)
    SELECT i.event_key, i.tenant_key, i.event_id, decode(i.content_hash, 'hex')
    FROM input i ORDER BY i.tenant_key, i.event_id
    ON CONFLICT DO NOTHING
    RETURNING event_key
  ), accepted AS MATERIALIZED (
    SELECT a.*, nextval('nuncio.user_sequence') AS user_sequence
    FROM (SELECT i.* FROM input i JOIN fresh f ON f.event_key = i.event_key ORDER BY i.ordinal) AS a
  ), stored AS (
    INSERT INTO nuncio.events (event_key, tenant_key, event_type, user_sequence, event_id, user_id, traceparent, body)
    SELECT a.event_key, a.tenant_key, a.event_type, a.user_sequence, a.event_id, a.user_id, a.traceparent,
      '{"specversion":"1.0","usersequence":"' || lpad(a.user_sequence::text, 20, '0') || a.body_tail
    FROM accepted a
  ), matching AS (
    SELECT a.event_key, a.tenant_key, s.subscription_key, a.user_sequence,
      CASE s.ordering WHEN 1 THEN a.user_key END AS order_key,
      CASE s.ordering WHEN 1 THEN a.user_sequence END AS order_sequence,
      CASE s.ordering WHEN 1 THEN a.event_type END AS order_type,
      row_number() OVER (PARTITION BY s.subscription_key, a.user_key ORDER BY a.user_sequence) > 1 AS is_behind
    FROM accepted a
    JOIN nuncio.webhook_subscriptions s ON s.tenant_key = a.tenant_key
    WHERE s.deleted_at IS NULL AND s.state IN (1, 2) AND (s.event_types = '{}' OR a.event_type = ANY (s.event_types))
  ), due AS (
    INSERT INTO nuncio.outbox (event_key, next_at, expires_at, tenant_key, subscription_key, user_key, user_sequence,
      event_type, held_from)
    SELECT m.event_key, CASE WHEN m.waits THEN 'infinity' ELSE now() END, now() + max_pending_ms * interval '1 millisecond',
      m.tenant_key, m.subscription_key, m.order_key, m.order_sequence, m.order_type,
      CASE WHEN m.waits THEN nuncio.lane_clock(m.subscription_key) END
    FROM (
      SELECT m.*, m.order_key IS NOT NULL AND (m.is_behind OR earlier.found IS NOT NULL) AS waits
      FROM matching m
      LEFT JOIN LATERAL (
        SELECT true AS found FROM nuncio.outbox q
        -- Equality, written as two bounds on a row: only an index that begins with these columns in this order can serve it.
        WHERE q.user_key IS NOT NULL AND (q.user_key, q.subscription_key, q.user_sequence) > (m.order_key, m.subscription_key,
            CASE WHEN floor IS NULL OR m.subscription_key = ANY (behind) THEN 0 ELSE floor END)
          AND (q.user_key, q.subscription_key) <= (m.order_key, m.subscription_key) LIMIT 1
      ) AS earlier ON true
    ) AS m
    ORDER BY m.user_sequence
    RETURNING event_key, subscription_key, event_type, next_at
  ), fanout AS (
    SELECT d.event_key, count(*)::integer AS deliveries,
      array_agg(d.subscription_key) FILTER (WHERE isfinite(d.next_at) OR d.event_type IN (3, 5)) AS lanes
    FROM due d GROUP BY d.event_key
  )
  SELECT a.ordinal::integer, a.user_sequence, coalesce(f.deliveries, 0), f.lanes
  FROM accepted a LEFT JOIN fanout f ON f.event_key = a.event_key;

  IF event_types && '{3,5}'::smallint[] THEN
    SELECT array_agg(q.subscription_key), array_agg(q.user_key) INTO leaving_lanes, leaving_keys
    FROM unnest(event_types, user_keys) AS u (event_type, user_key)
    CROSS JOIN LATERAL (
      SELECT DISTINCT o.subscription_key, o.user_key FROM nuncio.outbox o WHERE o.user_key = u.user_key
    ) AS q
    WHERE u.event_type IN (3, 5);
    PERFORM nuncio.supersede_failed(leaving_lanes, leaving_keys);
    PERFORM nuncio.promote_followers(leaving_lanes, leaving_keys);
  END IF;
END
$$;
