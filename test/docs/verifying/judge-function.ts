// node judge-function.ts <folder>: what the folder's recipe.ts, a `verify(rawBody, headers)`, makes of arrivals.json.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

type Arrival = { headers: Record<string, string>; body: string };

const folder = process.argv[2] as string;
const { verify } = await import(join(folder, "recipe.ts"));
const arrivals: Arrival[] = JSON.parse(readFileSync(join(folder, "arrivals.json"), "utf8"));

function judge({ headers, body }: Arrival): string {
  try {
    return verify(Buffer.from(body, "base64"), headers).tenantid === "acme" ? "accepted" : "no event";
  } catch (error) {
    return `refused: ${(error as Error).message}`;
  }
}

writeFileSync(join(folder, "verdicts.json"), JSON.stringify(arrivals.map(judge)));
