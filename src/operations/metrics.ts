import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { OUTCOME_KINDS } from "../core/attempt.ts";
import { END_REASONS } from "../core/delivery.ts";

/** For what a process counts, with how it fares itself in it already: CPU, memory, event loop. */
export function createRegistry(): Registry {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  return registry;
}

/** What a server counts. */
export type ServerMetrics = {
  readonly published: Counter<"outcome">;
  readonly refused: Counter<"quota">;
  readonly calls: Histogram<"rpc" | "code">;
};

/** What a server is asked when its metrics are. */
export type ServerState = {
  /** How much of each quota the tenant that is nearest to it has used. */
  readonly quotaShares: () => Readonly<Record<"rate" | "pending", number>>;
  /** Events that wait for a commit. */
  readonly queuedEvents: () => number;
};

export function createServerMetrics(registry: Registry, { quotaShares, queuedEvents }: ServerState): ServerMetrics {
  const registers = [registry];
  new Gauge({
    name: "nuncio_publish_queue_events",
    help: "Events that wait in the server for a commit. Near 20,000 publishes are refused as SERVER_BUSY.",
    registers,
    collect() {
      this.set(queuedEvents());
    },
  });
  new Gauge({
    name: "nuncio_tenant_quota_used_ratio",
    help: "How much of a quota the tenant that is nearest to it has used, from 0 to 1: at 1 its publishes are refused.",
    labelNames: ["quota"],
    registers,
    collect() {
      for (const [quota, share] of Object.entries(quotaShares())) this.set({ quota }, share);
    },
  });
  const metrics: ServerMetrics = {
    published: new Counter({
      name: "nuncio_published_events_total",
      help: "Events that were asked to be stored, by what became of them: accepted, duplicate, conflict.",
      labelNames: ["outcome"],
      registers,
    }),
    refused: new Counter({
      name: "nuncio_quota_refusals_total",
      help: "Events refused since their tenant was over a quota, by quota.",
      labelNames: ["quota"],
      registers,
    }),
    calls: new Histogram({
      name: "nuncio_rpc_seconds",
      help: "How long calls took in the server, by RPC and by the code they ended with.",
      labelNames: ["rpc", "code"],
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
      registers,
    }),
  };
  for (const outcome of ["accepted", "duplicate", "conflict"]) metrics.published.inc({ outcome }, 0);
  for (const quota of ["rate", "pending"]) metrics.refused.inc({ quota }, 0);
  return metrics;
}

/** What a worker counts. Never a tenant, a subscription or a user in a label: their number has no bound. */
export type WorkerMetrics = {
  readonly attempts: Counter<"outcome">;
  readonly stale: Counter;
  readonly leasesLost: Counter;
  readonly ended: Counter<"end_reason">;
  readonly stranded: Counter;
  readonly released: Counter;
  readonly failedSteps: Counter<"step">;
  readonly transitions: Counter<"transition">;
  readonly workers: Gauge;
  readonly duration: Histogram<"outcome">;
  readonly latency: Histogram;
  readonly deliveries: Gauge<"state">;
  readonly due: Gauge;
  readonly oldestDue: Gauge;
  readonly redriven: Counter;
  readonly vacuums: Counter;
  readonly dead: Gauge;
  readonly connections: Gauge<"process" | "state">;
  readonly snapshotSeconds: Gauge;
  readonly snapshotTransactions: Gauge;
};

/** What a worker is asked when its metrics are; undefined before it has begun. */
export type WorkerState = {
  readonly inFlight: number;
  readonly slots: number;
  readonly unrecorded: number;
  readonly breakers: Readonly<Record<string, number>>;
};

