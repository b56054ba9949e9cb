import { EXIT_BAD_SETTINGS, SETTINGS } from "./config.ts";
import { Secret } from "./core/secret.ts";
import { createLogger } from "./logger.ts";
import { migrateDatabase } from "./store/migrations.ts";

// The third entrypoint: brings the schema up to date and ends. Run it before a new server or worker starts.
const logger = createLogger("migrate", "info");
const url = process.env[SETTINGS.databaseUrl.name];
if (!url) {
  logger.fatal(`${SETTINGS.databaseUrl.name} is required: the Postgres to migrate`);
  process.exit(EXIT_BAD_SETTINGS);
}
try {
  await migrateDatabase(new Secret(url));
  logger.info("database.migrated");
} catch (error) {
  logger.fatal({ error }, "the migration failed; nothing was changed");
  process.exit(1);
}
