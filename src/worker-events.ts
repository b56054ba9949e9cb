import { uuidV7EpochMs } from "./core/ids.ts";
import type { EraserEvent } from "./delivery/eraser.ts";
import type { LoopEvent } from "./delivery/loop.ts";
import type { RedriverEvent } from "./delivery/redriver.ts";
import type { TesterEvent } from "./delivery/tester.ts";
import type { VacuumEvent } from "./delivery/vacuumer.ts";
import type { Logger } from "./logger.ts";
import type { WorkerMetrics } from "./operations/metrics.ts";
import type { AttemptRecord } from "./store/outbox/record.ts";

export type WorkerEvent = EraserEvent | LoopEvent | RedriverEvent | TesterEvent | VacuumEvent;

/** Counts what happens in a worker. */
export function countEvent(metrics: WorkerMetrics, event: WorkerEvent): void {
  switch (event.kind) {
    case "attempted": {
      const { record, stale } = event;
      metrics.attempts.inc({ outcome: record.outcome.kind });
      metrics.duration.observe({ outcome: record.outcome.kind }, record.durationMs / 1_000);
      if (record.decision.kind === "delivered" && !stale) {
        metrics.latency.observe(Math.max(0, latencyMs(record)) / 1_000);
      }
      if (stale) metrics.stale.inc();
      else if (record.decision.kind === "delivered") metrics.ended.inc({ end_reason: "DELIVERED" });
      else if (record.decision.kind === "dead_letter") metrics.ended.inc({ end_reason: record.decision.reason });
      break;
    }
    case "ended":
      metrics.ended.inc({ end_reason: event.reason }, event.count);
      break;
    case "stranded":
      metrics.stranded.inc(event.count);
      break;
    case "released":
      metrics.released.inc(event.count);
      break;
    case "leases_lost":
      metrics.leasesLost.inc(event.count);
      break;
    case "failed":
      metrics.failedSteps.inc({ step: event.step });
      break;
    case "lane_failing":
    case "lane_recovered":
    case "lane_disabled":
      metrics.transitions.inc({ transition: event.kind.slice("lane_".length) });
      break;
    case "workers":
      metrics.workers.set(event.count);
      break;
    case "redriven":
      metrics.redriven.inc(event.count);
      break;
    case "redrive_ended":
    case "erasure_ended":
      break;
    case "vacuumed":
      metrics.vacuums.inc();
      metrics.dead.set(event.deadAfter);
      break;
    case "looked":
      break;
  }
}

/** Both times are the database's: the key's, and that of the attempt. */
function latencyMs({ eventKey, startedAtMs, durationMs }: AttemptRecord): number {
  return startedAtMs + durationMs - uuidV7EpochMs(eventKey);
}

/** One wide line per attempt, and one for whatever else an operator may ask about; ids and figures only. */
export function logEvent(logger: Logger, event: WorkerEvent): void {
  switch (event.kind) {
    case "attempted": {
      const { record, stale } = event;
      logger.info(
        {
          ...record.ids,
          subscriptionKey: record.subscriptionKey,
          eventKey: record.eventKey,
          attempt: record.number,
          outcome: record.outcome.kind,
          httpStatus: record.outcome.httpStatus,
          detail: "detail" in record.outcome ? record.outcome.detail : undefined,
          durationMs: Math.round(record.durationMs),
          decision: record.decision.kind,
          delayMs: record.decision.kind === "retry" ? record.decision.delayMs : undefined,
          endReason: record.decision.kind === "dead_letter" ? record.decision.reason : undefined,
          stale,
        },
        "delivery.attempted",
      );
      break;
    }
    case "ended":
      logger.warn({ reason: event.reason, count: event.count }, "delivery.ended");
      break;
    case "stranded":
      logger.error({ count: event.count }, "delivery.stranded");
      break;
    case "released":
      logger.info({ count: event.count }, "delivery.released");
      break;
    case "leases_lost":
      logger.warn({ count: event.count }, "delivery.leases_lost");
      break;
    case "failed":
      logger.error({ step: event.step, error: event.error }, "delivery.step_failed");
      break;
    case "lane_failing":
      logger.warn({ subscriptionId: event.subscriptionId, subscriptionKey: event.lane }, "subscription.failing");
      break;
    case "lane_recovered":
      logger.info({ subscriptionId: event.subscriptionId, subscriptionKey: event.lane }, "subscription.recovered");
      break;
    case "lane_disabled":
      logger.warn(
        { subscriptionId: event.subscriptionId, subscriptionKey: event.lane, reason: event.reason },
        "subscription.disabled",
      );
      break;
    case "workers":
      logger.info({ count: event.count }, "worker.membership");
      break;
    case "redriven":
      break;
    case "erasure_ended":
      logger.info({ erasure: event.erasure }, "erasure.ended");
      break;
    case "redrive_ended":
      logger.info({ redrive: event.redrive, subscriptionKey: event.lane }, "redrive.ended");
      break;
    case "vacuumed": {
      const { durationMs, deadBefore, deadAfter } = event;
      logger.info({ durationMs: Math.round(durationMs), deadBefore, deadAfter }, "outbox.vacuumed");
      break;
    }
    case "looked":
      break;
  }
}
