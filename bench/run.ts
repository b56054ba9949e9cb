import { parseArgs } from "node:util";
import type { Bench, Result, Row, Size } from "./bench.ts";
import type { Plot } from "./plot.ts";
import { startBenchPostgres } from "./postgres.ts";
import { startReceiver } from "./receiver.ts";
import { toTable, writeReport } from "./report.ts";
import { backlog } from "./rows/backlog.ts";
import { batchPublish } from "./rows/batch-publish.ts";
import { cost } from "./rows/cost.ts";
import { delivery } from "./rows/delivery.ts";
import { driver } from "./rows/driver.ts";
import { isolation } from "./rows/isolation.ts";
import { latency } from "./rows/latency.ts";
import { pinned } from "./rows/pinned.ts";
import { publish } from "./rows/publish.ts";
import { scale } from "./rows/scale.ts";

// npm run bench                      every row; writes docs/benchmarks.md
// npm run bench -- --quick           a small size, to see that it runs; writes nothing
// npm run bench -- --row delivery    one row (several with several --row); writes nothing
// npm run bench -- --shared-buffers 1GB   with more memory for Postgres than its default of 128MB; writes nothing
const ROWS: readonly Row[] = [
  delivery,
  cost,
  publish,
  batchPublish,
  latency,
  isolation,
  scale,
  backlog,
  pinned,
  driver,
];

const FULL: Size = {
  rounds: 5,
  deliveries: 60_000,
  calls: 20_000,
  batches: 300,
  latencySeconds: 20,
  finished: 10_000_000,
  pending: 1_000_000,
  pinnedSeconds: 600,
};
const QUICK: Size = {
  rounds: 1,
  deliveries: 5_000,
  calls: 2_000,
  batches: 30,
  latencySeconds: 3,
  finished: 20_000,
  pending: 10_000,
  pinnedSeconds: 10,
};

const { values: options } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    row: { type: "string", multiple: true },
    rounds: { type: "string" },
    deliveries: { type: "string" },
    "shared-buffers": { type: "string" },
  },
});

const chosen = ROWS.filter(({ name }) => options.row === undefined || options.row.includes(name));
const unknown = options.row?.filter((name) => !ROWS.some((row) => row.name === name)) ?? [];
if (unknown.length > 0) {
  process.stderr.write(`unknown row ${unknown.join(", ")}; there are ${ROWS.map(({ name }) => name).join(", ")}\n`);
  process.exit(64);
}

const sharedBuffers = options["shared-buffers"];
if (sharedBuffers !== undefined && !/^\d+[MG]B$/.test(sharedBuffers)) {
  process.stderr.write(`--shared-buffers takes a size like 1GB or 512MB, not ${sharedBuffers}\n`);
  process.exit(64);
}

const size = options.quick ? QUICK : FULL;
const startedAtMs = performance.now();
const progress = (text: string) => {
  const seconds = Math.round((performance.now() - startedAtMs) / 1_000);
  process.stdout.write(`[${String(seconds).padStart(4)} s] ${text}\n`);
};

progress("starting Postgres and a receiver");
const postgres = await startBenchPostgres(sharedBuffers);
const receiver = await startReceiver();
try {
  const rounds = Number(options.rounds ?? size.rounds);
  const deliveries = Number(options.deliveries ?? size.deliveries);
  const plots: Plot[] = [];
  const plot = (drawn: Plot) => plots.push(drawn);
  const bench: Bench = { postgres, receiver, size: { ...size, rounds, deliveries }, progress, plot };
  const results: Result[] = [];
  for (const row of chosen) results.push(...(await row.measure(bench)));

  const isWhole = chosen.length === ROWS.length && !options.quick && sharedBuffers === undefined;
  const command = ["npm run bench", ...(process.argv.length > 2 ? ["--", ...process.argv.slice(2)] : [])].join(" ");
  const table = toTable(results, { postgresVersion: postgres.version, command });
  process.stdout.write(`\n${table}\n`);
  if (isWhole) await writeReport(table, plots);
} finally {
  await receiver.stop();
  await postgres.stop();
}
