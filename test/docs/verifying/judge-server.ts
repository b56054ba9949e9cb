// node judge-server.ts <folder>: what the folder's recipe.ts, an HTTP server, makes of arrivals.json.
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { request } from "undici";

type Arrival = { headers: Record<string, string>; body: string };

const VERDICTS: Record<number, string> = { 204: "accepted", 400: "refused" };

const folder = process.argv[2] as string;
const { server }: { server: Server } = await import(join(folder, "recipe.ts"));
const arrivals: Arrival[] = JSON.parse(readFileSync(join(folder, "arrivals.json"), "utf8"));
if (!server.listening) await once(server, "listening");
const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;

const verdicts: string[] = [];
for (const { headers, body } of arrivals) {
  // As the worker sends: names and values in turn, the body whole.
  const answer = await request(url, {
    method: "POST",
    headers: Object.entries(headers).flat(),
    body: Buffer.from(body, "base64"),
  });
  await answer.body.dump();
  verdicts.push(VERDICTS[answer.statusCode] ?? String(answer.statusCode));
}
writeFileSync(join(folder, "verdicts.json"), JSON.stringify(verdicts));
server.close();
server.closeAllConnections();
