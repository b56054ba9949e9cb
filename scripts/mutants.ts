import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { MUTANTS, type Mutant } from "../test/mutants.ts";

// `npm run mutants`: breaks the code in one place after another, in a copy, and shows which test notices. A mutant that no
// test notices is a promise that nobody keeps. `-- --only <word>` runs those whose name has the word in it.

const { values: options } = parseArgs({ options: { only: { type: "string" } } });
const project = new URL("..", import.meta.url).pathname;

type Verdict = { readonly caughtBy: readonly string[]; readonly output: string };

async function copyProject(): Promise<string> {
  const copy = await mkdtemp(join(tmpdir(), "nuncio-mutants-"));
  // What git knows and what is new, as it stands in the working tree.
  await run(
    "sh",
    ["-c", `git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - | tar -xf - -C ${copy}`],
    project,
  );
  await symlink(join(project, "node_modules"), join(copy, "node_modules"));
  return copy;
}

async function judge(copy: string, { file, from, to, tests }: Mutant): Promise<Verdict> {
  const path = join(copy, file);
  const whole = await readFile(path, "utf8");
  const places = whole.split(from).length - 1;
  if (places !== 1) throw new Error(`${file} has ${places} places, not one, that read:\n${from}`);
  await writeFile(
    path,
    whole.replace(from, () => to),
  );
  const report = join(copy, "mutant-report.json");
  await rm(report, { force: true });
  try {
    const { output } = await run(
      "node_modules/.bin/node",
      [
        "node_modules/vitest/vitest.mjs",
        "run",
        "--reporter=json",
        `--outputFile=${report}`,
        "--bail=1",
        "--testTimeout=20000",
        ...tests,
      ],
      copy,
    );
    return { caughtBy: await failedTests(report), output };
  } finally {
    await writeFile(path, whole);
  }
}

type Report = {
  readonly testResults: {
    readonly message: string;
    readonly assertionResults: { readonly status: string; readonly fullName: string }[];
  }[];
};

async function failedTests(report: string): Promise<string[]> {
  const { testResults } = JSON.parse(await readFile(report, "utf8")) as Report;
  return testResults.flatMap(({ assertionResults }) =>
    assertionResults.filter(({ status }) => status === "failed").map(({ fullName }) => fullName),
  );
}

function run(command: string, args: string[], cwd: string): Promise<{ code: number | null; output: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => (output += text));
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, output }));
  });
}

const chosen = MUTANTS.filter(({ name }) => options.only === undefined || name.includes(options.only));
const copy = await copyProject();
let survivors = 0;
try {
  for (const [i, mutant] of chosen.entries()) {
    process.stdout.write(`[${i + 1}/${chosen.length}] ${mutant.name} … `);
    const { caughtBy, output } = await judge(copy, mutant);
    if (caughtBy.length === 0) survivors += 1;
    process.stdout.write(
      caughtBy.length === 0 ? `SURVIVED\n${output.slice(-2_000)}\n` : `caught by\n      ${caughtBy[0]}\n`,
    );
  }
} finally {
  await rm(copy, { recursive: true, force: true });
}
process.stdout.write(`\n${chosen.length - survivors} caught, ${survivors} survived\n`);
process.exitCode = survivors === 0 ? 0 : 1;
