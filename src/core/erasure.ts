/** Append-only; the number in the proto and in the database is the place in the list plus one. */
export const ERASURE_STATES = ["RUNNING", "SUCCEEDED"] as const;
export type ErasureState = (typeof ERASURE_STATES)[number];
