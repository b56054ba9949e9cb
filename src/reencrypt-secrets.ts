import { randomBytes } from "node:crypto";
import { EXIT_BAD_SETTINGS, SETTINGS } from "./config.ts";
import { openSecretBox, SecretKeyError } from "./core/encryption.ts";
import { createLogger } from "./logger.ts";
import { openDatabase } from "./store/database.ts";
import { resealSecrets } from "./store/secret-keys.ts";

// Seals every stored secret under the first key of NUNCIO_SECRET_KEYS, while servers and workers run. Afterwards the
// older keys can be dropped from the setting. Safe to interrupt and to run again.

const BATCH = 200;
const logger = createLogger("migrate", "info");

function read<T>({ name, parse }: { name: string; parse: (text: string) => T }): T {
  try {
    return parse(process.env[name] ?? "");
  } catch (error) {
    logger.fatal({ faults: [`${name}: ${(error as Error).message}`] }, "settings.refused");
    return process.exit(EXIT_BAD_SETTINGS);
  }
}

const box = openSecretBox(read(SETTINGS.secretKeys), randomBytes);
const db = openDatabase({
  url: read(SETTINGS.databaseUrl),
  role: "nuncio_server",
  connections: 1,
  hotConnections: 1,
  statementTimeoutMs: 30_000,
});
try {
  let total = 0;
  for (let changed = -1; changed !== 0; total += changed) changed = await resealSecrets(db.hot, box, BATCH);
  logger.info({ resealed: total, keyId: box.currentKeyId }, "secrets.resealed");
} catch (error) {
  logger.fatal({ error }, "secrets.failed");
  process.exitCode = error instanceof SecretKeyError ? EXIT_BAD_SETTINGS : 1;
} finally {
  await db.close();
}
