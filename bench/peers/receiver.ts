import { createServer } from "node:http";
import { sharedNowMs } from "../bench.ts";
import type { ReceiverAnswer, ReceiverRequest } from "../receiver.ts";

const answer = (message: ReceiverAnswer) => process.send?.(message);

let expected: ReceiverRequest = { warmUp: 0, total: 0, keepArrivals: false };
let count = 0;
let warmAtMs = 0;
let lastAtMs = 0;
let arrivals: [id: string, atMs: number][] = [];
let asked = false;

function answerWhenComplete(): void {
  if (!asked || count < expected.total) return;
  asked = false;
  answer({ kind: "received", warmAtMs, lastAtMs, arrivals });
}

const server = createServer((request, response) => {
  count += 1;
  if (expected.keepArrivals) arrivals.push([String(request.headers["webhook-id"]), sharedNowMs()]);
  if (count === expected.warmUp) warmAtMs = sharedNowMs();
  if (count === expected.total) lastAtMs = sharedNowMs();
  request.resume();
  request.on("end", () => {
    response.writeHead(200, { "content-length": "0" }).end();
    if (count >= expected.total) answerWhenComplete();
  });
});
server.keepAliveTimeout = 60_000;
server.listen(0, "127.0.0.1", () => {
  answer({ kind: "listening", port: (server.address() as { port: number }).port });
});

process.on("message", (request: ReceiverRequest | "wait" | "count") => {
  if (request === "count") {
    answer({ kind: "count", count });
    return;
  }
  if (request === "wait") {
    asked = true;
    answerWhenComplete();
    return;
  }
  expected = request;
  count = 0;
  arrivals = [];
  answer({ kind: "expecting" });
});
