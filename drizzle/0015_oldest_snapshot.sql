-- The oldest view of this database's data that somebody may still have, which keeps every dead row that is newer from being
-- cleared away: a session, a replication slot, a prepared transaction. All null where nobody has one. `held_for` is null for a
-- slot. With the rights of the schema's owner, who sees the sessions of other users only as a member of pg_read_all_stats.
CREATE FUNCTION nuncio.oldest_snapshot(OUT held_for interval, OUT transactions bigint, OUT holder text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
  SELECT now() - h.since, h.transactions, h.holder
  FROM (
    SELECT a.xact_start AS since, age(a.backend_xmin)::bigint AS transactions,
      format('process %s of %s', a.pid, coalesce(nullif(a.application_name, ''), a.usename, a.backend_type)) AS holder
    FROM pg_stat_activity a
    -- A vacuum holds nothing back: Postgres leaves it out too.
    WHERE a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid() AND a.backend_type <> 'autovacuum worker'
      AND a.query !~* '^\s*vacuum' AND (a.datname = current_database() OR a.datname IS NULL)
    UNION ALL
    SELECT NULL, age(s.xmin)::bigint, format('replication slot %s', s.slot_name) FROM pg_replication_slots s WHERE s.xmin IS NOT NULL
    UNION ALL
    SELECT p.prepared, age(p.transaction)::bigint, format('prepared transaction %s', p.gid)
    FROM pg_prepared_xacts p WHERE p.database = current_database()
  ) AS h
  ORDER BY h.transactions DESC, h.since LIMIT 1
$$;
--> statement-breakpoint
REVOKE ALL ON FUNCTION nuncio.oldest_snapshot FROM PUBLIC;--> statement-breakpoint
GRANT EXECUTE ON FUNCTION nuncio.oldest_snapshot TO nuncio_worker;
