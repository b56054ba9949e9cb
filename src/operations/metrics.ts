import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";

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
};

/** `shares`: how much of each quota the tenant that is nearest to it has used. */
export function createServerMetrics(
  registry: Registry,
  shares: () => Readonly<Record<"rate" | "pending", number>>,
): ServerMetrics {
  const registers = [registry];
  new Gauge({
    name: "nuncio_tenant_quota_used_ratio",
    help: "How much of a quota the tenant that is nearest to it has used, from 0 to 1: at 1 its publishes are refused.",
    labelNames: ["quota"],
    registers,
    collect() {
      for (const [quota, share] of Object.entries(shares())) this.set({ quota }, share);
    },
  });
  return {
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
  };
}

/** What a worker counts. Never a tenant, a subscription or a user in a label: their number has no bound. */
export type WorkerMetrics = {
  readonly attempts: Counter<"outcome">;
  readonly stale: Counter;
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
};

export function createWorkerMetrics(registry: Registry): WorkerMetrics {
  const registers = [registry];
  return {
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
  };
}
