-- Plans are made anew after each analyze, and the statistics of a table that empties and refills all day are right for a
-- moment: with a few rows by the statistics, any index that begins with one of the columns looks as good as the right one. It
-- is not where what is dead cannot be cleared away, because a transaction is open somewhere. Measured there: an append of 500
-- events read seven million index entries of its lanes, for 16 s, under the locks of its users. So each statement below is
-- written such that one index alone can serve it.
DROP INDEX "nuncio"."outbox_due";--> statement-breakpoint
CREATE INDEX "outbox_due" ON "nuncio"."outbox" USING btree ("subscription_key","next_at") WHERE "nuncio"."outbox"."next_at" < 'infinity';
--> statement-breakpoint
ALTER FUNCTION nuncio.promote_followers(integer[], bigint[]) SET enable_sort = off;--> statement-breakpoint
ALTER FUNCTION nuncio.promote_followers(integer[], bigint[], bigint[]) SET enable_sort = off;--> statement-breakpoint
ALTER FUNCTION nuncio.supersede_failed SET enable_hashjoin = off;--> statement-breakpoint
ALTER FUNCTION nuncio.supersede_failed SET enable_mergejoin = off;--> statement-breakpoint
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
        -- Equality, written as two bounds on a row: only an index that begins with both columns in this order can serve it.
        WHERE q.user_key IS NOT NULL AND (q.user_key, q.subscription_key) >= (m.order_key, m.subscription_key)
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
--> statement-breakpoint
-- The claim, which tells of each row whether its lease was lost; and by the index that has a row for each with a time alone.
DROP FUNCTION nuncio.claim_deliveries;
--> statement-breakpoint
-- Leases due deliveries: of each lane at most its quota, oldest due first, or (quarantined) at most one of those whose
-- last three claims or more ended without a record. Counts the attempt. An expired lease is simply due.
--
-- A lane's shared lock is taken before anything is read: who changes a subscription takes it exclusively, so a claim that
-- commits after the change returned has seen it. A lane that is being changed right now is left out, never waited for.
--
-- `since` (milliseconds since 1970) bounds each lane's scan from below: behind it lie index entries of rows that ended,
-- which nobody can remove while an old snapshot is held somewhere.
CREATE FUNCTION nuncio.claim_deliveries(
  lanes integer[], quotas integer[], since double precision[], quarantined boolean, lease_ms integer, token bigint
) RETURNS TABLE (
  subscription_key integer, revision integer, event_key uuid, attempt smallint, failures smallint,
  was_due_ms double precision, claimed_ms double precision, expires_ms double precision,
  event_id text, body text, traceparent text, user_key bigint, redrive boolean,
  lease_lost boolean -- another claim had it and ended without a record
)
LANGUAGE plpgsql SET search_path = pg_catalog
-- A few rows of each lane, in the order of the index: what the planner must not do is read a lane's whole backlog to sort
-- it, which it finds cheap from the statistics of a table that empties and refills all day. Measured with 100 lanes:
-- 117 µs of Postgres CPU per delivery with its own choice, 74 µs with this one.
SET enable_bitmapscan = off SET enable_sort = off SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
  lane integer;
  picked tid[];
  due timestamptz[];
  revisions integer[];
  leased boolean[];
