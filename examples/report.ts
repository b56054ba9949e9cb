import type { Arrival } from "./receiver.ts";

// What the demo shows on the terminal.

export type Row = {
  readonly tenant: string;
  readonly subscription: string;
  readonly emitted: number;
  readonly delivered: number;
  readonly attempts: number;
  readonly failedFirst: number;
  readonly duplicates: number;
};

const ARRIVALS_SHOWN = 24;
const SUMMARY_EVERY_MS = 1_000;

export function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Shows the first arrivals one by one, then how many there were, once a second. */
export class Ticker {
  #arrivals = 0;
  #failed = 0;
  #saidAt = 0;

  show(arrival: Arrival): void {
    this.#arrivals += 1;
    if (arrival.status >= 400) this.#failed += 1;
    if (this.#arrivals <= ARRIVALS_SHOWN) {
      say(toLine(arrival));
      this.#saidAt = performance.now();
    } else if (performance.now() - this.#saidAt >= SUMMARY_EVERY_MS) {
      this.summarise();
    }
  }

  summarise(): void {
    say(`  … ${this.#arrivals} requests so far, ${this.#failed} of them answered 500 on purpose`);
    this.#saidAt = performance.now();
  }
}

function toLine({ inbox, attempt, status, duplicate, body }: Arrival): string {
  const { user } = body.data;
  const columns = [inbox.padEnd(18), body.type.padEnd(16), user.id.slice(0, 20).padEnd(20), `attempt ${attempt}`];
  const name = user.displayName === undefined ? "" : `  ${toShortName(user.displayName) || '""'}`;
  return `  ${columns.join("  ")}  ${status}${duplicate ? " (duplicate)" : ""}${name}`;
}

const SHORT_NAME = 24;

/** Whole signs, no control characters, and isolated (U+2068, U+2069), so that a name cannot turn the line around. */
function toShortName(name: string): string {
  const signs = [...new Intl.Segmenter().segment(name.replace(/[\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e]/gu, "·"))];
  const short = signs.slice(0, SHORT_NAME).map(({ segment }) => segment);
  if (signs.length === 0) return "";
  return `\u2068${short.join("")}${signs.length > SHORT_NAME ? "…" : ""}\u2069`;
}

const COLUMNS: readonly (readonly [keyof Row, string])[] = [
  ["tenant", "tenant"],
  ["subscription", "subscription"],
  ["emitted", "emitted"],
  ["delivered", "delivered"],
  ["attempts", "attempts"],
  ["failedFirst", "failed first"],
  ["duplicates", "duplicates"],
];

/** One line per subscription; `emitted` counts the events that match it. */
export function toTable(rows: readonly Row[]): string {
  const cells = [COLUMNS.map(([, title]) => title), ...rows.map((row) => COLUMNS.map(([key]) => String(row[key])))];
  const widths = COLUMNS.map((_, i) => Math.max(...cells.map((line) => line[i]?.length ?? 0)));
  const isText = (i: number) => i < 2;
  return cells
    .map((line) => line.map((cell, i) => (isText(i) ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))))
    .map((line) => `  ${line.join("  ")}`)
    .join("\n");
}
