CREATE INDEX "event_ids_event_key" ON "nuncio"."event_ids" USING btree ("event_key");--> statement-breakpoint
-- Drops the oldest partition of `parent` (events or delivery_attempts) if its whole day lies further back than it is to be
-- kept, and returns its name; null when there is none to drop. One a call, so that the lock on the parent is short.
--
-- Dropping needs the parent to itself for a moment. Whoever holds it longer than the lock's time limit wins: the call
-- fails with lock_not_available, nobody queues behind it for long, and the next round tries again.
--
-- A day of events that an unfinished delivery needs stays, whatever the settings say.
CREATE FUNCTION nuncio.drop_oldest_partition(parent text, keep_ms bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '250ms' AS $$
DECLARE
  oldest text;
  day_after timestamptz;
BEGIN
  IF parent NOT IN ('events', 'delivery_attempts') THEN
    RAISE EXCEPTION 'there are no partitions of % to drop', parent;
  END IF;
  IF keep_ms < 3600000 THEN
    RAISE EXCEPTION 'keep_ms must be at least an hour, not %', keep_ms;
  END IF;
  SELECT c.relname INTO oldest
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
  WHERE i.inhparent = ('nuncio.' || parent)::regclass
  ORDER BY c.relname LIMIT 1;
  day_after := to_timestamp(right(oldest, 8), 'YYYYMMDD') + interval '1 day';
  IF oldest IS NULL OR day_after > now() - keep_ms * interval '1 millisecond' THEN
    RETURN NULL;
  END IF;
  IF parent = 'events' AND EXISTS (
    SELECT FROM nuncio.outbox q WHERE q.event_key < nuncio.least_uuid_at(day_after)
  ) THEN
    RETURN NULL;
  END IF;
  EXECUTE format('DROP TABLE nuncio.%I', oldest);
  RETURN oldest;
END
$$;
--> statement-breakpoint
-- Deletes up to `batch` rows of each kind that have outlived their use: ids of events whose payload has gone, dead letters,
-- and create requests, which are remembered for a day. Returns how many it deleted; call it until that is 0.
CREATE FUNCTION nuncio.delete_outlived(payload_ms bigint, dead_letter_ms bigint, batch integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  first_kept uuid;
  counted integer;
  deleted integer := 0;
BEGIN
  IF payload_ms < 3600000 OR dead_letter_ms < 3600000 THEN
    RAISE EXCEPTION 'nothing is outlived within an hour';
  END IF;
  -- By what is there, not by the clock: an id goes after its payload, never before.
  SELECT nuncio.least_uuid_at(to_timestamp(right(min(c.relname), 8), 'YYYYMMDD')) INTO first_kept
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
  WHERE i.inhparent = 'nuncio.events'::regclass;
  DELETE FROM nuncio.event_ids WHERE ctid = ANY (ARRAY(
    SELECT e.ctid FROM nuncio.event_ids e WHERE e.event_key < first_kept
      AND e.event_key < nuncio.least_uuid_at(now() - payload_ms * interval '1 millisecond')
    ORDER BY e.event_key LIMIT batch FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS counted = ROW_COUNT;
  deleted := deleted + counted;
  DELETE FROM nuncio.dead_letters WHERE ctid = ANY (ARRAY(
    SELECT d.ctid FROM nuncio.dead_letters d WHERE d.ended_at < now() - dead_letter_ms * interval '1 millisecond'
    ORDER BY d.ended_at LIMIT batch FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS counted = ROW_COUNT;
  deleted := deleted + counted;
  DELETE FROM nuncio.subscription_requests WHERE ctid = ANY (ARRAY(
    SELECT r.ctid FROM nuncio.subscription_requests r WHERE r.created_at < now() - interval '1 day'
    LIMIT batch FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS counted = ROW_COUNT;
  RETURN deleted + counted;
END
$$;
--> statement-breakpoint
REVOKE ALL ON FUNCTION nuncio.drop_oldest_partition, nuncio.delete_outlived FROM PUBLIC;--> statement-breakpoint
GRANT EXECUTE ON FUNCTION nuncio.drop_oldest_partition, nuncio.delete_outlived TO nuncio_worker;
