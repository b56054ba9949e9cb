import { randomBytes } from "node:crypto";
import { request } from "undici";
import { HealthCheckResponse_ServingStatus as ServingStatus } from "../../gen/grpc/health/v1/health_pb.ts";
import { findUnknownSettings, readConfig, SETTINGS, SettingsError } from "../config.ts";
import { openSecretBox, parseKeyring } from "../core/encryption.ts";
import { Secret } from "../core/secret.ts";
import { type Diagnosis, openDiagnosis } from "../store/diagnosis.ts";
import { findPartitionFault } from "../store/housekeeping.ts";
import { findSchemaFault } from "../store/migrations.ts";
import { findOldestSnapshot } from "../store/postgres-state.ts";
import { checkSecretKeys } from "../store/secret-keys.ts";
import { connectToNuncio, type Nuncio } from "./client.ts";
import { CliError, EXIT } from "./exit-codes.ts";
import { harmless, type Output, styled } from "./output.ts";
import { checkAddress, readKept, type Session } from "./session.ts";

/** What one check found. */
type Finding = {
  readonly check: string;
  readonly verdict: "ok" | "warning" | "fault" | "skipped";
  readonly detail: string;
};

const OLDEST_POSTGRES = 150_000;
const CLOCK_WARNING_MS = 1_000;
const SLOW_NOTIFY_MS = 1_000;
const OLD_SNAPSHOT_SECONDS = 600;
const OLD_SNAPSHOT_TRANSACTIONS = 1_000_000;
const PORT_TIMEOUT_MS = 3_000;

/** Tells each finding as it is made; throws if one of them is a fault. */
export async function examine(session: Session): Promise<void> {
  const { out } = session;
  const env = withKept(process.env);
  let faults = 0;
  const tell = (finding: Finding) => {
    if (finding.verdict === "fault") faults += 1;
    print(out, finding);
  };
  for (const finding of checkSettings(env)) tell(finding);
  for await (const finding of checkDatabase(env)) tell(finding);
  for await (const finding of checkServer(session)) tell(finding);
  tell(await checkOperationsPort("server", SETTINGS.operationsListen, env));
  tell(await checkOperationsPort("worker", SETTINGS.workerOperationsListen, env));
  if (faults > 0) throw new CliError(EXIT.no, faults === 1 ? "One fault." : `${faults} faults.`);
}

const KEPT: Readonly<Record<string, string>> = {
  [SETTINGS.databaseUrl.name]: "database-url",
  [SETTINGS.secretKeys.name]: "secret-keys",
  [SETTINGS.bootstrapOperatorKey.name]: "operator-key",
};

function withKept(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const kept = Object.entries(KEPT).flatMap(([name, file]) => {
    const value = readKept(file);
    return value === undefined ? [] : [[name, value] as const];
  });
  return { ...Object.fromEntries(kept), ...env };
}

/** Without these a process does not start, so an environment without them is not that of one. */
const OF_A_PROCESS = {
  server: [SETTINGS.databaseUrl.name, SETTINGS.secretKeys.name, SETTINGS.bootstrapOperatorKey.name],
  worker: [SETTINGS.databaseUrl.name, SETTINGS.secretKeys.name],
} as const;

function checkSettings(env: NodeJS.ProcessEnv): Finding[] {
  const findings: Finding[] = [];
  for (const reader of ["server", "worker"] as const) {
    const check = `settings of the ${reader}`;
    const missing = OF_A_PROCESS[reader].filter((name) => !env[name]);
    if (missing.length > 0) {
      const detail = `this is not the environment of a ${reader}, which needs ${missing.join(", ")}`;
      findings.push({ check, verdict: "skipped", detail });
      continue;
    }
    try {
      readConfig(env, reader);
      findings.push({ check, verdict: "ok", detail: "complete and without contradiction" });
    } catch (error) {
      if (!(error instanceof SettingsError)) throw error;
      for (const wrong of error.faults)
        findings.push({ check, verdict: "fault", detail: `${wrong} (docs/settings.md)` });
    }
  }
  const unknown = findUnknownSettings(env);
  if (unknown.length > 0) {
    findings.push({ check: "settings", verdict: "warning", detail: `no setting has the name ${unknown.join(", ")}` });
  }
  return findings;
}

