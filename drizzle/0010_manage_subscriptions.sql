CREATE TABLE "nuncio"."subscription_tests" (
	"subscription_key" integer PRIMARY KEY NOT NULL,
	"tenant_key" integer NOT NULL,
	"test_uuid" uuid NOT NULL,
	"requested_at" timestamp with time zone DEFAULT now() NOT NULL,
	"taken_at" timestamp with time zone,
	"started_at" timestamp with time zone,
	"duration_ms" integer,
	"outcome" smallint,
	"http_status" smallint,
	"dns_ms" integer,
	"connect_ms" integer,
	"first_byte_ms" integer,
	"body_ms" integer,
	"error_detail" text,
	"response_excerpt" text
);
--> statement-breakpoint
ALTER TABLE "nuncio"."webhook_subscriptions" ADD COLUMN "retry_delays_ms" integer[];--> statement-breakpoint
-- A server asks for a test and takes the answer away, a worker takes the test and answers it.
GRANT SELECT, INSERT, UPDATE, DELETE ON nuncio.subscription_tests TO nuncio_server;--> statement-breakpoint
GRANT SELECT, UPDATE, DELETE ON nuncio.subscription_tests TO nuncio_worker;
