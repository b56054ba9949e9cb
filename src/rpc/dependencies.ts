import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import type { SecretBox } from "../core/encryption.ts";
import type { SubscriptionBounds } from "../core/subscription.ts";
import type { GroupCommit } from "../store/outbox/group-commit.ts";
import type { WakeUp } from "../store/outbox/wake-up.ts";
import type { TenantQuotas } from "./tenant-quotas.ts";

/** What became of an event that was to be published. */
export type PublishOutcome = "accepted" | "duplicate" | "conflict";

/** What the handlers need, built once in `server.ts`. */
export type RpcDependencies = {
  readonly orm: PostgresJsDatabase;
  readonly groupCommit: GroupCommit;
  readonly wakeUp: WakeUp;
  readonly box: SecretBox;
  readonly bounds: SubscriptionBounds;
  readonly userAttributeKeys: ReadonlySet<string>;
  readonly maxEventBytes: number;
  readonly quotas: TenantQuotas;
  readonly onPublished: (outcome: PublishOutcome) => void;
  readonly maxSubscriptionsPerTenant: number;
  /** Milliseconds since 1970. */
  readonly now: () => number;
  readonly randomBytes: (count: number) => Buffer;
  readonly newUuidV7: () => string;
};
