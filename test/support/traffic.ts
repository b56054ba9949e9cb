import { type Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { EventService } from "../../gen/nuncio/v1/event_service_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import { OPERATOR_KEY } from "./service.ts";

export function eventsClient(baseUrl: string) {
  const transport = createConnectTransport({
    baseUrl,
    httpVersion: "2",
    interceptors: [
      (next) => (request) => {
        request.header.set("authorization", `Bearer ${OPERATOR_KEY}`);
        return next(request);
      },
    ],
  });
  return createClient(EventService, transport);
}

export type Traffic = {
  /** Ids that were answered OK, in the order of the answers. */
  readonly accepted: readonly string[];
  /** How each failed call ended. */
  readonly failures: readonly Code[];
  /** Resolves once the predicate holds, looked at after each answer. */
  until(predicate: (traffic: Traffic) => boolean): Promise<void>;
  /** Lets each publisher come to an OK, and ends. */
  stop(): Promise<void>;
};

/**
 * Publishes events of many users without end, a few at a time: each id again and again until it is answered OK, as a
 * gateway would.
 */
export function startTraffic(baseUrl: string, tenantId: string, atOnce = 4): Traffic {
  const client = eventsClient(baseUrl);
  const accepted: string[] = [];
  const failures: Code[] = [];
  const waiting = new Set<() => void>();
  let number = 0;
  let isEnding = false;

  async function publishOne(id: string): Promise<void> {
    const user = { id: `u_${id}`, status: UserStatus.ACTIVE };
    for (;;) {
      try {
        await client.publish({ event: { id, tenantId, type: EventType.USER_CREATED, user } }, { timeoutMs: 4_000 });
        accepted.push(id);
        return;
      } catch (error) {
        failures.push(ConnectError.from(error).code);
        // A turn of the clock between two tries, so that a refusal does not become a busy loop.
        await new Promise((resolve) => setTimeout(resolve, 50));
      } finally {
        for (const check of waiting) check();
      }
    }
  }

  const publishers = Array.from({ length: atOnce }, async () => {
    while (!isEnding) await publishOne(`e_${number++}`);
  });
  const traffic: Traffic = {
    accepted,
    failures,
    until(predicate) {
      return new Promise((resolve) => {
        const check = () => {
          if (!predicate(traffic)) return;
          waiting.delete(check);
          resolve();
        };
        waiting.add(check);
        check();
      });
    },
    async stop() {
      isEnding = true;
      await Promise.all(publishers);
    },
  };
  return traffic;
}
