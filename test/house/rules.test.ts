import { spawn } from "node:child_process";
import { cp, mkdir, mkdtemp, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { SETTINGS_PAGE, withSettingsTable } from "../../scripts/settings-page.ts";
import { cleanUp } from "../support/clean-up.ts";

// What `npm run check` must refuse, one fixture for each rule; and beside it what it must not.

const PROJECT = fileURLToPath(new URL("../..", import.meta.url));
const BIN = join(PROJECT, "node_modules", ".bin");

type Result = { readonly code: number | null; readonly output: string };

/** A tool of the project, run in `cwd`. */
function run(cwd: string, tool: string, args: readonly string[], env: Record<string, string> = {}): Promise<Result> {
  return new Promise((resolve, reject) => {
    const { PATH = "", HOME = "", CI: _, ...rest } = process.env;
    const child = spawn(tool, args, {
      cwd,
      env: { ...rest, HOME, PATH: `${BIN}${delimiter}${PATH}`, NO_COLOR: "1", ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.on("data", (text) => {
        output += text;
      });
    }
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, output }));
  });
}

/** A folder of its own with these files, and links to these of the project's. */
async function openFolder(files: Record<string, string>, links: readonly string[] = []): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "nuncio-house-"));
  cleanUp(() => rm(folder, { recursive: true, force: true }));
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(folder, path)), { recursive: true });
    await writeFile(join(folder, path), text);
  }
  for (const path of links) await symlink(join(PROJECT, path), join(folder, path));
  return folder;
}

const readProject = (path: string) => readFile(join(PROJECT, path), "utf8");

/** The text with one place changed; throws if that is not there, for then the fixture would break nothing. */
function edit(text: string, from: string, to: string): string {
  if (!text.includes(from)) throw new Error(`nothing to break: ${JSON.stringify(from)} is not there`);
  return text.replace(from, to);
}

/** `biome check`, as the project is checked, of one file at this path. */
async function biome(path: string, source: string): Promise<Result> {
  const folder = await openFolder({ "biome.json": await readProject("biome.json"), [path]: source });
  return run(folder, "biome", ["check", "--vcs-enabled=false", "--error-on-warnings", "--colors=off", "."]);
}

/** The output without the frame and the line breaks that Biome puts into a message. */
const flat = (text: string) => text.replace(/[\s│]+/g, " ");