async function* checkDatabase(env: NodeJS.ProcessEnv): AsyncGenerator<Finding> {
  const url = env[SETTINGS.databaseUrl.name];
  if (!url) {
    yield { check: "database", verdict: "skipped", detail: `${SETTINGS.databaseUrl.name} is not set` };
    return;
  }
  let diagnosis: Diagnosis | undefined;
  try {
    diagnosis = openDiagnosis(new Secret(url));
    const { number, name } = await diagnosis.version();
    const isOld = number < OLDEST_POSTGRES;
    yield {
      check: "database",
      verdict: isOld ? "fault" : "ok",
      detail: isOld ? `Postgres ${name}: 15 or later is needed` : `Postgres ${name} answers`,
    };
    for (const { check, find } of DATABASE_CHECKS) {
      yield { check, ...(await find(diagnosis, env).catch((error: Error) => fault(error.message))) };
    }
  } catch (error) {
    yield { check: "database", verdict: "fault", detail: `does not answer: ${(error as Error).message}` };
  } finally {
    await diagnosis?.close();
  }
}

type Answer = Omit<Finding, "check">;

const ok = (detail: string): Answer => ({ verdict: "ok", detail });
const warning = (detail: string): Answer => ({ verdict: "warning", detail });
const fault = (detail: string): Answer => ({ verdict: "fault", detail });

const DATABASE_CHECKS: readonly {
  check: string;
  find: (database: Diagnosis, env: NodeJS.ProcessEnv) => Promise<Answer>;
}[] = [
  {
    check: "durability",
    find: async (database) => {
      const unsafe = await database.findUnsafeSettings();
      return unsafe.length === 0
        ? ok("fsync and full_page_writes are on")
        : fault(`${unsafe.join(" and ")} is off in Postgres: what is accepted can be lost in a crash`);
    },
  },
  {
    check: "schema",
    find: async ({ sql }) => {
      const wrong = await findSchemaFault(sql);
      return wrong === undefined ? ok("is the one of this version") : fault(wrong);
    },
  },
  {
    check: "roles",
    find: async (database) => {
      const missing = await database.findMissingRoles();
      return missing.length === 0
        ? ok("the user of the URL may be nuncio_server and nuncio_worker")
        : fault(`the user of the URL is no member of ${missing.join(" and ")}: npm run migrate, then GRANT`);
    },
  },
  {
    check: "partitions",
    find: async ({ sql }) => {
      const wrong = await findPartitionFault(sql);
      return wrong === undefined ? ok("tomorrow's are there") : fault(`${wrong}: does a server or worker run?`);
    },
  },
  {
    check: "secret keys",
    find: async ({ sql }, env) => {
      const keys = env[SETTINGS.secretKeys.name];
      if (!keys) return { verdict: "skipped", detail: `${SETTINGS.secretKeys.name} is not set` };
      await checkSecretKeys(sql, openSecretBox(parseKeyring(keys), randomBytes));
      return ok("open what is stored");
    },
  },
  {
    check: "clock",
    find: async (database) => {
      const aheadMs = await database.clockAheadMs(Date.now);
      const off = Math.abs(aheadMs);
      const detail = `that of Postgres is ${Math.round(off)} ms ${aheadMs < 0 ? "behind" : "ahead of"} this machine's`;
      // Which of the two is wrong cannot be told from here; signatures carry that of Postgres.
      return off >= CLOCK_WARNING_MS
        ? warning(
            `${detail}: one of them does not keep time (NTP). If it is that of Postgres, receivers refuse signatures from 5 minutes on`,
          )
        : ok(detail);
    },
  },
  {
    check: "NOTIFY",
    find: async (database) => {
      const tookMs = await database.notifyMs(() => performance.now());
      if (tookMs === undefined) {
        return fault("does not arrive: a pooler in transaction mode? Each delivery waits for NUNCIO_POLL_INTERVAL_MS");
      }
      return tookMs > SLOW_NOTIFY_MS ? warning(`took ${Math.round(tookMs)} ms`) : ok(`took ${tookMs.toFixed(1)} ms`);
    },
  },
  {
    check: "old transactions",
    find: async ({ sql }) => {
      const oldest = await findOldestSnapshot(sql);
      if (oldest === undefined) return ok("none is open");
      const { heldForSeconds, transactions, holder } = oldest;
      const detail = `the longest open one is ${Math.round(heldForSeconds)} s old, the furthest back ${transactions} transactions (${holder})`;
      return heldForSeconds > OLD_SNAPSHOT_SECONDS || transactions > OLD_SNAPSHOT_TRANSACTIONS
        ? warning(`${detail}: dead rows pile up until it ends (docs/operating.md, Long transactions)`)
        : ok(detail);
    },
  },
  {
    check: "vacuum",
    find: async (database) => {
      return (await database.mayWorkersVacuum())
        ? ok("workers may vacuum the outbox themselves")
        : warning(
            "workers leave it to autovacuum: from Postgres 17 on GRANT MAINTAIN ON nuncio.outbox TO nuncio_worker",
          );
    },
  },
  {
    check: "workers",
    find: async (database) => {
      const count = await database.countWorkers();
      return count === 0
        ? fault("none has a heartbeat: nothing is delivered")
        : ok(count === 1 ? "one lives" : `${count} live`);
    },
  },
];

