/** A rate limit in time: what may begin now, and when the next may. */
export type TokenBucket = {
  readonly perSecond: number;
  /** How many it holds at most, and so how many may begin at once. */
  readonly most: number;
  readonly tokens: number;
  readonly filledAtMs: number;
};

/** A tenth of a second's worth may begin at once: enough for claims that come every few milliseconds, and no burst. */
const BURST_SECONDS = 0.1;

/** An empty one: whoever takes a limit over does not know what the one before has just let through. */
export function emptyBucket(perSecond: number, nowMs: number): TokenBucket {
  return { perSecond, most: Math.max(1, perSecond * BURST_SECONDS), tokens: 0, filledAtMs: nowMs };
}

/** A full one that lets a whole second's worth through at once. */
export function secondsBucket(perSecond: number, nowMs: number): TokenBucket {
  return { perSecond, most: perSecond, tokens: perSecond, filledAtMs: nowMs };
}

export function refill(bucket: TokenBucket, nowMs: number): TokenBucket {
  const grown = bucket.tokens + (Math.max(0, nowMs - bucket.filledAtMs) / 1000) * bucket.perSecond;
  return { ...bucket, tokens: Math.min(bucket.most, grown), filledAtMs: nowMs };
}

/** Takes tokens out, or with a negative count puts back what was not used. */
export function take(bucket: TokenBucket, count: number): TokenBucket {
  return { ...bucket, tokens: bucket.tokens - count };
}

/** When there is a whole token, if nobody takes one. */
export function nextTokenAtMs(bucket: TokenBucket): number {
  const missing = Math.max(0, 1 - bucket.tokens);
  return bucket.filledAtMs + (missing / bucket.perSecond) * 1000;
}
