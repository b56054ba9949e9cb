import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { SETTINGS_PAGE, withSettingsTable } from "./settings-page.ts";

// `npm run check`: everything that a tool can judge. Each rule has a fixture in test/house/ that it must refuse.

type Check = { readonly name: string; readonly fix: string; readonly run: () => Promise<string | undefined> };

const command = (name: string, fix: string, line: string): Check => ({ name, fix, run: () => runCommand(line) });

const CHECKS: readonly Check[] = [
  command("types", "mend what tsc names", "tsc -p ."),
  command("lint, format, import rules", "npx biome check --write", "biome check --error-on-warnings ."),
  command("proto lint", "mend what buf names", "buf lint"),
  command(
    "proto breaking",
    "a field that was released keeps its number, name and type; add instead of changing",
    "buf breaking proto --against proto/image/nuncio.v1.binpb",
  ),
  {
    name: "generated TypeScript",
    fix: "npm run generate",
    run: () => runCommand("node scripts/generated-typescript.mjs"),
  },
  command("generated Go", "npm run generate", "node scripts/generate-go.mjs --check"),
  command("migrations", "npx drizzle-kit generate --name <what_it_does>", "drizzle-kit check"),
  { name: "table of settings", fix: "npm run generate", run: compareSettingsPage },
  command("dead code", "delete it, or import it", "knip --no-progress"),
];

async function compareSettingsPage(): Promise<string | undefined> {
  const page = await readFile(SETTINGS_PAGE, "utf8");
  return page === withSettingsTable(page) ? undefined : `${SETTINGS_PAGE} is not what src/config.ts says`;
}

/** What the command printed, if it failed. */
function runCommand(line: string): Promise<string | undefined> {
  const [file = "", ...args] = line.split(" ");
  return new Promise((resolve) => {
    const child = spawn(file, args, { stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    child.stdout.on("data", (text) => {
      output += text;
    });
    child.stderr.on("data", (text) => {
      output += text;
    });
    child.on("error", (error) => resolve(error.message));
    child.on("close", (code) => resolve(code === 0 ? undefined : output.trim() || `exit ${code}`));
  });
}

let failed = 0;
for (const { name, fix, run } of CHECKS) {
  process.stdout.write(`${name} … `);
  const fault = await run();
  process.stdout.write(fault === undefined ? "ok\n" : `FAILED\n${fault}\n→ ${fix}\n\n`);
  if (fault !== undefined) failed += 1;
}
process.stdout.write(`\n${CHECKS.length - failed} passed, ${failed} failed\n`);
process.exitCode = failed === 0 ? 0 : 1;
