// Compares gen/ with what proto/ generates now; exit 1 names every file that differs. Changes nothing.
//
//   node scripts/generated-typescript.mjs [folder]
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";

const [folder = "gen"] = process.argv.slice(2);
const scratch = mkdtempSync(join(tmpdir(), "nuncio-gen-"));
try {
  const { status, stderr } = spawnSync("buf", ["generate", "--output", scratch], { encoding: "utf8" });
  if (status !== 0) throw new Error(`buf generate failed: ${stderr}`);
  const expected = readTree(join(scratch, "gen"));
  const found = readTree(folder);
  const differing = [...new Set([...expected.keys(), ...found.keys()])]
    .filter((name) => expected.get(name) !== found.get(name))
    .sort();
  if (differing.length > 0) {
    process.stderr.write(`${folder} is not what proto/ generates:\n  ${differing.join("\n  ")}\n`);
    process.exitCode = 1;
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}

function readTree(root) {
  return new Map(
    readdirSync(root, { recursive: true })
      .map((name) => join(root, name))
      .filter((path) => statSync(path).isFile())
      .map((path) => [relative(root, path), readFileSync(path, "utf8")]),
  );
}
