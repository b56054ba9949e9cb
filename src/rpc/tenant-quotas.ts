import { ResourceExhaustedError } from "../core/errors.ts";
import { nextTokenAtMs, refill, secondsBucket, type TokenBucket, take } from "../core/token-bucket.ts";

export type Quota = "rate" | "pending";

export type TenantQuotaOptions = {
  /** Events per second; 0: no limit. */
  readonly eventsPerSecond: number;
  /** Pending deliveries; 0: no limit. */
  readonly maxPending: number;
  /** A monotonic clock, in milliseconds. */
  readonly nowMs: () => number;
  readonly onRefused: (quota: Quota) => void;
};

/** How soon a tenant with too much pending may ask again: when it is counted anew. */
const PENDING_RETRY_AFTER_MS = 10_000;
/** Buckets kept; those that are full again are forgotten first, and mean the same as none. */
const MOST_BUCKETS = 10_000;

/**
 * What one tenant may take of a server. The rate is this server's own count; what is pending is counted by the database now
 * and then, and what is appended here meanwhile comes on top.
 */
export class TenantQuotas {
  readonly #options: TenantQuotaOptions;
  readonly #buckets = new Map<string, TokenBucket>();
  #pending = new Map<string, number>();

  constructor(options: TenantQuotaOptions) {
    this.#options = options;
  }

  /** Takes one event of the tenant in, or throws RESOURCE_EXHAUSTED. */
  admit(tenantId: string): void {
    const { maxPending, onRefused } = this.#options;
    if (maxPending > 0 && (this.#pending.get(tenantId) ?? 0) >= maxPending) {
      onRefused("pending");
      const message = `the tenant has ${maxPending} pending deliveries or more`;
      throw new ResourceExhaustedError("TOO_MANY_PENDING", message, { retryAfterMs: PENDING_RETRY_AFTER_MS });
    }
    this.#takeToken(tenantId);
  }

  #takeToken(tenantId: string): void {
    const { eventsPerSecond, nowMs, onRefused } = this.#options;
    if (eventsPerSecond === 0) return;
    const now = nowMs();
    const bucket = refill(this.#buckets.get(tenantId) ?? secondsBucket(eventsPerSecond, now), now);
    if (bucket.tokens < 1) {
      onRefused("rate");
      const message = `the tenant publishes more than ${eventsPerSecond} events a second`;
      const retryAfterMs = Math.ceil(nextTokenAtMs(bucket) - now);
      throw new ResourceExhaustedError("RATE_EXCEEDED", message, { retryAfterMs });
    }
    if (this.#buckets.size >= MOST_BUCKETS) this.#forgetFull(now);
    this.#buckets.set(tenantId, take(bucket, 1));
  }

  #forgetFull(now: number): void {
    for (const [tenantId, bucket] of this.#buckets) {
      if (refill(bucket, now).tokens >= bucket.most) this.#buckets.delete(tenantId);
    }
  }

  /** So many deliveries have become pending. */
  added(tenantId: string, deliveries: number): void {
    if (this.#options.maxPending > 0) this.#pending.set(tenantId, (this.#pending.get(tenantId) ?? 0) + deliveries);
  }

  /** What the database has counted; tenants that are not named have little. */
  counted(pending: ReadonlyMap<string, number>): void {
    this.#pending = new Map(pending);
  }

  /** How much of each quota the tenant that is nearest to it has used, from 0 to 1: to be told before it bites. */
  highestShares(): Readonly<Record<Quota, number>> {
    const { maxPending, nowMs } = this.#options;
    const now = nowMs();
    let rate = 0;
    for (const bucket of this.#buckets.values()) rate = Math.max(rate, 1 - refill(bucket, now).tokens / bucket.most);
    let pending = 0;
    if (maxPending > 0) for (const count of this.#pending.values()) pending = Math.max(pending, count / maxPending);
    return { rate, pending: Math.min(1, pending) };
  }
}
