import type { Sql } from "postgres";
import type { SecretBox } from "../core/encryption.ts";
import { formatDeliveryId } from "../core/ids.ts";
import { formatPingId, renderPing } from "../core/ping.ts";
import { answerTest, type TakenTest, takeTests } from "../store/subscription-tests.ts";
import { loadTargets } from "../store/targets.ts";
import { toRequestHeaders } from "./request-headers.ts";
import { type SendDependencies, send } from "./send.ts";
import { keysAt, toReady } from "./targets.ts";

export type TesterOptions = SendDependencies & {
  readonly sql: Sql;
  readonly box: SecretBox;
  readonly requestTimeoutMs: number;
  readonly maxResponseBytes: number;
  readonly pollIntervalMs: number;
  readonly onEvent: (event: TesterEvent) => void;
};

export type TesterEvent = { readonly kind: "failed"; readonly step: "test"; readonly error: unknown };

export type Tester = {
  /** A test may have been asked for. */
  wake(): void;
  /** Takes no more, and resolves when those on their way are over. */
  close(): Promise<void>;
};

/** Tests have slots of their own: however many are asked for, they take none from deliveries. */
const AT_ONCE = 4;
/** What an answer needs to get back to its server in time. */
const ANSWER_MS = 1_000;

/**
 * Makes the tests that servers ask for: one signed ping each, to where and how the subscription is sent to at this moment,
 * outside its order and its health.
 */
export function startTester(options: TesterOptions): Tester {
  const { sql, nowMs, pollIntervalMs, onEvent } = options;
  const underWay = new Set<Promise<void>>();
  let looking: Promise<void> | undefined;
  let lookAgain = false;
  let isClosed = false;

  async function look(): Promise<void> {
    do {
      lookAgain = false;
      try {
        const sentAtMs = nowMs();
        for (const test of await takeTests(sql, AT_ONCE - underWay.size)) {
          const made = makeTest(options, test, sentAtMs)
            .catch((error) => onEvent({ kind: "failed", step: "test", error }))
            .finally(() => {
              underWay.delete(made);
              wake();
            });
          underWay.add(made);
        }
      } catch (error) {
        onEvent({ kind: "failed", step: "test", error });
      }
    } while (lookAgain && !isClosed);
  }

  function wake(): void {
    lookAgain = true;
    if (isClosed || underWay.size >= AT_ONCE) return;
    looking ??= look().finally(() => {
      looking = undefined;
    });
  }

  const poll = setInterval(wake, pollIntervalMs);
  wake();
  return {
    wake,
    async close() {
      isClosed = true;
      clearInterval(poll);
      await looking;
      await Promise.all(underWay);
    },
  };
}

async function makeTest(options: TesterOptions, test: TakenTest, sentAtMs: number): Promise<void> {
  const { sql, box, nowMs, requestTimeoutMs, maxResponseBytes } = options;
  const [loaded] = await loadTargets(sql, box, [test.subscriptionKey]);
  // Deleted meanwhile: its server says so by itself.
  if (!loaded) return;
  const target = toReady(loaded);
  const elapsedMs = nowMs() - sentAtMs;
  const startedAtMs = test.takenAtMs + elapsedMs;
  const timeoutMs = Math.min(requestTimeoutMs, test.remainingMs - elapsedMs - ANSWER_MS);
  if (timeoutMs <= 0) return;
  const id = formatPingId(test.testUuid);
  const body = Buffer.from(renderPing({ id, ...loaded }, startedAtMs));
  const headers = toRequestHeaders(keysAt(target, startedAtMs), {
    eventId: id,
    deliveryId: formatDeliveryId(test.testUuid, target.subscriptionUuid),
    attempt: 1,
    redrive: false,
    timestamp: Math.floor(startedAtMs / 1_000),
    body,
    traceparent: null,
    contentType: target.contentType,
    headers: target.headers,
  });
  const { destination } = target;
  const { outcome, phases, durationMs } = await send(options, {
    destination,
    headers,
    body,
    timeoutMs,
    maxResponseBytes,
  });
  await answerTest(sql, test.testUuid, { startedAtMs, durationMs, phases, outcome });
}
