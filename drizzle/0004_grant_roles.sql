-- Two roles without login, which server and worker take on when they connect. A login needs membership only, so an
-- operator decides who may be which; the owner of the database gets both here.
-- Roles belong to the whole cluster: another database's migration may have made them, or be making them right now.
DO $$
DECLARE
  wanted text;
BEGIN
  PERFORM pg_advisory_xact_lock(7100, 1);
  FOREACH wanted IN ARRAY ARRAY['nuncio_server', 'nuncio_worker'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
      EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
      END;
    END IF;
    IF NOT pg_has_role(current_user, wanted, 'MEMBER') THEN
      EXECUTE format('GRANT %I TO CURRENT_USER', wanted);
    END IF;
  END LOOP;
END
$$;
--> statement-breakpoint
GRANT USAGE ON SCHEMA nuncio TO nuncio_server, nuncio_worker;--> statement-breakpoint
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA nuncio FROM PUBLIC;--> statement-breakpoint
GRANT SELECT ON ALL TABLES IN SCHEMA nuncio TO nuncio_server, nuncio_worker;--> statement-breakpoint
-- The server writes events, event_ids and the outbox through nuncio.append_events alone.
GRANT INSERT, UPDATE ON nuncio.webhook_subscriptions TO nuncio_server;--> statement-breakpoint
GRANT INSERT, UPDATE, DELETE ON nuncio.signing_secrets, nuncio.subscription_requests TO nuncio_server;--> statement-breakpoint
GRANT INSERT ON nuncio.tenants TO nuncio_server;--> statement-breakpoint
-- For the lock on a tenant's row under which its subscriptions are counted.
GRANT UPDATE (created_at) ON nuncio.tenants TO nuncio_server;--> statement-breakpoint
GRANT EXECUTE ON FUNCTION nuncio.append_events, nuncio.ensure_partitions TO nuncio_server;--> statement-breakpoint
GRANT UPDATE, DELETE ON nuncio.outbox TO nuncio_worker;--> statement-breakpoint
GRANT INSERT ON nuncio.delivery_attempts TO nuncio_worker;--> statement-breakpoint
GRANT INSERT, UPDATE ON nuncio.dead_letters TO nuncio_worker;--> statement-breakpoint
GRANT EXECUTE ON FUNCTION nuncio.claim_deliveries, nuncio.ensure_partitions TO nuncio_worker;
