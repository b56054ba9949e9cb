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
-- Connections of our processes to this database, by role and state; only those of sessions that the schema's owner may see.
CREATE FUNCTION nuncio.count_connections() RETURNS TABLE (application text, state text, count integer)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
  SELECT a.application_name, a.state, count(*)::integer
  FROM pg_stat_activity a
  WHERE a.datname = current_database() AND a.application_name IN ('nuncio_server', 'nuncio_worker') AND a.state IS NOT NULL
  GROUP BY 1, 2
$$;
--> statement-breakpoint
REVOKE ALL ON FUNCTION nuncio.oldest_snapshot, nuncio.count_connections FROM PUBLIC;--> statement-breakpoint
GRANT EXECUTE ON FUNCTION nuncio.oldest_snapshot, nuncio.count_connections TO nuncio_worker;