BEGIN
  IF quarantined THEN
    -- The lane first and its row after the lock, in a statement with a snapshot of its own.
    SELECT q.subscription_key INTO lane
    FROM nuncio.outbox q
    JOIN nuncio.webhook_subscriptions s ON s.subscription_key = q.subscription_key
    WHERE q.lost_claims >= 2 AND q.lost_claims + (q.lease_token IS NOT NULL)::integer BETWEEN 3 AND 9
      AND q.next_at <= now() AND s.state = 1 AND s.deleted_at IS NULL
      AND pg_try_advisory_xact_lock_shared(7102, q.subscription_key)
    ORDER BY q.next_at LIMIT 1;
    SELECT array_agg(d.ctid), array_agg(d.next_at), array_agg(d.revision), array_agg(d.is_leased)
    INTO picked, due, revisions, leased
    FROM (
      SELECT q.ctid, q.next_at, s.revision, q.lease_token IS NOT NULL AS is_leased
      FROM nuncio.outbox q
      JOIN nuncio.webhook_subscriptions s ON s.subscription_key = q.subscription_key
      WHERE q.lost_claims >= 2 AND q.lost_claims + (q.lease_token IS NOT NULL)::integer BETWEEN 3 AND 9
        AND q.subscription_key = lane AND q.next_at <= now() AND s.state = 1 AND s.deleted_at IS NULL
      ORDER BY q.next_at LIMIT 1
      FOR UPDATE OF q SKIP LOCKED
    ) AS d;
  ELSE
    lanes := ARRAY(
      SELECT CASE WHEN pg_try_advisory_xact_lock_shared(7102, l.lane) THEN l.lane END
      FROM unnest(lanes) WITH ORDINALITY AS l (lane, place) ORDER BY l.place
    );
    SELECT array_agg(d.ctid), array_agg(d.next_at), array_agg(s.revision), array_agg(d.is_leased)
    INTO picked, due, revisions, leased
    FROM unnest(lanes, quotas, since) AS l (lane, quota, since)
    CROSS JOIN LATERAL (
      SELECT s.revision FROM nuncio.webhook_subscriptions s
      WHERE s.subscription_key = l.lane AND s.state = 1 AND s.deleted_at IS NULL LIMIT 1
    ) AS s
    CROSS JOIN LATERAL (
      SELECT q.ctid, q.next_at, q.lease_token IS NOT NULL AS is_leased
      FROM nuncio.outbox q
      WHERE q.subscription_key = l.lane AND q.next_at >= to_timestamp(l.since / 1000) AND q.next_at <= now()
        AND q.next_at < 'infinity'
        AND q.lost_claims + (q.lease_token IS NOT NULL)::integer < 3
      ORDER BY q.next_at LIMIT l.quota
      FOR UPDATE SKIP LOCKED
    ) AS d;
  END IF;

  RETURN QUERY
  WITH claimed AS (
    UPDATE nuncio.outbox q
    SET next_at = now() + lease_ms * interval '1 millisecond',
      lease_expires_at = now() + lease_ms * interval '1 millisecond',
      lease_token = token,
      attempt = q.attempt + 1,
      lost_claims = q.lost_claims + (q.lease_token IS NOT NULL)::integer
    FROM unnest(picked, due, revisions, leased) AS p (place, due_at, revision, is_leased)
    WHERE q.ctid = p.place
    RETURNING q.subscription_key, p.revision, q.event_key, q.tenant_key, q.attempt, q.failures, q.expires_at, p.due_at,
      q.user_key, q.redrive, p.is_leased
  )
  SELECT c.subscription_key, c.revision, c.event_key, c.attempt, c.failures,
    date_part('epoch', c.due_at) * 1000, date_part('epoch', now()) * 1000, date_part('epoch', c.expires_at) * 1000,
    e.event_id, e.body, e.traceparent, c.user_key, c.redrive, c.is_leased
  FROM claimed c
  -- One probe per row: a plain join may hash every partition of events.
  LEFT JOIN LATERAL (
    SELECT e.event_id, e.body, e.traceparent FROM nuncio.events e
    WHERE e.tenant_key = c.tenant_key AND e.event_key = c.event_key LIMIT 1
  ) AS e ON true;
END
$$;
--> statement-breakpoint
-- Writes attempts and what follows from each under the tokens of their leases. Where a lease has moved on, the attempt is
-- kept, marked stale, and nothing else changes. Returns one row: the places (from 1) of the stale attempts, the lanes where
-- a follower has come due, and the lanes where something failed was superseded by who leaves.
--
-- Users first, then rows by the primary key and locked in its order, ours or not: a row whose token turns out to be
-- another's after waiting for it stays locked until the end, so that records in an order of their own would deadlock.
--
-- Nothing changes a row and leaves its token: a row that was locked in a newer version than the snapshot shows would be
-- missed by the statements that follow in the same one.
-- What is recorded was the first of its user: whatever follows has a later sequence.
CREATE OR REPLACE FUNCTION nuncio.record_attempts(
  subscription_keys integer[], event_keys uuid[], lease_tokens bigint[], user_keys bigint[], tenant_keys integer[],
  numbers smallint[], started_ms double precision[], durations_ms integer[], outcomes smallint[], http_statuses smallint[],
  dns_ms integer[], connect_ms integer[], first_byte_ms integer[], body_ms integer[],
  delays_ms bigint[], -- until the next attempt; null: it has ended
  end_reasons smallint[], -- null: delivered, or there is a next attempt
  error_details text[], response_excerpts text[]
) RETURNS TABLE (stale integer[], promoted integer[], superseded integer[])
LANGUAGE plpgsql SET search_path = pg_catalog SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
  moved_on integer[];
  ordered_lanes integer[];
  ordered_keys bigint[];
  ordered_sequences bigint[];
  failed_lanes integer[];
  failed_keys bigint[];