describe("import rules", () => {
  const uses = (specifier: string) => `import { thing } from "${specifier}";\n\nexport const used = thing;\n`;

  const FOLDERS = [
    {
      folder: "core",
      message: "core decides and touches nothing",
      refused: [
        "../store/x.ts",
        "../rpc/x.ts",
        "../config.ts",
        "../../gen/x.ts",
        "node:fs",
        "node:http",
        "node:fs/promises",
        "uuid",
        "undici",
        "postgres",
        "pino",
        "drizzle-orm",
      ],
      allowed: ["./ids.ts", "node:crypto", "node:net", "node:util", "ipaddr.js", "canonicalize"],
    },
    {
      folder: "store",
      message: "store imports core and the database only",
      refused: [
        "../rpc/x.ts",
        "../delivery/x.ts",
        "../operations/x.ts",
        "../../gen/nuncio/v1/x.ts",
        "../config.ts",
        "../logger.ts",
        "@connectrpc/connect",
        "@bufbuild/protobuf",
        "undici",
      ],
      allowed: ["./schema.ts", "../core/ids.ts", "postgres", "drizzle-orm", "drizzle-orm/pg-core", "node:fs/promises"],
    },
    {
      folder: "store/outbox",
      message: "store imports core and the database only",
      refused: ["../../rpc/x.ts", "../../delivery/lanes.ts", "../../config.ts"],
      allowed: ["./claim.ts", "../schema.ts", "../../core/ids.ts"],
    },
    {
      folder: "rpc",
      message: "rpc imports core, store and gen",
      refused: ["../delivery/x.ts", "../operations/x.ts", "../config.ts", "undici", "postgres"],
      allowed: [
        "./convert.ts",
        "../core/ids.ts",
        "../store/events.ts",
        "../../gen/nuncio/v1/x.ts",
        "../logger.ts",
        "@connectrpc/connect",
        "@bufbuild/protobuf",
      ],
    },
    {
      folder: "rpc/interceptors",
      message: "rpc imports core, store and gen",
      refused: ["../../delivery/x.ts", "../../config.ts", "postgres"],
      allowed: ["../convert.ts", "../../core/ids.ts"],
    },
    {
      folder: "delivery",
      message: "delivery imports core and store",
      refused: [
        "../rpc/x.ts",
        "../operations/x.ts",
        "../../gen/nuncio/v1/x.ts",
        "../config.ts",
        "../logger.ts",
        "@connectrpc/connect",
        "@bufbuild/protobuf",
        "drizzle-orm",
        "drizzle-orm/pg-core",
      ],
      allowed: ["./lanes.ts", "../core/ids.ts", "../store/outbox/claim.ts", "undici", "node:dns"],
    },
    {
      folder: "operations",
      message: "operations imports core and store",
      refused: ["../rpc/x.ts", "../delivery/x.ts", "../../gen/x.ts", "../config.ts", "../logger.ts"],
      allowed: ["../core/ids.ts", "../store/readiness.ts", "node:http"],
    },
    {
      folder: "embedded-postgres",
      message: "the embedded Postgres knows nothing of Nuncio",
      refused: ["../config.ts", "../core/secret.ts", "../store/database.ts", "../logger.ts"],
      allowed: ["./home.ts", "../free-port.ts", "node:fs", "postgres"],
    },
  ] as const;

  it.each(FOLDERS)(
    "refuse in src/$folder what it must not know, each with the reason",
    async ({ folder, message, refused }) => {
      const files = Object.fromEntries(refused.map((specifier, i) => [`src/${folder}/f${i}.ts`, uses(specifier)]));
      const at = await openFolder({ "biome.json": await readProject("biome.json"), ...files });
      const results = await Promise.all(
        Object.keys(files).map((path) => run(at, "biome", ["lint", "--vcs-enabled=false", "--colors=off", path])),
      );
      for (const [i, { code, output }] of results.entries()) {
        expect(code, refused[i]).not.toBe(0);
        expect(output, refused[i]).toContain("lint/style/noRestrictedImports");
        expect(flat(output), refused[i]).toContain(message);
      }
    },
  );

  it.each(FOLDERS)("let src/$folder import what it is made of", async ({ folder, allowed }) => {
    const files = Object.fromEntries(allowed.map((specifier, i) => [`src/${folder}/f${i}.ts`, uses(specifier)]));
    const at = await openFolder({ "biome.json": await readProject("biome.json"), ...files });
    const { code, output } = await run(at, "biome", ["check", "--vcs-enabled=false", "--colors=off", "."]);
    expect(output).toContain(`Checked ${allowed.length + 1} files`);
    expect(code, output).toBe(0);
  });

  it.each([
    ["a type", 'import type { Thing } from "../store/x.ts";\n\nexport type Used = Thing;\n'],
    ["an export", 'export { thing } from "../store/x.ts";\n'],
    ["everything", 'export * from "../store/x.ts";\n'],
    ["a dynamic import", 'export const used = await import("../store/x.ts");\n'],
  ])("see %s as well", async (_, source) => {
    const { code, output } = await biome("src/core/x.ts", source);
    expect(code).not.toBe(0);
    expect(output).toContain("lint/style/noRestrictedImports");
  });
});

