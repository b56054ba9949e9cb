-- As the function of the same name with two arguments, for who knows a sequence before which the user has nothing in the
-- lane: the index entries before it, of rows that ended and that an open transaction keeps from being cleared away, are
-- not read then.
CREATE FUNCTION nuncio.promote_followers(lanes integer[], user_keys bigint[], from_sequences bigint[]) RETURNS SETOF integer
LANGUAGE plpgsql SET search_path = pg_catalog SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
  RETURN QUERY
  WITH first AS MATERIALIZED (
    SELECT f.place
    FROM unnest(lanes, user_keys, from_sequences) AS u (lane, user_key, from_sequence)
    CROSS JOIN LATERAL (
      SELECT q.ctid AS place, q.next_at FROM nuncio.outbox q
      WHERE q.user_key = u.user_key AND q.subscription_key = u.lane AND q.user_sequence >= u.from_sequence
      ORDER BY q.user_sequence LIMIT 1
    ) AS f
    WHERE f.next_at = 'infinity'
  )
  UPDATE nuncio.outbox q SET next_at = now(), held_from = NULL FROM first f WHERE q.ctid = f.place
  RETURNING q.subscription_key;
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
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
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
    SELECT q.ctid AS row, q.attempt, q.user_key, q.user_sequence, q.tenant_key, a.place, a.subscription_key, a.event_key, a.delay_ms,
      a.end_reason
    FROM attempt a
    JOIN nuncio.outbox q ON q.subscription_key = a.subscription_key AND q.event_key = a.event_key
      AND q.lease_token = a.lease_token
    ORDER BY q.subscription_key, q.event_key
    FOR UPDATE OF q
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
REVOKE ALL ON FUNCTION nuncio.promote_followers(integer[], bigint[], bigint[]) FROM PUBLIC;--> statement-breakpoint
GRANT EXECUTE ON FUNCTION nuncio.promote_followers(integer[], bigint[], bigint[]) TO nuncio_worker;
