import type { Sql } from "postgres";
import { fromCode } from "../core/codes.ts";
import type { SecretBox } from "../core/encryption.ts";
import type { Uuid } from "../core/ids.ts";
import type { Secret } from "../core/secret.ts";
import { CONTENT_TYPES, type ContentType } from "../core/subscription.ts";

/** What a worker needs to send a subscription's deliveries. */
export type Target = {
  readonly subscriptionKey: number;
  readonly revision: number;
  readonly tenantKey: number;
  readonly tenantId: string;
  readonly subscriptionUuid: Uuid;
  readonly url: string;
  readonly contentType: ContentType;
  /** Requests at once; undefined: the operator's bound. */
  readonly maxInFlight: number | undefined;
  readonly requestsPerSecond: number | undefined;
  /** Undefined: the operator's schedule. */
  readonly retryDelaysMs: readonly number[] | undefined;
  readonly headers: Readonly<Record<string, string>>;
  /** All that sign now: the current secret, and while a rotation lasts the one before. */
  readonly signingSecrets: readonly TargetSecret[];
};

/** `endsAtMs`: when it stops signing, by the database's clock; undefined for the current one. */
export type TargetSecret = { readonly secret: Secret; readonly endsAtMs: number | undefined };

/**
 * The targets of these subscriptions as they are now, secrets opened. Of every tenant: only the worker calls this, for
 * deliveries that it has claimed. One that was deleted meanwhile is left out.
 */
export async function loadTargets(sql: Sql, box: SecretBox, subscriptionKeys: readonly number[]): Promise<Target[]> {
  const rows = await sql<TargetRow[]>`
    SELECT s.subscription_key, s.revision, s.tenant_key, t.tenant_id, s.subscription_uuid, s.url, s.content_type,
      s.max_in_flight, s.requests_per_second, s.retry_delays_ms,
      s.headers_key_id, s.headers_ciphertext,
      json_agg(k.key_id ORDER BY k.secret_key DESC) AS key_ids,
      json_agg(encode(k.ciphertext, 'base64') ORDER BY k.secret_key DESC) AS ciphertexts,
      json_agg(extract(epoch FROM k.expires_at)::float8 * 1000 ORDER BY k.secret_key DESC) AS ends_ms
    FROM nuncio.webhook_subscriptions s
    JOIN nuncio.tenants t ON t.tenant_key = s.tenant_key
    JOIN nuncio.signing_secrets k ON k.subscription_key = s.subscription_key
      AND (k.expires_at IS NULL OR k.expires_at > now())
    WHERE s.subscription_key = ANY (${subscriptionKeys as number[]}::integer[]) AND s.deleted_at IS NULL
    GROUP BY s.subscription_key, t.tenant_id`;
  return rows.map((row) => toTarget(box, row));
}

type TargetRow = {
  subscription_key: number;
  revision: number;
  tenant_key: number;
  tenant_id: string;
  subscription_uuid: Uuid;
  url: string;
  content_type: number;
  max_in_flight: number | null;
  requests_per_second: number | null;
  retry_delays_ms: number[] | null;
  headers_key_id: string | null;
  headers_ciphertext: Buffer | null;
  key_ids: string[];
  ciphertexts: string[];
  ends_ms: (number | null)[];
};

function toTarget(box: SecretBox, row: TargetRow): Target {
  const owner = { tenantId: row.tenant_id, subscriptionId: row.subscription_uuid };
  const headers =
    row.headers_key_id !== null && row.headers_ciphertext !== null
      ? box.unseal({ keyId: row.headers_key_id, ciphertext: row.headers_ciphertext }, { purpose: "headers", ...owner })
      : undefined;
  return {
    subscriptionKey: row.subscription_key,
    revision: row.revision,
    tenantKey: row.tenant_key,
    tenantId: row.tenant_id,
    subscriptionUuid: row.subscription_uuid,
    url: row.url,
    contentType: fromCode(CONTENT_TYPES, row.content_type),
    maxInFlight: row.max_in_flight ?? undefined,
    requestsPerSecond: row.requests_per_second ?? undefined,
    retryDelaysMs: row.retry_delays_ms ?? undefined,
    headers: headers ? (JSON.parse(headers.reveal()) as Record<string, string>) : {},
    signingSecrets: row.ciphertexts.map((ciphertext, i) => ({
      secret: box.unseal(
        { keyId: row.key_ids[i] as string, ciphertext: Buffer.from(ciphertext, "base64") },
        { purpose: "signing_secret", ...owner },
      ),
      endsAtMs: row.ends_ms[i] ?? undefined,
    })),
  };
}
