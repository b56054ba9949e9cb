import type { SubscriptionOrdering } from "../../src/core/subscription.ts";
import { median, type Result, type Row } from "../bench.ts";
import { type Drain, drainOutbox } from "../drain.ts";

/** What one delivery costs at load: statements, write-ahead log, CPU of the worker and of Postgres. */
export const cost: Row = {
  name: "cost",
  async measure(bench) {
    const results: Result[] = [];
    for (const [name, options] of [
      ["1 subscription", { subscriptions: 1, ordering: "NONE", maxInFlight: 256 }],
      ["100 subscriptions", { subscriptions: 100, ordering: "NONE", maxInFlight: undefined }],
      ["1 subscription, PER_USER", { subscriptions: 1, ordering: "PER_USER", maxInFlight: 256 }],
      ["100 subscriptions, PER_USER", { subscriptions: 100, ordering: "PER_USER", maxInFlight: undefined }],
    ] as const) {
      const drains: Drain[] = [];
      for (let round = 1; round <= bench.size.rounds; round++) {
        const drain = await drainOutbox(bench, options);
        drains.push(drain);
        bench.progress(`cost ${round}/${bench.size.rounds}: ${name} ${describe(drain)}`);
      }
      results.push(...toResults(name, options.ordering, drains));
    }
    return results;
  },
};

function describe({ statements, walKiB, workerCpuUs, postgresCpuUs }: Drain): string {
  const [node, postgres] = [workerCpuUs.toFixed(0), postgresCpuUs.toFixed(0)];
  return `${statements.toFixed(3)} statements, ${walKiB.toFixed(2)} KiB, ${node} µs Node, ${postgres} µs Postgres`;
}

function toResults(name: string, ordering: SubscriptionOrdering, drains: readonly Drain[]): Result[] {
  const of = (figure: keyof Drain, unit: Result["unit"], digits: number) => ({
    value: median(drains.map((drain) => drain[figure])),
    unit,
    figures: drains.map((drain) => drain[figure].toFixed(digits)).join(", "),
  });
  const statements = { floor: 0.05, goal: 0.03, better: "less" } as const;
  const wal =
    ordering === "NONE"
      ? ({ floor: 1.5, goal: 1, better: "less" } as const)
      : ({ floor: 2, goal: 1.5, better: "less" } as const);
  return [
    { what: `SQL statements per delivery, ${name}`, ...of("statements", "statements", 3), target: statements },
    { what: `WAL per delivery, ${name}`, ...of("walKiB", "KiB", 2), target: wal },
    { what: `worker's CPU per delivery, ${name}`, ...of("workerCpuUs", "µs", 0) },
    { what: `Postgres' CPU per delivery, ${name}`, ...of("postgresCpuUs", "µs", 0) },
  ];
}
