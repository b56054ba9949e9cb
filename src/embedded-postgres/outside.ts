import { createHash } from "node:crypto";
import { chmod, mkdir } from "node:fs/promises";

/** Where data and binaries go when we are root and the account that Postgres runs as cannot reach the project. */
export const OUTSIDE = "/var/lib/nuncio";
export const OWN_POSTGRES_HINT = "Or set NUNCIO_DATABASE_URL to a Postgres (15 or later) of your own.";

export function shortHash(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 16);
}

export async function makeReachable(directory: string): Promise<void> {
  await mkdir(directory, { recursive: true });
  // Whatever the umask is.
  await chmod(directory, 0o755);
}