BEGIN
  PERFORM nuncio.lock_users(user_keys);

  WITH attempt AS MATERIALIZED (
    SELECT * FROM unnest(subscription_keys, event_keys, lease_tokens, tenant_keys, numbers, started_ms, durations_ms,
      outcomes, http_statuses, dns_ms, connect_ms, first_byte_ms, body_ms, delays_ms, end_reasons, error_details,
      response_excerpts)
      WITH ORDINALITY AS a (subscription_key, event_key, lease_token, tenant_key, number, started_ms, duration_ms,
        outcome, http_status, dns_ms, connect_ms, first_byte_ms, body_ms, delay_ms, end_reason, error_detail,
        response_excerpt, place)
  ), held AS MATERIALIZED (
    SELECT q.row, q.attempt, q.user_key, q.user_sequence, q.tenant_key, a.place, a.subscription_key, a.event_key, a.delay_ms,
      a.end_reason
    FROM (SELECT * FROM attempt o ORDER BY o.subscription_key, o.event_key) AS a
    -- One row after the other: a join could as well begin with the outbox, which looks almost empty on many an evening.
    CROSS JOIN LATERAL (
      SELECT q.ctid AS row, q.attempt, q.user_key, q.user_sequence, q.tenant_key FROM nuncio.outbox q
      WHERE q.subscription_key = a.subscription_key AND q.event_key = a.event_key AND q.lease_token = a.lease_token
      FOR UPDATE
    ) AS q
  ), ended AS (
    DELETE FROM nuncio.outbox q USING held h WHERE q.ctid = h.row AND h.delay_ms IS NULL
  ), retried AS (
    UPDATE nuncio.outbox q
    SET next_at = now() + h.delay_ms * interval '1 millisecond', failures = q.failures + 1, lost_claims = 0,
      lease_token = NULL, lease_expires_at = NULL,
      held_from = CASE WHEN q.user_key IS NOT NULL AND q.failures = 0 THEN nuncio.lane_clock(q.subscription_key)
        ELSE q.held_from END
    FROM held h WHERE q.ctid = h.row AND h.delay_ms IS NOT NULL
  ), given_up AS (
    INSERT INTO nuncio.dead_letters (event_key, tenant_key, subscription_key, attempt, end_reason)
    SELECT h.event_key, h.tenant_key, h.subscription_key, h.attempt, h.end_reason
    FROM held h WHERE h.end_reason IS NOT NULL
    ON CONFLICT (subscription_key, event_key) DO UPDATE
      SET ended_at = excluded.ended_at, attempt = excluded.attempt, end_reason = excluded.end_reason
  ), lost AS MATERIALIZED (
    SELECT a.place FROM attempt a
    WHERE a.place NOT IN (SELECT h.place FROM held h)
  ), kept AS (
    INSERT INTO nuncio.delivery_attempts (event_key, started_at, tenant_key, subscription_key, duration_ms, number,
      outcome, http_status, stale, dns_ms, connect_ms, first_byte_ms, body_ms, error_detail, response_excerpt)
    SELECT a.event_key, to_timestamp(a.started_ms / 1000), a.tenant_key, a.subscription_key, a.duration_ms, a.number,
      a.outcome, a.http_status, a.place IN (SELECT s.place FROM lost s), a.dns_ms, a.connect_ms, a.first_byte_ms,
      a.body_ms, a.error_detail,
      -- Of an attempt that counts for nothing no word of the receiver is kept: its event may have been erased meanwhile.
      CASE WHEN a.place NOT IN (SELECT s.place FROM lost s) THEN a.response_excerpt END
    FROM attempt a
  )
  SELECT ARRAY(SELECT s.place::integer FROM lost s),
    array_agg(h.subscription_key) FILTER (WHERE h.user_key IS NOT NULL),
    array_agg(h.user_key) FILTER (WHERE h.user_key IS NOT NULL),
    array_agg(h.user_sequence) FILTER (WHERE h.user_key IS NOT NULL),
    array_agg(h.subscription_key) FILTER (WHERE h.user_key IS NOT NULL AND h.delay_ms IS NOT NULL),
    array_agg(h.user_key) FILTER (WHERE h.user_key IS NOT NULL AND h.delay_ms IS NOT NULL)
  INTO moved_on, ordered_lanes, ordered_keys, ordered_sequences, failed_lanes, failed_keys
  FROM held h;

  stale := moved_on;
  promoted := '{}';
  superseded := '{}';
  IF failed_keys IS NOT NULL THEN
    superseded := ARRAY(SELECT nuncio.supersede_failed(failed_lanes, failed_keys));
  END IF;
  IF ordered_keys IS NOT NULL THEN
    promoted := ARRAY(SELECT nuncio.promote_followers(ordered_lanes, ordered_keys, ordered_sequences));
  END IF;
  RETURN NEXT;