export function createWorkerMetrics(registry: Registry, state: () => WorkerState | undefined): WorkerMetrics {
  const registers = [registry];
  new Gauge({
    name: "nuncio_worker_slots",
    help: "Requests that this worker makes at once at most (NUNCIO_WORKER_CONCURRENCY), and those on their way: total, used.",
    labelNames: ["slots"],
    registers,
    collect() {
      const { slots = 0, inFlight = 0 } = state() ?? {};
      this.set({ slots: "total" }, slots);
      this.set({ slots: "used" }, inFlight);
    },
  });
  new Gauge({
    name: "nuncio_worker_unrecorded_attempts",
    help: "Attempts that are over and not written down yet: grows while Postgres is away or slow. Claims stop at four per slot.",
    registers,
    collect() {
      this.set(state()?.unrecorded ?? 0);
    },
  });
  new Gauge({
    name: "nuncio_breakers",
    help: "Subscriptions that this worker owns and knows something of, by the state of their breaker: closed, open, half_open.",
    labelNames: ["state"],
    registers,
    collect() {
      for (const [name, count] of Object.entries(state()?.breakers ?? {})) this.set({ state: name }, count);
    },
  });
  const metrics: WorkerMetrics = {
    attempts: new Counter({
      name: "nuncio_delivery_attempts_total",
      help: "Requests made to receivers and recorded, by what they met.",
      labelNames: ["outcome"],
      registers,
    }),
    stale: new Counter({
      name: "nuncio_stale_records_total",
      help: "Attempts whose lease had passed on before they were recorded: a worker stood still, or Postgres was away.",
      registers,
    }),
    leasesLost: new Counter({
      name: "nuncio_leases_lost_total",
      help: "Deliveries that were claimed again since their lease had ended without a record: a worker died or stood still.",
      registers,
    }),
    ended: new Counter({
      name: "nuncio_deliveries_ended_total",
      help: "Deliveries that ended, by their end reason; DELIVERED for a 2xx.",
      labelNames: ["end_reason"],
      registers,
    }),
    stranded: new Counter({
      name: "nuncio_stranded_deliveries_total",
      help: "Deliveries that waited in their user's order behind nothing until the sweeper found them. Should stay 0.",
      registers,
    }),
    released: new Counter({
      name: "nuncio_released_deliveries_total",
      help: "Claimed deliveries that were handed back without an attempt.",
      registers,
    }),
    failedSteps: new Counter({
      name: "nuncio_worker_failures_total",
      help: "Steps of the worker that failed and are tried again, by step.",
      labelNames: ["step"],
      registers,
    }),
    transitions: new Counter({
      name: "nuncio_subscription_transitions_total",
      help: "Subscriptions that began to fail, recovered, or were disabled by us.",
      labelNames: ["transition"],
      registers,
    }),
    workers: new Gauge({
      name: "nuncio_workers",
      help: "Workers that live, as this one sees it.",
      registers,
    }),
    duration: new Histogram({
      name: "nuncio_delivery_attempt_seconds",
      help: "How long attempts took, from the start of name resolution to their end, by what they met.",
      labelNames: ["outcome"],
      buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20],
      registers,
    }),
    latency: new Histogram({
      name: "nuncio_delivery_latency_seconds",
      help: "From the moment an event was accepted to the end of the attempt that delivered it. A redrive counts from then as well.",
      buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60, 300, 3_600, 86_400],
      registers,
    }),
    deliveries: new Gauge({
      name: "nuncio_outbox_deliveries",
      help: "Unfinished deliveries of all tenants by state: pending, waiting (behind an earlier one of the user), delivering. Counted every 15 s; of several workers each tells the same.",
      labelNames: ["state"],
      registers,
    }),
    due: new Gauge({
      name: "nuncio_outbox_due",
      help: "Deliveries that are due, of subscriptions that are enabled and neither held nor broken. Counted every 15 s.",
      registers,
    }),
    oldestDue: new Gauge({
      name: "nuncio_outbox_oldest_due_seconds",
      help: "For how long the oldest of those has been due: grows when workers do not keep up, or one receiver is slower than its events.",
      registers,
    }),
    redriven: new Counter({
      name: "nuncio_redriven_deliveries_total",
      help: "Deliveries that bulk redrives have made pending.",
      registers,
    }),
    vacuums: new Counter({
      name: "nuncio_outbox_vacuums_total",
      help: "Vacuums of the outbox that this worker made itself.",
      registers,
    }),
    dead: new Gauge({
      name: "nuncio_outbox_dead_rows",
      help: "Dead rows that this worker's last vacuum had to leave: while they grow, a transaction is open for too long.",
      registers,
    }),
    connections: new Gauge({
      name: "nuncio_postgres_connections",
      help: "Connections of all servers and workers to Postgres, as it sees them, by process (server, worker) and state (active, idle, idle_in_transaction). Counted every 15 s.",
      labelNames: ["process", "state"],
      registers,
    }),
    snapshotSeconds: new Gauge({
      name: "nuncio_postgres_oldest_snapshot_seconds",
      help: "For how long the oldest transaction is open that keeps dead rows from being cleared away; 0 for none, and for a replication slot. Looked at every 15 s.",
      registers,
    }),
    snapshotTransactions: new Gauge({
      name: "nuncio_postgres_xmin_age",
      help: "How many transactions have begun since that one, or since the oldest a replication slot still needs.",
      registers,
    }),
  };
  // From 0 on: `increase` sees nothing in a series that begins at 1, and the first dead letter is the one to hear of.
  for (const outcome of OUTCOME_KINDS) metrics.attempts.inc({ outcome }, 0);
  for (const end_reason of ["DELIVERED", ...END_REASONS]) metrics.ended.inc({ end_reason }, 0);
  for (const transition of ["failing", "recovered", "disabled"]) metrics.transitions.inc({ transition }, 0);
  return metrics;
}
