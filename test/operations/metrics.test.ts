import { readFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import type { Uuid } from "../../src/core/ids.ts";
import type { Decision } from "../../src/core/retry-policy.ts";
import type { LoopEvent } from "../../src/delivery/loop.ts";
import { createRegistry, createServerMetrics, createWorkerMetrics } from "../../src/operations/metrics.ts";
import { openOperationsPort } from "../../src/operations/operations-port.ts";
import type { AttemptRecord } from "../../src/store/outbox/record.ts";
import { countEvent } from "../../src/worker-events.ts";
import { cleanUp } from "../support/clean-up.ts";

const attempted = (decision: Decision, stale = false): LoopEvent => {
  const isDelivered = decision.kind === "delivered";
  const record: AttemptRecord = {
    subscriptionKey: 4711,
    eventKey: "0199aa00-0000-7000-8000-000000000000" as Uuid,
    leaseToken: 1n,
    userKey: null,
    tenantKey: 4712,
    number: 1,
    startedAtMs: 0,
    durationMs: 1,
    phases: {},
    outcome: isDelivered
      ? { kind: "delivered", httpStatus: 200 }
      : { kind: "http_status", httpStatus: 500, detail: "HTTP 500", excerpt: "" },
    decision,
  };
  return { kind: "attempted", record, stale };
};

describe("/metrics", () => {
  it("counts every kind of thing that happens in a worker, and names no tenant and no subscription", async () => {
    const registry = createRegistry();
    const metrics = createWorkerMetrics(registry, () => undefined);
    const port = await openOperationsPort({ host: "127.0.0.1", port: 0 }, { registry, findWaits: async () => [] });
    cleanUp(() => port.close());
    const events: LoopEvent[] = [
      attempted({ kind: "delivered" }),
      attempted({ kind: "delivered" }, true),
      attempted({ kind: "retry", delayMs: 1 }),
      attempted({ kind: "dead_letter", reason: "RETRIES_EXHAUSTED" }),
      { kind: "ended", reason: "ORDER_HOLD", count: 3 },
      { kind: "stranded", count: 2 },
      { kind: "released", count: 4 },
      { kind: "failed", step: "record", error: new Error("away") },
      { kind: "lane_failing", lane: 4711 },
      { kind: "lane_recovered", lane: 4711 },
      { kind: "lane_disabled", lane: 4711, reason: "gone" },
      { kind: "workers", count: 5 },
      { kind: "looked", lanes: 1 },
    ];
    for (const event of events) countEvent(metrics, event);
    const response = await fetch(`http://127.0.0.1:${port.port}/metrics`);
    expect(response.headers.get("content-type")).toContain("text/plain");
    const text = await response.text();
    const lines = text.split("\n").filter((line) => line.startsWith("nuncio_"));
    expect(lines).toEqual(
      expect.arrayContaining([
        'nuncio_delivery_attempts_total{outcome="delivered"} 2',
        'nuncio_delivery_attempts_total{outcome="http_status"} 2',
        "nuncio_stale_records_total 1",
        'nuncio_deliveries_ended_total{end_reason="DELIVERED"} 1',
        'nuncio_deliveries_ended_total{end_reason="RETRIES_EXHAUSTED"} 1',
        'nuncio_deliveries_ended_total{end_reason="ORDER_HOLD"} 3',
        "nuncio_stranded_deliveries_total 2",
        "nuncio_released_deliveries_total 4",
        'nuncio_worker_failures_total{step="record"} 1',
        'nuncio_subscription_transitions_total{transition="failing"} 1',
        'nuncio_subscription_transitions_total{transition="recovered"} 1',
        'nuncio_subscription_transitions_total{transition="disabled"} 1',
        "nuncio_workers 5",
      ]),
    );
    expect(lines.join("\n")).not.toMatch(/471[12]|0199aa00/);
    expect(text).toContain("process_cpu_seconds_total");
  });
});

function existing(): string[] {
  const registry = createRegistry();
  createWorkerMetrics(registry, () => undefined);
  createServerMetrics(registry, { quotaShares: () => ({ rate: 0, pending: 0 }), queuedEvents: () => 0 });
  return registry.getMetricsAsArray().flatMap(({ name }) => (name.startsWith("nuncio_") ? [name] : []));
}

/** Every metric that a page names; those of a histogram by the histogram's name. */
async function namedIn(page: string): Promise<string[]> {
  const text = await readFile(new URL(`../../docs/${page}`, import.meta.url), "utf8");
  const names =
    text.match(/nuncio_[a-z_]+/g)?.filter((name) => !name.startsWith("nuncio_server") && name !== "nuncio_worker") ??
    [];
  return [...new Set(names.map((name) => name.replace(/_seconds_(bucket|count|sum)$/, "_seconds")))];
}

describe("the pages for operators", () => {
  it.each(["operating.md", "grafana/nuncio.json"])(
    "%s names every metric that there is, and none that there is not",
    async (page) => {
      expect((await namedIn(page)).toSorted()).toEqual(existing().toSorted());
    },
  );

  it("the alerting rules name none that there is not", async () => {
    const unknown = (await namedIn("prometheus/alerts.yml")).filter((name) => !existing().includes(name));
    expect(unknown).toEqual([]);
  });

  it("the dashboard is one that Grafana can read: unique panels, each with a title, a meaning and a query", async () => {
    const dashboard = JSON.parse(await readFile(new URL("../../docs/grafana/nuncio.json", import.meta.url), "utf8"));
    const panels = dashboard.panels as {
      id: number;
      type: string;
      title: string;
      description?: string;
      targets?: { expr: string }[];
    }[];
    expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
    for (const { type, title, description, targets } of panels.filter((panel) => panel.type !== "row")) {
      expect({ type, title, description, targets }).toMatchObject({
        type: "timeseries",
        title: expect.stringMatching(/./),
        description: expect.stringMatching(/\.$/),
        targets: expect.arrayContaining(
          [{ expr: expect.stringContaining("nuncio_") }].map((target) => expect.objectContaining(target)),
        ),
      });
    }
  });
});
