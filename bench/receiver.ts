import { type Peer, startPeer } from "./child.ts";

/** Tell the receiver what to wait for; it answers once that has arrived. */
export type ReceiverRequest = { readonly warmUp: number; readonly total: number; readonly keepArrivals: boolean };

export type ReceiverAnswer =
  | { readonly kind: "listening"; readonly port: number }
  | { readonly kind: "expecting" }
  | { readonly kind: "count"; readonly count: number }
  | {
      readonly kind: "received";
      /** By the shared clock: when the warm-up was over, and when the last one arrived. */
      readonly warmAtMs: number;
      readonly lastAtMs: number;
      /** Only if asked for: `webhook-id` and when its first byte arrived. */
      readonly arrivals: readonly (readonly [id: string, atMs: number])[];
    };

export type Received = Extract<ReceiverAnswer, { kind: "received" }>;

/** A bare HTTP server in a process of its own that answers 200 and counts. */
export type Receiver = {
  readonly url: string;
  /** Counts anew from here; `received` resolves with the last expected request. */
  expect(request: ReceiverRequest): Promise<{ received: Promise<Received> }>;
  /** How many have arrived since then; not while something waits for `received`. */
  count(): Promise<number>;
  stop(): Promise<void>;
};

export async function startReceiver(): Promise<Receiver> {
  const peer: Peer<ReceiverRequest | "wait" | "count", ReceiverAnswer> = startPeer("receiver.ts");
  const listening = await peer.ready;
  if (listening.kind !== "listening") throw new Error("the receiver does not listen");
  // The peer answers one message at a time.
  let last: Promise<unknown> = Promise.resolve();
  const inTurn = <T>(ask: () => Promise<T>): Promise<T> => {
    const answer = last.then(ask);
    last = answer.catch(() => undefined);
    return answer;
  };
  return {
    url: `http://127.0.0.1:${listening.port}/webhooks`,
    async expect(request) {
      await peer.ask(request);
      return { received: peer.ask("wait") as Promise<Received> };
    },
    count: () =>
      inTurn(async () => {
        const answer = await peer.ask("count");
        return answer.kind === "count" ? answer.count : 0;
      }),
    stop: () => peer.stop(),
  };
}
