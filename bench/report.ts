import { spawnSync } from "node:child_process";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { availableParallelism, cpus } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Result } from "./bench.ts";
import { type Plot, toSvg } from "./plot.ts";

const PAGE = fileURLToPath(new URL("../docs/benchmarks.md", import.meta.url));
const DRAWINGS = fileURLToPath(new URL("../docs/benchmarks", import.meta.url));
const BEGIN = "<!-- results: begin (written by `npm run bench`) -->";
const END = "<!-- results: end -->";

export type RunFacts = { readonly postgresVersion: string; readonly command: string };

/** The table, worst news first to see: each line says whether it keeps its floor. */
export function toTable(results: readonly Result[], { postgresVersion, command }: RunFacts): string {
  const machine = `${availableParallelism()} cores (${cpus()[0]?.model.trim() ?? "unknown"})`;
  const date = new Date().toISOString().slice(0, 10);
  return [
    `${date} · ${machine} · Node ${process.versions.node} · Postgres ${postgresVersion} · \`${command}\``,
    "",
    "| What | Measured | Floor | Goal | | Behind it |",
    "|---|---:|---:|---:|---|---|",
    ...results.map(toLine),
  ].join("\n");
}

/** Replaces what stands between the markers of docs/benchmarks.md, and the drawings beside it. */
export async function writeReport(table: string, plots: readonly Plot[]): Promise<void> {
  await mkdir(DRAWINGS, { recursive: true });
  for (const plot of plots) await writeFile(join(DRAWINGS, `${plot.name}.svg`), toSvg(plot));
  const drawings = plots.map(({ name, title }) => `![${title}](benchmarks/${name}.svg)`);
  const page = await readFile(PAGE, "utf8");
  const [begin, end] = [page.indexOf(BEGIN), page.indexOf(END)];
  if (begin < 0 || end < begin) throw new Error(`${PAGE} has lost its markers ${BEGIN} and ${END}`);
  await writeFile(
    PAGE,
    `${page.slice(0, begin + BEGIN.length)}\n\n${[table, ...drawings].join("\n\n")}\n\n${page.slice(end)}`,
  );
  // Aligned, as `npm run check` asks of a page.
  spawnSync("biome", ["format", "--write", PAGE], { stdio: "inherit" });
}

function toLine({ what, value, unit, figures, target }: Result): string {
  const cells = [
    what,
    format(value, unit),
    target ? format(target.floor, unit) : "",
    target ? format(target.goal, unit) : "",
    target ? judge(value, target) : "",
    figures,
  ];
  return `| ${cells.join(" | ")} |`;
}

function judge(value: number, { floor, goal, better }: NonNullable<Result["target"]>): string {
  const reaches = (target: number) => (better === "more" ? value >= target : value <= target);
  if (reaches(goal)) return "goal";
  return reaches(floor) ? "floor" : "**below floor**";
}

function format(value: number, unit: Result["unit"]): string {
  switch (unit) {
    case "ratio":
      return value.toFixed(2);
    case "events/s":
      return `${Math.round(value).toLocaleString("en-US")}/s`;
    case "statements":
      return value.toFixed(3);
    case "KiB":
      return `${value.toFixed(2)} KiB`;
    case "ms":
      return `${value.toFixed(1)} ms`;
    case "µs":
      return `${value.toFixed(0)} µs`;
  }
}
