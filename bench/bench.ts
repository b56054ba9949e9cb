import type { Plot } from "./plot.ts";
import type { BenchPostgres } from "./postgres.ts";
import type { Receiver } from "./receiver.ts";

/** What every row gets: one Postgres, one receiver, and how much to measure. */
export type Bench = {
  readonly postgres: BenchPostgres;
  readonly receiver: Receiver;
  readonly size: Size;
  readonly progress: (text: string) => void;
  /** Adds a drawing to the page. */
  readonly plot: (plot: Plot) => void;
};

/** How much is measured. `--quick` shows that everything runs; its figures mean little. */
export type Size = {
  /** How often each side of a comparison is measured, turn by turn. */
  readonly rounds: number;
  readonly deliveries: number;
  readonly calls: number;
  readonly batches: number;
  readonly latencySeconds: number;
  /** Rows of the row `backlog`: what was delivered before, and what waits for a dead receiver. */
  readonly finished: number;
  readonly pending: number;
  /** How long the row `pinned` keeps a transaction open. */
  readonly pinnedSeconds: number;
};

/** One line of the table. `value` is what the target speaks of: a ratio, a rate, a time. */
export type Result = {
  readonly what: string;
  readonly value: number;
  readonly unit: "ratio" | "events/s" | "ms" | "statements" | "KiB" | "µs";
  /** The figures behind it, for the reader. */
  readonly figures: string;
  /** Undefined where DESIGN section 9 names no target. */
  readonly target?: { readonly floor: number; readonly goal: number; readonly better: "more" | "less" };
};

export type Row = {
  readonly name: string;
  readonly measure: (bench: Bench) => Promise<Result[]>;
};

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const upper = Math.floor(sorted.length / 2);
  const lower = Math.ceil(sorted.length / 2) - 1;
  return ((sorted[lower] ?? Number.NaN) + (sorted[upper] ?? Number.NaN)) / 2;
}

/** The median of the ratios of each round: what shook the machine for a while shook both sides of a round. */
export function medianRatio(values: readonly number[], references: readonly number[]): number {
  return median(values.map((value, round) => value / (references[round] as number)));
}

export function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

export function perSecond(value: number): string {
  return `${Math.round(value).toLocaleString("en-US")}/s`;
}

/** A clock that all processes of the machine share, in milliseconds. */
export function sharedNowMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
