import { spawnSync } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { SETTINGS_PAGE, withSettingsTable } from "./settings-page.ts";

// Brings everything generated up to date: TypeScript and Go from proto/, and the table of settings. Commit what changes.

for (const [command, ...args] of [
  ["buf", "generate"],
  ["node", "scripts/generate-go.mjs"],
] as const) {
  const { status } = spawnSync(command, args, { stdio: "inherit" });
  if (status !== 0) process.exit(status ?? 1);
}
await writeFile(SETTINGS_PAGE, withSettingsTable(await readFile(SETTINGS_PAGE, "utf8")));