describe("lint and format", () => {
  const CASES = [
    ["console", "src/x.ts", 'console.log("here");\n', "noConsole"],
    ["any", "src/x.ts", "export const x = (y: any) => y;\n", "noExplicitAny"],
    ["an unused import", "src/x.ts", 'import { a } from "./y.ts";\n\nexport const x = 1;\n', "noUnusedImports"],
    ["an unused variable", "src/x.ts", "export function x() {\n  const y = 1;\n}\n", "noUnusedVariables"],
    [
      "an assertion that something is there",
      "src/x.ts",
      "export const x = (y?: string) => y!.length;\n",
      "noNonNullAssertion",
    ],
    [
      "an import of a type as a value",
      "src/x.ts",
      'import { A } from "./y.ts";\n\nexport const x: A = 1;\n',
      "useImportType",
    ],
    [
      "a node module without node:",
      "src/x.ts",
      'import { join } from "path";\n\nexport const x = join;\n',
      "useNodejsImportProtocol",
    ],
    ["other formatting", "src/x.ts", "export const x = 'y'\n", "format"],
    [
      "unsorted imports",
      "src/x.ts",
      'import { b } from "./b.ts";\nimport { a } from "./a.ts";\n\nexport const x = [a, b];\n',
      "organizeImports",
    ],
    ["console in a test", "test/x.test.ts", 'console.log("here");\n', "noConsole"],
  ] as const;

  it.each(CASES)("refuse %s", async (_, path, source, rule) => {
    const { code, output } = await biome(path, source);
    expect(code).not.toBe(0);
    expect(output).toContain(rule);
  });

  it("let a test assert that something is there", async () => {
    expect((await biome("test/x.test.ts", "export const x = (y?: string) => y!.length;\n")).code).toBe(0);
  });
});

describe("types", () => {
  const CONFIG = JSON.stringify({ extends: join(PROJECT, "tsconfig.json"), include: ["src"], exclude: [] });

  async function compile(files: Record<string, string>): Promise<Result> {
    const folder = await openFolder({ "package.json": '{"type":"module"}', "tsconfig.json": CONFIG, ...files }, [
      "node_modules",
      "gen",
    ]);
    return run(folder, "tsc", ["-p", "."]);
  }

  it.each([
    ["a wrong type", 'export const x: number = "one";\n', "TS2322"],
    ["what may be missing", "export const x = (y: readonly string[]): string => y[0];\n", "TS2322"],
    ["an optional property set to undefined", "export const x: { y?: string } = { y: undefined };\n", "TS2375"],
    ["syntax that node cannot strip", "export enum X {\n  A,\n}\n", "TS1294"],
    ["a branch without a return", "export function x(y: boolean) {\n  if (y) return 1;\n}\n", "TS7030"],
  ])("refuse %s", async (_, source, fault) => {
    const { code, output } = await compile({ "src/x.ts": source });
    expect(code).not.toBe(0);
    expect(output).toContain(fault);
  });

  it("[B41] refuse an RPC that has no row in the authorization table, and only that", async () => {
    const table = await readProject("src/rpc/authorization.ts");
    const whole = await compile({ "src/rpc/authorization.ts": table });
    expect(whole.code, whole.output).toBe(0);
    for (const method of ["getEvent", "pauseWebhookSubscription", "getDelivery"]) {
      const row = new RegExp(`^ +${method}: .*\n`, "m").exec(table)?.[0] ?? `no row for ${method}`;
      const { code, output } = await compile({ "src/rpc/authorization.ts": edit(table, row, "") });
      expect(code).not.toBe(0);
      expect(output).toContain(`'${method}' is missing`);
    }
    const unknown = edit(table, "publish: [", 'burn: ["publisher"],\n    publish: [');
    expect((await compile({ "src/rpc/authorization.ts": unknown })).output).toContain("'burn' does not exist");
  });
});

