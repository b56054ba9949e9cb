-- Delivers one delivery once more. Returns what came of it: `redriven`, or `due_now` for one that was pending; `waits` behind
-- another of its user; `under_way` on a lease; `not_redrivable`.
CREATE OR REPLACE FUNCTION nuncio.redrive_delivery(lane integer, key uuid, max_pending_ms bigint, payload_ms bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  pending nuncio.outbox;
BEGIN
  SELECT * INTO pending FROM nuncio.outbox q WHERE q.subscription_key = lane AND q.event_key = key FOR UPDATE;
  IF FOUND THEN
    IF pending.next_at = 'infinity' THEN
      RETURN 'waits';
    ELSIF pending.lease_expires_at > now() THEN
      RETURN 'under_way';
    END IF;
    -- A lease that has ended is a lost claim, as it is for the next claim. What is due already keeps its place: a claim that had
    -- begun before would take the new one for how far it has come, and pass over all that is due in between.
    UPDATE nuncio.outbox q
    SET next_at = least(q.next_at, now()), lost_claims = q.lost_claims + (q.lease_token IS NOT NULL)::integer, lease_token = NULL,
      lease_expires_at = NULL
    WHERE q.subscription_key = lane AND q.event_key = key;
    RETURN 'due_now';
  END IF;
  -- A statement of its own, with a snapshot of its own: what has ended just now is seen. Delivered, or a dead letter (the
  -- first five reasons; the others are cancellations).
  IF EXISTS (SELECT FROM nuncio.dead_letters d WHERE d.subscription_key = lane AND d.event_key = key AND d.end_reason > 5) THEN
    RETURN 'not_redrivable';
  ELSIF EXISTS (SELECT FROM nuncio.redrive_deliveries(lane, ARRAY[key], max_pending_ms, payload_ms)) THEN
    RETURN 'redriven';
  END IF;
  RETURN 'not_redrivable';
END
$$;