END
$$;
--> statement-breakpoint
-- Lanes with rows that have a time, in the order of their keys, each with its first time: one index descent per lane, whatever
-- is pending in it (a loose index scan, which Postgres does not plan by itself).
CREATE FUNCTION nuncio.list_lanes(after integer, max_lanes integer) RETURNS TABLE (subscription_key integer, next_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET enable_incremental_sort = off AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  WITH RECURSIVE lane AS (
    (SELECT q.subscription_key, q.next_at FROM nuncio.outbox q
     WHERE q.subscription_key > after AND q.next_at < 'infinity'
     ORDER BY q.subscription_key, q.next_at LIMIT 1)
    UNION ALL
    SELECT n.subscription_key, n.next_at FROM lane l CROSS JOIN LATERAL (
      SELECT q.subscription_key, q.next_at FROM nuncio.outbox q
      WHERE q.subscription_key > l.subscription_key AND q.next_at < 'infinity'
      ORDER BY q.subscription_key, q.next_at LIMIT 1
    ) AS n
  )
  SELECT l.subscription_key, l.next_at FROM lane l LIMIT max_lanes;
END
$$;
--> statement-breakpoint
-- Of subscriptions that are not deleted the lanes with rows that are due from `since` on, each with the first of those. What lies
-- before `since` is not read, also where it is dead: so each lane is asked, instead of the index which comes next.
CREATE FUNCTION nuncio.list_lanes_since(after integer, max_lanes integer, since timestamptz)
RETURNS TABLE (subscription_key integer, next_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  SELECT s.subscription_key, f.next_at
  FROM nuncio.webhook_subscriptions s
  CROSS JOIN LATERAL (
    SELECT q.next_at FROM nuncio.outbox q
    WHERE q.subscription_key = s.subscription_key AND q.next_at >= since AND q.next_at < 'infinity' ORDER BY q.next_at LIMIT 1
  ) AS f
  WHERE s.subscription_key > after AND s.deleted_at IS NULL
  ORDER BY s.subscription_key LIMIT max_lanes;
END
$$;
--> statement-breakpoint
-- The first time of each of these lanes; null for a lane without a row that has one.
CREATE FUNCTION nuncio.first_due(lanes integer[]) RETURNS TABLE (subscription_key integer, next_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  SELECT k.lane, f.next_at
  FROM unnest(lanes) AS k (lane)
  LEFT JOIN LATERAL (
    SELECT q.next_at FROM nuncio.outbox q
    WHERE q.subscription_key = k.lane AND q.next_at < 'infinity' ORDER BY q.next_at LIMIT 1
  ) AS f ON true;
END
$$;
--> statement-breakpoint
REVOKE ALL ON FUNCTION nuncio.claim_deliveries, nuncio.list_lanes, nuncio.list_lanes_since, nuncio.first_due FROM PUBLIC;--> statement-breakpoint
GRANT EXECUTE ON FUNCTION nuncio.claim_deliveries, nuncio.list_lanes, nuncio.list_lanes_since, nuncio.first_due TO nuncio_worker;