describe("proto", () => {
  async function copyProto(change: { path: string; from: string; to: string } | undefined): Promise<string> {
    const folder = await openFolder({ "buf.yaml": await readProject("buf.yaml") }, ["third_party"]);
    await cp(join(PROJECT, "proto"), join(folder, "proto"), { recursive: true });
    if (change) {
      const path = join(folder, "proto/nuncio/v1", change.path);
      await writeFile(path, edit(await readFile(path, "utf8"), change.from, change.to));
    }
    return folder;
  }
  const lint = async (folder: string) => run(folder, "buf", ["lint"]);
  const breaking = async (folder: string) =>
    run(folder, "buf", ["breaking", "proto", "--against", join(PROJECT, "proto/image/nuncio.v1.binpb")]);

  it("lint and breaking pass what is committed, and a field more", async () => {
    for (const change of [
      undefined,
      { path: "user.proto", from: "message Name {\n", to: "message Name {\n  optional string middle_name = 99;\n" },
    ]) {
      const folder = await copyProto(change);
      for (const { code, output } of await Promise.all([lint(folder), breaking(folder)])) expect(code, output).toBe(0);
    }
  });

  it.each([
    [
      "an enum value without its prefix",
      { path: "user.proto", from: "USER_STATUS_ACTIVE = 1", to: "ACTIVE = 1" },
      "should be prefixed with",
    ],
    [
      "a field in camel case",
      { path: "user.proto", from: "given_name = 2", to: "givenName = 2" },
      "should be lower_snake_case",
    ],
    [
      "an enum whose zero has another name",
      { path: "user.proto", from: "USER_STATUS_UNSPECIFIED = 0", to: "USER_STATUS_NONE = 0" },
      "_UNSPECIFIED",
    ],
  ])("lint refuses %s", async (_, change, complaint) => {
    const { code, output } = await lint(await copyProto(change));
    expect(code).not.toBe(0);
    expect(output).toContain(complaint);
  });

  it.each([
    ["another number", { path: "user.proto", from: "given_name = 2", to: "given_name = 22" }],
    ["another name", { path: "user.proto", from: "given_name = 2", to: "first_name = 2" }],
    [
      "another type",
      { path: "user.proto", from: "optional string given_name = 2", to: "optional bytes given_name = 2" },
    ],
    ["another enum number", { path: "user.proto", from: "USER_STATUS_ACTIVE = 1", to: "USER_STATUS_ACTIVE = 9" }],
    ["another RPC", { path: "event_service.proto", from: "rpc GetEvent(", to: "rpc FetchEvent(" }],
  ])("breaking refuses %s for what was released", async (_, change) => {
    const { code, output } = await breaking(await copyProto(change));
    expect(code).not.toBe(0);
    expect(output).toContain(change.path);
  });
});

describe("generated code", () => {
  const EDITED = "nuncio/v1/user_pb.ts";

  it("in TypeScript is refused when a file was edited, is missing, or is too many", async () => {
    const folder = await openFolder({});
    await cp(join(PROJECT, "gen"), join(folder, "gen"), { recursive: true });
    const path = (name: string) => join(folder, "gen", name);
    await writeFile(path(EDITED), `${await readFile(path(EDITED), "utf8")}// by hand\n`);
    await rename(path("nuncio/v1/event_pb.ts"), path("nuncio/v1/another_pb.ts"));
    const { code, output } = await run(PROJECT, "node", ["scripts/generated-typescript.mjs", path("")]);
    expect(code).toBe(1);
    expect(
      output
        .split("\n")
        .slice(1, -1)
        .map((line) => line.trim()),
    ).toEqual(["nuncio/v1/another_pb.ts", "nuncio/v1/event_pb.ts", EDITED]);
  });

  it("in TypeScript passes as it is committed", async () => {
    const { code, output } = await run(PROJECT, "node", ["scripts/generated-typescript.mjs"]);
    expect(code, output).toBe(0);
  });

  it("in Go is refused in CI when it was edited, or when there is no Go to check it with", async () => {
    const folder = await openFolder({ "gen/nuncio/v1/user.pb.go": "package nunciov1\n" });
    const check = ["scripts/generate-go.mjs", "--check", join(folder, "gen")];
    const stale = await run(PROJECT, "node", check, { CI: "true" });
    expect(stale.code).toBe(1);
    expect(stale.output).toMatch(/clients\/go\/gen is not (what proto\/ generates|checked)/);
    const without = await run(PROJECT, join(BIN, "node"), check, { CI: "true", PATH: folder });
    expect(without.code).toBe(1);
    expect(without.output).toContain("no Go on the PATH");
  });
});

