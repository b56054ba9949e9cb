import type { Sql } from "postgres";
import type { SecretBox } from "../core/encryption.ts";
import type { Uuid } from "../core/ids.ts";

type SealedRow = {
  table: "signing_secrets" | "headers";
  key: number;
  key_id: string;
  ciphertext: Buffer;
  tenant_id: string;
  subscription_uuid: Uuid;
};

/**
 * Opens one stored secret per key id, so that a wrong or missing key stops a process at its start and not at its first
 * delivery. Throws the reason, which names the key's id.
 */
export async function checkSecretKeys(sql: Sql, box: SecretBox): Promise<void> {
  const rows = await sql<SealedRow[]>`
    SELECT DISTINCT ON (x.table, x.key_id) x.* FROM (${allSealed(sql)}) AS x ORDER BY x.table, x.key_id, x.key`;
  for (const row of rows) open(box, row);
}

/**
 * Seals up to `limit` secrets anew that are not under the current key, and returns how many there were; 0 means that all
 * older keys can go. Safe beside running servers and workers: they open both. Ended subscriptions included.
 */
export async function resealSecrets(sql: Sql, box: SecretBox, limit: number): Promise<number> {
  const rows = await sql<SealedRow[]>`
    SELECT x.* FROM (${allSealed(sql)}) AS x WHERE x.key_id <> ${box.currentKeyId} ORDER BY x.table, x.key LIMIT ${limit}`;
  for (const row of rows) {
    const { keyId, ciphertext } = box.seal(open(box, row), contextOf(row));
    // Only over what was read: a secret that was replaced meanwhile is not put back.
    if (row.table === "signing_secrets") {
      await sql`
        UPDATE nuncio.signing_secrets SET key_id = ${keyId}, ciphertext = ${ciphertext}
        WHERE secret_key = ${row.key} AND ciphertext = ${row.ciphertext}`;
    } else {
      await sql`
        UPDATE nuncio.webhook_subscriptions SET headers_key_id = ${keyId}, headers_ciphertext = ${ciphertext}
        WHERE subscription_key = ${row.key} AND headers_ciphertext = ${row.ciphertext}`;
    }
  }
  return rows.length;
}

function allSealed(sql: Sql) {
  return sql`
    SELECT 'signing_secrets' AS table, k.secret_key AS key, k.key_id, k.ciphertext, t.tenant_id, s.subscription_uuid
    FROM nuncio.signing_secrets k
    JOIN nuncio.webhook_subscriptions s ON s.subscription_key = k.subscription_key
    JOIN nuncio.tenants t ON t.tenant_key = s.tenant_key
    UNION ALL
    SELECT 'headers', s.subscription_key, s.headers_key_id, s.headers_ciphertext, t.tenant_id, s.subscription_uuid
    FROM nuncio.webhook_subscriptions s
    JOIN nuncio.tenants t ON t.tenant_key = s.tenant_key
    WHERE s.headers_key_id IS NOT NULL`;
}

function open(box: SecretBox, row: SealedRow) {
  return box.unseal({ keyId: row.key_id, ciphertext: row.ciphertext }, contextOf(row));
}

function contextOf(row: SealedRow) {
  const purpose = row.table === "headers" ? ("headers" as const) : ("signing_secret" as const);
  return { purpose, tenantId: row.tenant_id, subscriptionId: row.subscription_uuid };
}
