-- From Postgres 17 on a role may vacuum a table that it does not own. Autovacuum looks once a minute at most (its naptime
-- holds for the whole cluster), in which a busy outbox leaves millions of dead rows; the worker looks more often. On 15
-- and 16 the table's settings have to do.
DO $$
BEGIN
  IF current_setting('server_version_num')::integer >= 170000 THEN
    EXECUTE 'GRANT MAINTAIN ON nuncio.outbox TO nuncio_worker';
  END IF;
END
$$;
