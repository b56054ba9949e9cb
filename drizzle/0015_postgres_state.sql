-- What keeps dead rows of this database from being cleared away: the oldest view of the data that somebody may still have, or
-- the oldest transaction that has written and is still open. A session, a replication slot, a prepared transaction. `held_for`
-- is that of the longest open one, `transactions` and `holder` those of the one that goes back furthest; a slot has no time of
-- its own. All null where there is nothing. With the rights of the schema's owner, who sees the sessions of other users only as
-- a member of pg_read_all_stats.
CREATE FUNCTION nuncio.oldest_snapshot(OUT held_for interval, OUT transactions bigint, OUT holder text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
  SELECT max(now() - h.since), max(h.transactions), (array_agg(h.holder ORDER BY h.transactions DESC))[1]
  FROM (
    SELECT a.xact_start AS since, greatest(age(a.backend_xmin), age(a.backend_xid))::bigint AS transactions,
      format('process %s of %s', a.pid, coalesce(nullif(a.application_name, ''), a.usename, a.backend_type)) AS holder
    FROM pg_stat_activity a
    WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.pid <> pg_backend_pid()
      AND (a.datname = current_database() OR a.datname IS NULL)
      -- A vacuum holds nothing back, and Postgres leaves it out too; an analyze does.
      AND NOT (a.query ~* '^\s*(autovacuum: )?vacuum' AND a.query !~* 'analyze')
    UNION ALL
    SELECT NULL, age(s.xmin)::bigint, format('replication slot %s', s.slot_name) FROM pg_replication_slots s WHERE s.xmin IS NOT NULL
    UNION ALL
    SELECT p.prepared, age(p.transaction)::bigint, format('prepared transaction %s', p.gid)
    FROM pg_prepared_xacts p WHERE p.database = current_database()
  ) AS h
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