async function* checkServer(session: Session): AsyncGenerator<Finding> {
  const { key } = session;
  const nuncio = connectToNuncio(checkAddress(session.address), key ?? "");
  try {
    const { status } = await nuncio.health.check({}, { timeoutMs: PORT_TIMEOUT_MS });
    const isServing = status === ServingStatus.SERVING;
    yield {
      check: "server",
      ...(isServing ? ok(`${nuncio.address} serves`) : fault(`${nuncio.address} answers and does not serve yet`)),
    };
    yield { check: "credential", ...(await checkCredential(nuncio, key)) };
  } catch (error) {
    yield { check: "server", ...fault(`${nuncio.address} does not answer: ${(error as Error).message}`) };
  } finally {
    nuncio.close();
  }
}

/** By a call that changes nothing, of a tenant that need not be there. */
async function checkCredential(nuncio: Nuncio, key: string | undefined): Promise<Answer> {
  if (key === undefined) return { verdict: "skipped", detail: "there is no key: NUNCIO_KEY, --key-file" };
  try {
    await nuncio.operations.listOperationalEvents({ tenantId: "doctor", pageSize: 1 }, { timeoutMs: PORT_TIMEOUT_MS });
    return ok("the server takes the key");
  } catch (error) {
    return fault(`the server refuses the key: ${(error as Error).message}`);
  }
}

async function checkOperationsPort(
  reader: "server" | "worker",
  { name, fallback, parse }: typeof SETTINGS.operationsListen,
  env: NodeJS.ProcessEnv,
): Promise<Finding> {
  const check = `readiness of the ${reader}`;
  try {
    const { host, port } = parse(env[name] ?? fallback ?? "");
    const url = `http://${host.includes(":") ? `[${host}]` : host}:${port}/readyz`;
    const { statusCode, body } = await request(url, { headersTimeout: PORT_TIMEOUT_MS, bodyTimeout: PORT_TIMEOUT_MS });
    const text = (await body.text()).trim();
    return { check, ...(statusCode === 200 ? ok(`${url} says ready`) : fault(`${url} says: ${text}`)) };
  } catch (error) {
    return {
      check,
      ...warning(`${name} cannot be asked from here: ${(error as Error).message || (error as Error).name}`),
    };
  }
}

const STYLES = { ok: "green", warning: "yellow", fault: "red", skipped: "gray" } as const;
const WIDTH = 24;

function print(out: Output, { check, verdict, detail }: Finding): void {
  if (out.isJson) {
    out.json({ check, verdict, detail });
    return;
  }
  out.say(`${styled(STYLES[verdict], verdict.padEnd(8))} ${check.padEnd(WIDTH)} ${harmless(detail)}`);
}