describe("table of settings", () => {
  it("is refused once a cell of it was edited, and when its place is gone", async () => {
    const page = withSettingsTable(await readProject(SETTINGS_PAGE));
    expect(withSettingsTable(page)).toBe(page);
    for (const [from, to] of [
      ["`25000`", "`30000`"],
      ["| `NUNCIO_LISTEN` |", "| `NUNCIO_BIND` |"],
      ["| `NUNCIO_LOG_LEVEL`", "| `NUNCIO_MADE_UP` | `1` | worker | Nothing. |\n| `NUNCIO_LOG_LEVEL`"],
    ] as const) {
      const edited = edit(page, from, to);
      expect(withSettingsTable(edited)).not.toBe(edited);
      expect(withSettingsTable(edited)).toBe(page);
    }
    expect(() => withSettingsTable(edit(page, "<!-- /settings -->", ""))).toThrow("has no place for the table");
  });
});

describe("migrations", () => {
  const check = (folder: string) => run(folder, "drizzle-kit", ["check", "--dialect=postgresql", "--out=drizzle"]);

  async function copyMigrations(): Promise<string> {
    const folder = await openFolder({}, ["node_modules"]);
    await cp(join(PROJECT, "drizzle"), join(folder, "drizzle"), { recursive: true });
    return folder;
  }

  it("pass as they are committed", async () => {
    const { code, output } = await check(await copyMigrations());
    expect(code, output).toBe(0);
  });

  it("are refused when two of them follow the same one", async () => {
    const folder = await copyMigrations();
    const meta = (n: number) => join(folder, `drizzle/meta/000${n}_snapshot.json`);
    const { prevId } = JSON.parse(await readFile(meta(3), "utf8"));
    const last = JSON.parse(await readFile(meta(4), "utf8"));
    await writeFile(meta(4), JSON.stringify({ ...last, prevId }));
    const { code, output } = await check(folder);
    expect(code).not.toBe(0);
    expect(output).toContain("collision");
  });

  it("are refused when a snapshot is broken", async () => {
    const folder = await copyMigrations();
    await writeFile(join(folder, "drizzle/meta/0004_snapshot.json"), '{"version":"7"}');
    const { code, output } = await check(folder);
    expect(code).not.toBe(0);
    expect(output).toContain("0004_snapshot.json");
  });
});

describe("dead code", () => {
  const SOURCES = {
    "package.json": JSON.stringify({ name: "house", type: "module", private: true }),
    "src/server.ts": 'import { used } from "./core/x.ts";\n\nprocess.exitCode = used;\n',
    "src/core/x.ts": "export const used = 1;\n",
  };

  async function knip(files: Record<string, string>): Promise<Result> {
    const { $schema: _, ...options } = JSON.parse(await readProject("knip.json"));
    const folder = await openFolder({ ...SOURCES, "knip.json": JSON.stringify(options), ...files });
    return run(folder, "knip", ["--no-progress"]);
  }

  it("is not seen where there is none", async () => {
    const { code, output } = await knip({});
    expect(code, output).toBe(0);
  });

  it.each([
    ["an export", { "src/core/x.ts": "export const used = 1;\nexport const forgotten = 2;\n" }, "forgotten"],
    ["a file", { "src/core/forgotten.ts": "export const x = 1;\n" }, "src/core/forgotten.ts"],
    [
      "a dependency",
      { "package.json": JSON.stringify({ name: "house", type: "module", dependencies: { forgotten: "1.0.0" } }) },
      "forgotten",
    ],
    [
      "a package that is not listed",
      { "src/core/x.ts": 'import forgotten from "forgotten";\n\nexport const used = forgotten;\n' },
      "forgotten",
    ],
  ] as [string, Record<string, string>, string][])("is refused: %s", async (_, files, name) => {
    const { code, output } = await knip(files);
    expect(code).not.toBe(0);
    expect(output).toContain(name);
  });
});

describe("npm run check", () => {
  it("runs every rule that has a fixture here", async () => {
    const source = await readProject("scripts/check.ts");
    const names = [...source.matchAll(/(?:command\(\s*|name: )"([^"]+)"/g)].map(([, name]) => name);
    expect(names).toEqual([
      "types",
      "lint, format, import rules",
      "proto lint",
      "proto breaking",
      "generated TypeScript",
      "generated Go",
      "migrations",
      "table of settings",
      "dead code",
    ]);
  });
});
