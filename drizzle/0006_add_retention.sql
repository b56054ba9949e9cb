CREATE INDEX "event_ids_event_key" ON "nuncio"."event_ids" USING btree ("event_key");--> statement-breakpoint
-- Whether an unfinished delivery needs an event from before `bound`. One index descent per lane: its first row is its
-- oldest event.
CREATE FUNCTION nuncio.is_pending_before(bound uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
RETURN EXISTS (
  WITH RECURSIVE lane AS (
    (SELECT q.subscription_key, q.event_key FROM nuncio.outbox q ORDER BY q.subscription_key, q.event_key LIMIT 1)
    UNION ALL
    SELECT n.subscription_key, n.event_key FROM lane l CROSS JOIN LATERAL (
      SELECT q.subscription_key, q.event_key FROM nuncio.outbox q
      WHERE q.subscription_key > l.subscription_key ORDER BY q.subscription_key, q.event_key LIMIT 1
    ) AS n
  )
  SELECT FROM lane l WHERE l.event_key < bound
);
--> statement-breakpoint
-- Drops the oldest partition of `parent` (events or delivery_attempts) if its whole day lies further back than it is to be
-- kept, and returns its name; null when there is none to drop, or another call is at it. One a call, so that the lock on
-- the parent is short.
--
-- Dropping needs the parent to itself for a moment. Whoever holds it longer than the lock's time limit wins: the call
-- fails with lock_not_available, nobody queues behind it for long, and the next round tries again.
--
-- A day of events that an unfinished delivery needs stays, whatever the settings say. Looked at once more under the lock:
-- who puts a delivery of an old event back reads the event first, and either comes before this or finds nothing.
CREATE FUNCTION nuncio.drop_oldest_partition(parent text, keep_ms bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '250ms' AS $$
DECLARE
  oldest text;
  day_after timestamptz;
BEGIN
  IF parent NOT IN ('events', 'delivery_attempts') THEN
    RAISE EXCEPTION 'there are no partitions of % to drop', parent;
  END IF;
  IF keep_ms < 86400000 THEN
    RAISE EXCEPTION 'keep_ms must be at least a day, not %', keep_ms;
  END IF;
  IF NOT pg_try_advisory_xact_lock(7104, 0) THEN
    RETURN NULL;
  END IF;
  SELECT c.relname INTO oldest
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
  WHERE i.inhparent = ('nuncio.' || parent)::regclass
  ORDER BY c.relname LIMIT 1;
  day_after := to_timestamp(right(oldest, 8), 'YYYYMMDD') + interval '24 hours';
  IF oldest IS NULL OR day_after > now() - keep_ms * interval '1 millisecond' THEN
    RETURN NULL;
  END IF;
  IF parent = 'events' THEN
    IF nuncio.is_pending_before(nuncio.least_uuid_at(day_after)) THEN
      RETURN NULL;
    END IF;
    LOCK TABLE nuncio.events IN ACCESS EXCLUSIVE MODE;
    IF nuncio.is_pending_before(nuncio.least_uuid_at(day_after)) THEN
      RETURN NULL;
    END IF;
  END IF;
  EXECUTE format('DROP TABLE nuncio.%I', oldest);
  RETURN oldest;
END
$$;
--> statement-breakpoint
-- Deletes up to `batch` rows of each kind that have outlived their use: ids of events whose payload has gone, dead letters,
-- and create requests, which are remembered for 24 hours. Returns how many it deleted; call it until that is 0.
CREATE FUNCTION nuncio.delete_outlived(dead_letter_ms bigint, batch integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' AS $$
DECLARE
  first_kept uuid;
  counted integer;
  deleted integer := 0;
BEGIN
  IF dead_letter_ms < 86400000 THEN
    RAISE EXCEPTION 'dead_letter_ms must be at least a day, not %', dead_letter_ms;
  END IF;
  -- By what is there, not by the clock: an id goes after its payload, never before.
  SELECT nuncio.least_uuid_at(to_timestamp(right(min(c.relname), 8), 'YYYYMMDD')) INTO first_kept
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
  WHERE i.inhparent = 'nuncio.events'::regclass;
  DELETE FROM nuncio.event_ids WHERE ctid = ANY (ARRAY(
    SELECT e.ctid FROM nuncio.event_ids e WHERE e.event_key < first_kept
    ORDER BY e.event_key LIMIT batch FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS counted = ROW_COUNT;
  deleted := deleted + counted;
  DELETE FROM nuncio.dead_letters WHERE ctid = ANY (ARRAY(
    SELECT d.ctid FROM nuncio.dead_letters d WHERE d.ended_at < now() - dead_letter_ms * interval '1 millisecond'
    ORDER BY d.ended_at LIMIT batch FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS counted = ROW_COUNT;
  deleted := deleted + counted;
  DELETE FROM nuncio.subscription_requests WHERE ctid = ANY (ARRAY(
    SELECT r.ctid FROM nuncio.subscription_requests r WHERE r.created_at < now() - interval '24 hours'
    LIMIT batch FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS counted = ROW_COUNT;
  RETURN deleted + counted;
END
$$;
--> statement-breakpoint
REVOKE ALL ON FUNCTION nuncio.is_pending_before, nuncio.drop_oldest_partition, nuncio.delete_outlived FROM PUBLIC;--> statement-breakpoint
GRANT EXECUTE ON FUNCTION nuncio.drop_oldest_partition, nuncio.delete_outlived TO nuncio_worker;
