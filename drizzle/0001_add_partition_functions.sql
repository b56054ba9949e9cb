-- The least UUID of a millisecond, which is the bound of an event partition.
CREATE FUNCTION nuncio.least_uuid_at(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog
RETURN rpad(lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0'), 32, '0')::uuid;
--> statement-breakpoint
-- Makes the daily partitions of events and attempts from yesterday to `days_ahead` days from now (UTC) that are missing.
-- Safe to call at any time, by several processes at once.
CREATE FUNCTION nuncio.ensure_partitions(days_ahead integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' AS $$
DECLARE
  day timestamptz;
  suffix text;
BEGIN
  IF days_ahead NOT BETWEEN 0 AND 60 THEN
    RAISE EXCEPTION 'days_ahead must be 0–60, not %', days_ahead;
  END IF;
  PERFORM pg_advisory_xact_lock(7100, 0);
  FOR offset_days IN -1 .. days_ahead LOOP
    day := date_trunc('day', now()) + offset_days * interval '1 day';
    suffix := to_char(day, 'YYYYMMDD');
    IF to_regclass('nuncio.events_' || suffix) IS NULL THEN
      EXECUTE format('CREATE TABLE nuncio.%I PARTITION OF nuncio.events FOR VALUES FROM (%L) TO (%L)',
        'events_' || suffix, nuncio.least_uuid_at(day), nuncio.least_uuid_at(day + interval '1 day'));
    END IF;
    IF to_regclass('nuncio.delivery_attempts_' || suffix) IS NULL THEN
      EXECUTE format('CREATE TABLE nuncio.%I PARTITION OF nuncio.delivery_attempts FOR VALUES FROM (%L) TO (%L)',
        'delivery_attempts_' || suffix, day, day + interval '1 day');
    END IF;
  END LOOP;
END
$$;
--> statement-breakpoint
SELECT nuncio.ensure_partitions(14);
