import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { cleanUp } from "./clean-up.ts";

export type TcpProxy = {
  readonly port: number;
  /** The same URL, through the proxy. */
  through(url: string): string;
  /** From now on nothing passes in this direction, on connections old and new; they stay open. */
  silence(direction: "to_target" | "to_client" | "both" | "none"): void;
  /** Ends every connection. */
  cut(): void;
  /** Passes what comes on new connections; those that are open stay so, and silent for ever. */
  abandon(): void;
  /** Holds every answer back for so long, until the end is called. */
  delay(ms: number): { end(): void };
  /** Nothing passes to the client any more once these bytes have gone to the target; resolves when they have. */
  silenceAfter(bytes: string): Promise<void>;
};

/** A TCP proxy in front of Postgres whose connections can go silent, in one direction or both, or be cut. */
export async function openTcpProxy(target: { hostname: string; port: string }): Promise<TcpProxy> {
  const sockets = new Set<Socket>();
  let generation = 0;
  let delayMs = 0;
  /** That which is over, once it is: whatever still waits does so for this long. */
  let lastDelayMs = 0;
  let silent = { toTarget: false, toClient: false };
  let trigger: { bytes: string; seen: () => void } | undefined;
  const server = createServer((client) => {
    const upstream = connect(Number(target.port), target.hostname);
    const born = generation;
    let waiting = 0;
    const isSilent = (direction: "toTarget" | "toClient") => silent[direction] || born < generation;
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on("error", () => undefined);
      socket.on("close", () => sockets.delete(socket));
    }
    client.on("data", (data) => {
      if (trigger && data.includes(trigger.bytes)) {
        silent = { toTarget: false, toClient: true };
        trigger.seen();
        trigger = undefined;
      }
      if (!isSilent("toTarget")) upstream.write(data);
    });
    upstream.on("data", (data) => {
      if (isSilent("toClient")) return;
      // Timers of one length fire in their order. What comes when the delay is over waits for what was delayed: bytes that
      // overtake others are no slow Postgres but a broken one.
      if (delayMs > 0 || waiting > 0) {
        waiting += 1;
        setTimeout(() => {
          waiting -= 1;
          client.write(data);
        }, lastDelayMs);
      } else client.write(data);
    });
    client.on("close", () => upstream.destroy());
    upstream.on("close", () => client.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const cut = () => {
    for (const socket of sockets) socket.destroy();
  };
  cleanUp(() => {
    cut();
    server.close();
  });
  return {
    port,
    through(url) {
      const proxied = new URL(url);
      proxied.hostname = "127.0.0.1";
      proxied.port = String(port);
      return proxied.href;
    },
    silence(direction) {
      silent = {
        toTarget: direction === "to_target" || direction === "both",
        toClient: direction === "to_client" || direction === "both",
      };
    },
    cut,
    abandon() {
      generation += 1;
      silent = { toTarget: false, toClient: false };
    },
    delay(ms) {
      delayMs = ms;
      lastDelayMs = ms;
      return {
        end() {
          delayMs = 0;
        },
      };
    },
    silenceAfter(bytes) {
      return new Promise((seen) => {
        trigger = { bytes, seen };
      });
    },
  };
}
