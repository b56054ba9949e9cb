-- The migrator has made the schema already, for its own table.
CREATE SCHEMA IF NOT EXISTS "nuncio";
--> statement-breakpoint
CREATE TABLE "nuncio"."dead_letters" (
	"event_key" uuid NOT NULL,
	"ended_at" timestamp with time zone DEFAULT now() NOT NULL,
	"tenant_key" integer NOT NULL,
	"subscription_key" integer NOT NULL,
	"attempt" smallint NOT NULL,
	"end_reason" smallint NOT NULL,
	CONSTRAINT "dead_letters_subscription_key_event_key_pk" PRIMARY KEY("subscription_key","event_key")
);
--> statement-breakpoint
CREATE TABLE "nuncio"."delivery_attempts" (
	"event_key" uuid NOT NULL,
	"started_at" timestamp with time zone NOT NULL,
	"tenant_key" integer NOT NULL,
	"subscription_key" integer NOT NULL,
	"duration_ms" integer NOT NULL,
	"number" smallint NOT NULL,
	"outcome" smallint NOT NULL,
	"http_status" smallint,
	"stale" boolean NOT NULL,
	"dns_ms" integer,
	"connect_ms" integer,
	"first_byte_ms" integer,
	"body_ms" integer,
	"error_detail" text,
	"response_excerpt" text
) PARTITION BY RANGE ("started_at");
--> statement-breakpoint
CREATE TABLE "nuncio"."event_ids" (
	"event_key" uuid NOT NULL,
	"tenant_key" integer NOT NULL,
	"event_id" text NOT NULL,
	"content_hash" "bytea",
	CONSTRAINT "event_ids_tenant_key_event_id_pk" PRIMARY KEY("tenant_key","event_id")
);
--> statement-breakpoint
CREATE TABLE "nuncio"."events" (
	"event_key" uuid NOT NULL,
	"tenant_key" integer NOT NULL,
	"event_type" smallint NOT NULL,
	"user_sequence" bigint NOT NULL,
	"event_id" text NOT NULL,
	"user_id" text NOT NULL,
	"traceparent" text,
	"body" text NOT NULL,
	CONSTRAINT "events_tenant_key_event_key_pk" PRIMARY KEY("tenant_key","event_key")
) PARTITION BY RANGE ("event_key");
--> statement-breakpoint
CREATE TABLE "nuncio"."outbox" (
	"event_key" uuid NOT NULL,
	"next_at" timestamp with time zone NOT NULL,
	"expires_at" timestamp with time zone NOT NULL,
	"lease_expires_at" timestamp with time zone,
	"lease_token" bigint,
	"tenant_key" integer NOT NULL,
	"subscription_key" integer NOT NULL,
	"attempt" smallint DEFAULT 0 NOT NULL,
	"failures" smallint DEFAULT 0 NOT NULL,
	"lost_claims" smallint DEFAULT 0 NOT NULL,
	CONSTRAINT "outbox_subscription_key_event_key_pk" PRIMARY KEY("subscription_key","event_key")
) WITH (
	-- A claim never is a HOT update (next_at is indexed), but what dies can be reused within its page.
	fillfactor = 85, vacuum_truncate = off,
	-- The table empties and refills all day: vacuum by a count of dead rows, not by a share of what happens to live.
	autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
	autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000,
	autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000, autovacuum_vacuum_cost_delay = 0
);
--> statement-breakpoint
CREATE TABLE "nuncio"."signing_secrets" (
	"secret_key" integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY (sequence name "nuncio"."signing_secrets_secret_key_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 2147483647 START WITH 1 CACHE 1),
	"subscription_key" integer NOT NULL,
	"tenant_key" integer NOT NULL,
	"key_id" text NOT NULL,
	"ciphertext" "bytea" NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"expires_at" timestamp with time zone
);
--> statement-breakpoint
CREATE TABLE "nuncio"."subscription_requests" (
	"tenant_key" integer NOT NULL,
	"request_id" text NOT NULL,
	"content_hash" "bytea" NOT NULL,
	"subscription_key" integer NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "subscription_requests_tenant_key_request_id_pk" PRIMARY KEY("tenant_key","request_id")
);
--> statement-breakpoint
CREATE TABLE "nuncio"."tenants" (
	"tenant_key" integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY (sequence name "nuncio"."tenants_tenant_key_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 2147483647 START WITH 1 CACHE 1),
	"tenant_id" text NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "tenants_tenant_id_unique" UNIQUE("tenant_id")
);
--> statement-breakpoint
CREATE TABLE "nuncio"."webhook_subscriptions" (
	"subscription_key" integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY (sequence name "nuncio"."webhook_subscriptions_subscription_key_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 2147483647 START WITH 1 CACHE 1),
	"tenant_key" integer NOT NULL,
	"subscription_uuid" uuid NOT NULL,
	"revision" integer DEFAULT 1 NOT NULL,
	"state" smallint NOT NULL,
	"ordering" smallint NOT NULL,
	"content_type" smallint NOT NULL,
	"event_types" smallint[] NOT NULL,
	"url" text NOT NULL,
	"description" text NOT NULL,
	"state_reason" text DEFAULT '' NOT NULL,
	"header_names" text[] NOT NULL,
	"headers_key_id" text,
	"headers_ciphertext" "bytea",
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	"deleted_at" timestamp with time zone,
	CONSTRAINT "webhook_subscriptions_subscription_uuid_unique" UNIQUE("subscription_uuid")
);
--> statement-breakpoint
ALTER TABLE "nuncio"."signing_secrets" ADD CONSTRAINT "signing_secrets_subscription_key_webhook_subscriptions_subscription_key_fk" FOREIGN KEY ("subscription_key") REFERENCES "nuncio"."webhook_subscriptions"("subscription_key") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "nuncio"."webhook_subscriptions" ADD CONSTRAINT "webhook_subscriptions_tenant_key_tenants_tenant_key_fk" FOREIGN KEY ("tenant_key") REFERENCES "nuncio"."tenants"("tenant_key") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "dead_letters_ended" ON "nuncio"."dead_letters" USING btree ("ended_at");--> statement-breakpoint
CREATE INDEX "delivery_attempts_delivery" ON "nuncio"."delivery_attempts" USING btree ("subscription_key","event_key","number");--> statement-breakpoint
CREATE INDEX "outbox_due" ON "nuncio"."outbox" USING btree ("subscription_key","next_at");--> statement-breakpoint
CREATE INDEX "signing_secrets_subscription" ON "nuncio"."signing_secrets" USING btree ("subscription_key");--> statement-breakpoint
CREATE INDEX "webhook_subscriptions_tenant" ON "nuncio"."webhook_subscriptions" USING btree ("tenant_key","subscription_uuid");--> statement-breakpoint
-- Rows that may be what kills their worker: empty on a good day, so that it costs nothing.
CREATE INDEX "outbox_quarantined" ON "nuncio"."outbox" ("next_at") WHERE lost_claims >= 2;--> statement-breakpoint
-- One sequence for all users: it grows per user because the append function draws from it under the user's lock, and it
-- writes no row per user. Gaps are normal.
CREATE SEQUENCE "nuncio"."user_sequence" AS bigint;
