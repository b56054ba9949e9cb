import { execFile, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { copyFile, mkdir, mkdtemp, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import postgres, { type Sql } from "postgres";
import { v7 as uuidV7 } from "uuid";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { renderBodyTail, spliceSequence } from "../../src/core/event-body.ts";
import { formatDeliveryId, toUuid } from "../../src/core/ids.ts";
import { Secret } from "../../src/core/secret.ts";
import { formatSigningSecret, toSigningKey } from "../../src/core/signature.ts";
import type { ContentType } from "../../src/core/subscription.ts";
import { toRequestHeaders } from "../../src/delivery/request-headers.ts";
import { createDatabase } from "../support/database.ts";
import { draftEvent } from "../support/fixtures.ts";

const execute = promisify(execFile);
const PAGE = await readFile(join("docs", "verifying.md"), "utf8");
const RECIPES = new Map(
  [...PAGE.matchAll(/^```\w+ recipe=(\S+)\n(.*?)^```$/gms)].map(([, name, code]) => [name as string, code as string]),
);
const INSTALLING_MS = 180_000;

// What arrives

const SECRET = formatSigningSecret(Buffer.alloc(32, 0xfb));
const OTHER_SECRET = formatSigningSecret(Buffer.alloc(32, 1));
const TEN_MINUTES_S = 600;

type Arrival = { readonly headers: Readonly<Record<string, string>>; readonly body: Buffer };

/** A request as the worker sends it. */
function deliver(secrets: readonly string[], timestamp: number, contentType: ContentType = "JSON"): Arrival {
  const event = draftEvent("acme");
  const body = Buffer.from(spliceSequence(42n, renderBodyTail(event)));
  const headers = toRequestHeaders(
    secrets.map((secret) => toSigningKey(new Secret(secret))),
    {
      eventId: event.id,
      deliveryId: formatDeliveryId(toUuid(uuidV7()), toUuid(uuidV7())),
      attempt: 1,
      redrive: false,
      timestamp,
      body,
      traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
      contentType,
      headers: { "x-team": "people" },
    },
  );
  return { headers: Object.fromEntries(pairs(headers)), body };
}

function* pairs(list: readonly string[]): Generator<[string, string]> {
  for (let i = 0; i < list.length; i += 2) yield [list[i] as string, list[i + 1] as string];
}

/** The delivery with one byte replaced: the first of `text`, which stands in the body once. */
function replaceByte({ headers, body }: Arrival, text: string, byte: number): Arrival {
  const changed = Buffer.from(body);
  changed[body.indexOf(text)] = byte;
  return { headers, body: changed };
}

function setHeaders(arrival: Arrival, headers: Record<string, string>): Arrival {
  return { ...arrival, headers: { ...arrival.headers, ...headers } };
}

/** The header that a recipe looks at. */
type Scheme = "webhook-signature" | "x-identity-signature";

const ACCEPTED: Readonly<Record<string, (now: number) => Arrival>> = {
  "a delivery": (now) => deliver([SECRET], now),
  "a delivery as application/cloudevents+json": (now) => deliver([SECRET], now, "CLOUDEVENTS_JSON"),
  "a delivery that two secrets signed": (now) => deliver([OTHER_SECRET, SECRET], now),
};

const REFUSED: Readonly<Record<string, (now: number) => Arrival>> = {
  "a changed byte": (now) => replaceByte(deliver([SECRET], now), "ACTIVE", "a".charCodeAt(0)),
  "a byte that is no UTF-8": (now) => replaceByte(deliver([SECRET], now), "ë", 0xff),
  "a wrong secret": (now) => deliver([OTHER_SECRET], now),
  "a stale time": (now) => deliver([SECRET], now - TEN_MINUTES_S),
  "a stale delivery under a fresh time": (now) => {
    const stale = deliver([SECRET], now - TEN_MINUTES_S);
    const signature = stale.headers["x-identity-signature"] as string;
    return setHeaders(stale, {
      "webhook-timestamp": String(now),
      "x-identity-signature": signature.replace(/^t=\d+/, `t=${now}`),
    });
  },
  "no signature": (now) => {
    const { headers, body } = deliver([SECRET], now);
    const { "webhook-signature": _, "x-identity-signature": __, ...unsigned } = headers;
    return { headers: unsigned, body };
  },
  "an empty signature": (now) =>
    setHeaders(deliver([SECRET], now), { "webhook-signature": "", "x-identity-signature": "" }),
};

const otherId = (now: number) => setHeaders(deliver([SECRET], now), { "webhook-id": "evt_other" });

// What runs a recipe

type Recipe = {
  readonly name: string;
  readonly scheme: Scheme;
  /** Why it cannot run on this machine; undefined if it can. */
  readonly missing?: string | undefined;
  /** What has to be there first and takes its time. */
  readonly prepare?: () => Promise<unknown>;
  /** Writes `verdicts.json` for `arrivals.json`, both in `folder`. */
  readonly judge: (folder: string, code: string) => Promise<unknown>;
};

const JUDGES = resolve("test", "docs", "verifying");
const ENVIRONMENT = { ...process.env, WEBHOOK_SECRET: SECRET, PORT: "0" };

function inTypescript(judge: string): Recipe["judge"] {
  return async (folder, code) => {
    await usePackagesOfTheProject(folder);
    await writeFile(join(folder, "recipe.ts"), code);
    await execute(resolve("node_modules", ".bin", "node"), [join(JUDGES, judge), folder], { env: ENVIRONMENT });
  };
}

async function inGo(folder: string, code: string): Promise<void> {
  for (const file of ["go.mod", "go.sum", "judge_server_test.go"]) {
    await copyFile(join(JUDGES, file), join(folder, file));
  }
  await writeFile(join(folder, "main.go"), code);
  // A recipe is shown as gofmt writes it, and `go test` vets it.
  expect((await execute("gofmt", ["-l", folder])).stdout).toBe("");
  await execute("go", ["test", "-count=1", "."], { cwd: folder, env: { ...ENVIRONMENT, GOWORK: "off" } });
}

async function inPython(folder: string, code: string): Promise<void> {
  await copyFile(join(JUDGES, "judge_function.py"), join(folder, "judge_function.py"));
  await writeFile(join(folder, "recipe.py"), code);
  const env = { ...ENVIRONMENT, PYTHONPATH: await installPythonPackages() };
  await execute("python3", ["judge_function.py"], { cwd: folder, env });
}

async function usePackagesOfTheProject(folder: string): Promise<void> {
  await writeFile(join(folder, "package.json"), '{ "type": "module" }');
  await symlink(resolve("node_modules"), join(folder, "node_modules"));
}

/** The folder that holds them; kept from run to run, and whole whenever it exists. */
async function installPythonPackages(): Promise<string> {
  const requirements = join(JUDGES, "requirements.txt");
  const { stdout: version } = await execute("python3", ["--version"]);
  const key = createHash("sha256")
    .update(version)
    .update(await readFile(requirements));
  const cache = resolve("node_modules", ".cache", "nuncio-python");
  const installed = join(cache, key.digest("hex").slice(0, 16));
  if (existsSync(installed)) return installed;
  await mkdir(cache, { recursive: true });
  const unfinished = await mkdtemp(join(cache, "unfinished-"));
  const quiet = ["--quiet", "--disable-pip-version-check"];
  await execute("python3", ["-m", "pip", "install", ...quiet, "--target", unfinished, "--requirement", requirements]);
  await rename(unfinished, installed);
  return installed;
}

function unlessItRuns(command: string, args: readonly string[], missing: string): string | undefined {
  return spawnSync(command, args).status === 0 ? undefined : missing;
}

// Unlike `go version`, this also refuses a Go older than go.mod asks for.
const noGo = unlessItRuns("go", ["-C", JUDGES, "list", "-m"], "no Go 1.24 on the PATH");
const noPython = unlessItRuns(
  "python3",
  ["-c", "import pip, sys; sys.exit(sys.version_info < (3, 9))"],
  "no Python 3.9 with pip on the PATH",
);

const RUNNABLE: readonly Recipe[] = [
  { name: "receiver", scheme: "webhook-signature", judge: inTypescript("judge-server.ts") },
  { name: "stripe", scheme: "x-identity-signature", judge: inTypescript("judge-function.ts") },
  { name: "node-crypto", scheme: "webhook-signature", judge: inTypescript("judge-function.ts") },
  { name: "go", scheme: "webhook-signature", missing: noGo, judge: inGo },
  {
    name: "python-standardwebhooks",
    scheme: "webhook-signature",
    missing: noPython,
    prepare: installPythonPackages,
    judge: inPython,
  },
  {
    name: "python-stripe",
    scheme: "x-identity-signature",
    missing: noPython,
    prepare: installPythonPackages,
    judge: inPython,
  },
];
const IN_SQL = ["tables", "once", "newer"];

describe("docs/verifying.md", () => {
  it("has no code that is not run here", () => {
    const fences = PAGE.match(/^```.+$/gm) ?? [];
    expect(fences).toHaveLength(RECIPES.size);
    expect([...RECIPES.keys()].sort()).toEqual([...RUNNABLE.map(({ name }) => name), ...IN_SQL].sort());
  });
});

describe.each(RUNNABLE)("the recipe $name", ({ name, scheme, missing, prepare, judge }) => {
  describe.skipIf(missing !== undefined)(missing === undefined ? "runs" : `is skipped: ${missing}`, () => {
    const arrivals = { ...ACCEPTED, ...REFUSED, "another webhook-id": otherId };
    const verdicts = new Map<string, string>();
    let folder: string;

    beforeAll(async () => {
      folder = await mkdtemp(join(tmpdir(), "nuncio-verify-"));
      // Before the clock is read: a delivery is fresh for five minutes.
      await prepare?.();
      const now = Math.floor(Date.now() / 1000);
      const wire = Object.values(arrivals)
        .map((arrive) => arrive(now))
        .map(({ headers, body }) => ({ headers, body: body.toString("base64") }));
      await writeFile(join(folder, "arrivals.json"), JSON.stringify(wire));
      await judge(folder, RECIPES.get(name) as string);
      const found: string[] = JSON.parse(await readFile(join(folder, "verdicts.json"), "utf8"));
      for (const [i, arrival] of Object.keys(arrivals).entries()) verdicts.set(arrival, found[i] as string);
    }, INSTALLING_MS);
    afterAll(() => rm(folder, { recursive: true, force: true }));

    it.each(Object.keys(ACCEPTED))("[B29] verifies %s", (arrival) => {
      expect(verdicts.get(arrival)).toBe("accepted");
    });

    it.each(Object.keys(REFUSED))("[B29] refuses %s", (arrival) => {
      expect(verdicts.get(arrival)).toMatch(/^refused/);
    });

    it(`${scheme === "webhook-signature" ? "refuses" : "does not notice"} another webhook-id`, () => {
      expect(verdicts.get("another webhook-id")).toMatch(scheme === "webhook-signature" ? /^refused/ : /^accepted$/);
    });
  });
});

describe("the recipes in TypeScript", () => {
  it("pass strict type checking", async () => {
    const folder = await mkdtemp(join(tmpdir(), "nuncio-verify-"));
    try {
      await usePackagesOfTheProject(folder);
      for (const name of ["receiver", "stripe", "node-crypto"]) {
        await writeFile(join(folder, `${name}.ts`), RECIPES.get(name) as string);
      }
      const settings = { extends: resolve("tsconfig.json"), include: ["*.ts"] };
      await writeFile(join(folder, "tsconfig.json"), JSON.stringify(settings));
      // What tsc minds, it prints on standard output.
      const { stdout } = await execute(resolve("node_modules", ".bin", "tsc"), ["-p", folder]).catch((error) => error);
      expect(stdout).toBe("");
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});

describe("the statements in SQL", () => {
  let sql: Sql;
  let drop: () => Promise<void> = async () => undefined;

  beforeAll(async () => {
    const database = await createDatabase({ migrated: false });
    drop = database.drop;
    sql = postgres(database.url.reveal(), { max: 1 });
    await sql.unsafe(RECIPES.get("tables") as string);
  });
  afterAll(async () => {
    await sql?.end();
    await drop();
  });

  /** How many rows the statement wrote. */
  const write = async (name: string, ...values: string[]) =>
    (await sql.unsafe(RECIPES.get(name) as string, values)).count;

  it("let an event pass once per tenant", async () => {
    expect(await write("once", "acme", "evt_1")).toBe(1);
    expect(await write("once", "acme", "evt_1")).toBe(0);
    expect(await write("once", "other", "evt_1")).toBe(1);
  });

  it("let an event pass only if no later one of its user has", async () => {
    expect(await write("newer", "acme", "u_1", "00000000000000000042")).toBe(1);
    expect(await write("newer", "acme", "u_1", "00000000000000000041")).toBe(0);
    expect(await write("newer", "acme", "u_1", "00000000000000000042")).toBe(0);
    expect(await write("newer", "acme", "u_1", "00000000000000000043")).toBe(1);
    expect(await write("newer", "acme", "u_2", "00000000000000000001")).toBe(1);
    expect(await write("newer", "other", "u_1", "00000000000000000001")).toBe(1);
  });
});
