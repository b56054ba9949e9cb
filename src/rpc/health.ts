import { setTimeout } from "node:timers/promises";
import { Code, ConnectError, type ServiceImpl } from "@connectrpc/connect";
import { type Health, HealthCheckResponse_ServingStatus as ServingStatus } from "../../gen/grpc/health/v1/health_pb.ts";

/**
 * `grpc.health.v1.Health` for the whole server (the empty name) and for each of `services`, which share one answer.
 *
 * `isServing` is asked for every Check and, for every open Watch, once per `pollIntervalMs`; none of them needs a
 * credential, so it has to be cheap.
 */
export function healthService(
  isServing: () => boolean | Promise<boolean>,
  services: readonly string[],
  pollIntervalMs = 1_000,
): ServiceImpl<typeof Health> {
  const known = new Set(["", ...services]);

  async function currentStatus(): Promise<ServingStatus> {
    return (await isServing()) ? ServingStatus.SERVING : ServingStatus.NOT_SERVING;
  }

  return {
    async check({ service }) {
      if (!known.has(service)) throw new ConnectError(`unknown service ${JSON.stringify(service)}`, Code.NotFound);
      return { status: await currentStatus() };
    },

    /** Ends only with the call: a service we don't know may be one that a later version serves. */
    async *watch({ service }, { signal }) {
      let sent: ServingStatus | undefined;
      while (!signal.aborted) {
        const status = known.has(service) ? await currentStatus() : ServingStatus.SERVICE_UNKNOWN;
        if (status !== sent) yield { status };
        sent = status;
        await pause(pollIntervalMs, signal);
      }
    },

    async list() {
      const status = await currentStatus();
      return { statuses: Object.fromEntries([...known].map((service) => [service, { status }])) };
    },
  };
}

/** Waits, or returns at once when `signal` aborts. */
async function pause(delayMs: number, signal: AbortSignal): Promise<void> {
  try {
    await setTimeout(delayMs, undefined, { signal });
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}
