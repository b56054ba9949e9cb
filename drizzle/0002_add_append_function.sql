-- Stores events with one outbox row per matching subscription, in the caller's transaction. Returns one row per event
-- that is new; an event that is missing from the answer has an id that its tenant has used before.
--
-- Before anything is written it locks each (tenant, user), striped over 8,192 locks and in ascending order, until the
-- commit: so the sequence of a user grows in the order of commits, and two groups cannot deadlock. A striped lock keeps
-- the shared lock table small however many users a group holds.
--
-- Every statement of a plpgsql function has its own snapshot: what is read after the locks is what was committed by then.
CREATE FUNCTION nuncio.append_events(
  tenant_ids text[], event_ids text[], event_types smallint[], user_ids text[],
  content_hashes text[], -- SHA-256 in hex
  traceparents text[],
  body_tails text[], -- the body behind the sequence's digits
  max_pending_ms bigint
) RETURNS TABLE (ordinal integer, user_sequence bigint, deliveries integer, lanes integer[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
#variable_conflict use_column
DECLARE
  clock bytea;
BEGIN
  INSERT INTO nuncio.tenants (tenant_id)
  SELECT DISTINCT t.tenant_id FROM unnest(tenant_ids) AS t (tenant_id)
  WHERE NOT EXISTS (SELECT FROM nuncio.tenants k WHERE k.tenant_id = t.tenant_id)
  ORDER BY t.tenant_id
  ON CONFLICT DO NOTHING;

  PERFORM pg_advisory_xact_lock(7101, s.stripe)
  FROM (
    SELECT DISTINCT (hashtextextended(u.tenant_id || '/' || u.user_id, 0) & 8191)::integer AS stripe
    FROM unnest(tenant_ids, user_ids) AS u (tenant_id, user_id)
    ORDER BY 1
  ) AS s;

  -- The 48 bits that a UUIDv7 begins with, one reading for the whole group; its order inside follows from the ordinal.
  clock := substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3);

  RETURN QUERY
  WITH input AS MATERIALIZED (
    SELECT i.*, k.tenant_key,
      -- RFC 9562 UUIDv7: 48 bits of milliseconds, version 7, 12 bits of counter, and a random tail.
      encode(clock || int2send((28672 + i.ordinal % 4096)::smallint)
        || substring(uuid_send(gen_random_uuid()) FROM 9), 'hex')::uuid AS event_key
    FROM unnest(tenant_ids, event_ids, event_types, user_ids, content_hashes, traceparents, body_tails) WITH ORDINALITY
      AS i (tenant_id, event_id, event_type, user_id, content_hash, traceparent, body_tail, ordinal)
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
  ), due AS (
    INSERT INTO nuncio.outbox (event_key, next_at, expires_at, tenant_key, subscription_key)
    SELECT a.event_key, now(), now() + max_pending_ms * interval '1 millisecond', a.tenant_key, s.subscription_key
    FROM accepted a
    JOIN nuncio.webhook_subscriptions s ON s.tenant_key = a.tenant_key
    WHERE s.deleted_at IS NULL AND s.state IN (1, 2) AND (s.event_types = '{}' OR a.event_type = ANY (s.event_types))
    RETURNING event_key, subscription_key
  ), fanout AS (
    SELECT d.event_key, count(*)::integer AS deliveries, array_agg(d.subscription_key) AS lanes
    FROM due d GROUP BY d.event_key
  )
  SELECT a.ordinal::integer, a.user_sequence, coalesce(f.deliveries, 0), f.lanes
  FROM accepted a LEFT JOIN fanout f ON f.event_key = a.event_key;
END
$$;
