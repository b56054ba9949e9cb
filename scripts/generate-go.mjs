// Keeps clients/go/gen in step with proto/.
//
//   node scripts/generate-go.mjs                    generates
//   node scripts/generate-go.mjs --check [folder]   compares, changes nothing; exit 1 names every file that differs
//
// Needs the Go of clients/go/go.mod; without it --check says so and passes, except in CI (CI=true).
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const project = dirname(dirname(fileURLToPath(import.meta.url)));
const buf = join(project, "node_modules", ".bin", "buf");
const generatedFolder = join("clients", "go", "gen");

const goFault = findGoFault();
const [mode, checkedFolder = join(project, generatedFolder), ...rest] = process.argv.slice(2);
if ((mode !== undefined && mode !== "--check") || rest.length > 0) {
  fail("Usage: generate-go.mjs [--check [folder]]");
} else if (goFault !== undefined) {
  const isOptional = mode === "--check" && process.env.CI !== "true";
  const say = isOptional ? (line) => process.stdout.write(`${line}\n`) : fail;
  say(`${generatedFolder} is not ${mode === "--check" ? "checked" : "generated"}: ${goFault}`);
} else if (mode === "--check") {
  check(checkedFolder);
} else {
  generateInto(project);
}

function check(folder) {
  const scratch = mkdtempSync(join(tmpdir(), "nuncio-go-"));
  try {
    if (!generateInto(scratch)) return;
    const expected = readTree(join(scratch, generatedFolder));
    const found = readTree(folder);
    const differing = [...new Set([...expected.keys(), ...found.keys()])]
      .filter((name) => expected.get(name) !== found.get(name))
      .sort();
    if (differing.length === 0) return;
    fail(
      `${generatedFolder} is not what proto/ generates; run: node scripts/generate-go.mjs\n  ${differing.join("\n  ")}`,
    );
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** Below `root`, where clients/go/gen stands; what was in there is gone. */
function generateInto(root) {
  const { error, status } = spawnSync(buf, ["generate", "--template", "buf.gen.go.yaml", "--output", root], {
    cwd: project,
    stdio: "inherit",
  });
  if (status !== 0) fail(`buf generate failed: ${error?.message ?? `exit ${status}`}`);
  return status === 0;
}

/** Name and content of every file. */
function readTree(folder) {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return new Map(
    files.map(({ parentPath, name }) => {
      const path = join(parentPath, name);
      return [relative(folder, path), readFileSync(path, "utf8")];
    }),
  );
}

/** Why Go cannot run here, undefined if it can. */
function findGoFault() {
  // Unlike `go version`, this also refuses a Go older than go.mod asks for.
  const { error, status, stderr } = spawnSync("go", ["list", "-m"], {
    cwd: join(project, "clients", "go"),
    encoding: "utf8",
  });
  if (error?.code === "ENOENT") return "no Go on the PATH";
  return status === 0 ? undefined : (error?.message ?? stderr.trim());
}

function fail(message) {
  process.stderr.write(`${message}\n`);
  process.exitCode = 1;
}
