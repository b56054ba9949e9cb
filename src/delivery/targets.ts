import type { Sql } from "postgres";
import type { SecretBox } from "../core/encryption.ts";
import { type SigningKey, toSigningKey } from "../core/signature.ts";
import { loadTargets, type Target } from "../store/targets.ts";
import { type Destination, toDestination } from "./send.ts";

/** A target whose URL is taken apart and whose keys are ready. */
export type ReadyTarget = Omit<Target, "url" | "signingSecrets"> & {
  readonly destination: Destination;
  /** The current one first. */
  readonly signingKeys: readonly (SigningKey & { readonly endsAtMs: number | undefined })[];
};

/** What is claimed names the revision that the claim saw; whoever has an older one loads it anew. */
export type TargetCache = {
  /** Makes sure that `get` knows each of these at its revision or a later one. */
  refresh(claimed: readonly { subscriptionKey: number; revision: number }[]): Promise<void>;
  /** Undefined if the subscription was deleted meanwhile. */
  get(subscriptionKey: number): ReadyTarget | undefined;
};

const MAX_KEPT = 20_000;

/**
 * Keeps targets for as long as their revision is the one in the database. A change is never missed: the revision comes
 * with each claim, so what is kept is only ever used for a claim that has seen the same.
 */
export function cacheTargets(sql: Sql, box: SecretBox): TargetCache {
  const kept = new Map<number, ReadyTarget>();
  return {
    async refresh(claimed) {
      const outdated = new Set<number>();
      for (const { subscriptionKey, revision } of claimed) {
        if ((kept.get(subscriptionKey)?.revision ?? 0) < revision) outdated.add(subscriptionKey);
      }
      if (outdated.size === 0) return;
      if (kept.size + outdated.size > MAX_KEPT) kept.clear();
      for (const key of outdated) kept.delete(key);
      for (const target of await loadTargets(sql, box, [...outdated]))
        kept.set(target.subscriptionKey, toReady(target));
    },
    get: (subscriptionKey) => kept.get(subscriptionKey),
  };
}

export function toReady({ url, signingSecrets, ...target }: Target): ReadyTarget {
  return {
    ...target,
    destination: toDestination(new URL(url)),
    signingKeys: signingSecrets.map(({ secret, endsAtMs }) => ({ ...toSigningKey(secret), endsAtMs })),
  };
}

/** The keys that sign at this time of the database's clock: a replaced one until its rotation ends. */
export function keysAt({ signingKeys }: ReadyTarget, databaseTimeMs: number): readonly SigningKey[] {
  return signingKeys.filter(({ endsAtMs }) => endsAtMs === undefined || databaseTimeMs < endsAtMs);
}
