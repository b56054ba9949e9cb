import { type Peer, startPeer } from "./child.ts";

/** Tell the receiver what to wait for; it answers once that has arrived. */
export type ReceiverRequest = { readonly warmUp: number; readonly total: number; readonly keepArrivals: boolean };

export type ReceiverAnswer =
  | { readonly kind: "listening"; readonly port: number }
  | { readonly kind: "expecting" }
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
  stop(): Promise<void>;
};

export async function startReceiver(): Promise<Receiver> {
  const peer: Peer<ReceiverRequest | "wait", ReceiverAnswer> = startPeer("receiver.ts");
  const listening = await peer.ready;
  if (listening.kind !== "listening") throw new Error("the receiver does not listen");
  return {
    url: `http://127.0.0.1:${listening.port}/webhooks`,
    async expect(request) {
      await peer.ask(request);
      return { received: peer.ask("wait") as Promise<Received> };
    },
    stop: () => peer.stop(),
  };
}
