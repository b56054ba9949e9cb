import { createServer } from "node:http";
import type { Registry } from "prom-client";

export type Operations = {
  /** What keeps the process from its work; empty when nothing does. */
  readonly findWaits: () => Promise<readonly string[]>;
  readonly registry: Registry;
};

/**
 * `/healthz`: the process answers. `/readyz`: it can do its work; 503 names what it waits for. `/metrics`: for Prometheus.
 * No credential: it says nothing about anybody's data, and belongs on an address that the internet does not reach.
 */
export async function openOperationsPort(
  address: { host: string; port: number },
  { findWaits, registry }: Operations,
): Promise<{ port: number; close(): Promise<void> }> {
  const server = createServer((request, response) => {
    const path = request.url?.split("?")[0];
    const answer = (status: number, text: string) => {
      response.writeHead(status, { "content-type": "text/plain; charset=utf-8" }).end(`${text}\n`);
    };
    if (path === "/healthz") answer(200, "ok");
    else if (path === "/readyz") {
      findWaits().then(
        (waits) => answer(waits.length === 0 ? 200 : 503, waits.length === 0 ? "ready" : waits.join("\n")),
        () => answer(503, "readiness could not be found out"),
      );
    } else if (path === "/metrics") {
      registry.metrics().then(
        (text) => response.writeHead(200, { "content-type": registry.contentType }).end(text),
        () => answer(500, "the metrics could not be gathered"),
      );
    } else answer(404, "there are /healthz, /readyz and /metrics");
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (cause) => {
      reject(new Error(`cannot listen on ${address.host}:${address.port} for operations: ${cause.message}`, { cause }));
    });
    server.listen(address.port, address.host, resolve);
  });
  return {
    port: (server.address() as { port: number }).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
