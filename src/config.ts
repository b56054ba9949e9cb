import { type AddressPolicy, parseAllowedCidrs } from "./core/address-policy.ts";
import { LEASE_MARGIN_MS } from "./core/delivery.ts";
import { parseKeyring } from "./core/encryption.ts";
import { longestScheduleMs, parseDuration, parseSchedule } from "./core/schedule.ts";
import { Secret } from "./core/secret.ts";
import { looksSecret } from "./core/secret-words.ts";

/** Who reads a setting. */
type Process = "server" | "worker";

/** One `NUNCIO_*` setting: what the documentation says and what the processes use come from this one place. */
type Setting<T> = {
  readonly name: string;
  /** As it would be written; undefined: required. */
  readonly fallback: string | undefined;
  readonly usedBy: readonly Process[];
  /** Meaning, unit and consequence, for `docs/settings.md`. */
  readonly about: string;
  /** The value, or an Error that says what is expected. */
  readonly parse: (text: string) => T;
};

function setting<T>(
  name: string,
  fallback: string | undefined,
  usedBy: readonly Process[],
  parse: (text: string) => T,
  about: string,
): Setting<T> {
  return { name: `NUNCIO_${name}`, fallback, usedBy, about, parse };
}

const BOTH = ["server", "worker"] as const;
const SERVER = ["server"] as const;
const WORKER = ["worker"] as const;

/** Every setting. `npm run check` compares this table with `docs/settings.md`. */
export const SETTINGS = {
  databaseUrl: setting(
    "DATABASE_URL",
    undefined,
    BOTH,
    parseDatabaseUrl,
    "The Postgres to use (15 or later), as `postgres://user:password@host:port/database`. The user has to be a member of the roles `nuncio_server` and `nuncio_worker`, which the migration makes. A direct connection: a pooler in transaction mode swallows LISTEN. `npm start` sets it to its embedded Postgres unless it is set.",
  ),
  secretKeys: setting(
    "SECRET_KEYS",
    undefined,
    BOTH,
    parseKeyring,
    "Keys that encrypt signing secrets and header values at rest, as `kid:base64,…`, each 32 random bytes. The first encrypts, all decrypt. Without a key that stored secrets need, a process refuses to start. `npm start` makes one under `.nuncio/`.",
  ),
  bootstrapOperatorKey: setting(
    "BOOTSTRAP_OPERATOR_KEY",
    undefined,
    SERVER,
    parseOperatorKey,
    "A bearer credential with every role, at least 20 characters. `npm start` makes, prints and keeps one under `.nuncio/`.",
  ),
  listen: setting(
    "LISTEN",
    "127.0.0.1:8080",
    SERVER,
    parseAddress,
    "Where the RPC port listens, `host:port`; Connect, gRPC and gRPC-Web over HTTP/1.1 and cleartext HTTP/2. Put TLS in front of it.",
  ),
  operationsListen: setting(
    "OPERATIONS_LISTEN",
    "127.0.0.1:9090",
    SERVER,
    parseAddress,
    "Where the server answers `/healthz`, `/readyz` and `/metrics`. Keep it off the internet.",
  ),
  workerOperationsListen: setting(
    "WORKER_OPERATIONS_LISTEN",
    "127.0.0.1:9091",
    WORKER,
    parseAddress,
    "Where the worker answers `/healthz`, `/readyz` and `/metrics`. Keep it off the internet.",
  ),
  reflection: setting(
    "REFLECTION",
    "true",
    SERVER,
    parseBoolean,
    "Whether gRPC reflection is served, without credential.",
  ),
  workerConcurrency: setting(
    "WORKER_CONCURRENCY",
    "256",
    WORKER,
    wholeNumber(1, 10_000),
    "Real HTTP requests at once, per worker. More needs more memory and sockets, fewer leaves receivers waiting.",
  ),
  maxInFlight: setting(
    "MAX_IN_FLIGHT",
    "16",
    WORKER,
    wholeNumber(1, 10_000),
    "Requests at once to one subscription, per worker. What keeps one slow receiver from taking all slots.",
  ),
  leaseMs: setting(
    "LEASE_MS",
    "25000",
    WORKER,
    wholeNumber(1_000, 600_000),
    "Milliseconds for which a claimed delivery belongs to its worker; after a crash it is delivered again when they have passed. At least `NUNCIO_REQUEST_TIMEOUT_MS` + 5000.",
  ),
  requestTimeoutMs: setting(
    "REQUEST_TIMEOUT_MS",
    "15000",
    WORKER,
    wholeNumber(100, 300_000),
    "Milliseconds for one attempt, from name resolution to the last byte read.",
  ),
  pollIntervalMs: setting(
    "POLL_INTERVAL_MS",
    "1000",
    WORKER,
    wholeNumber(10, 60_000),
    "Milliseconds, jittered by a quarter, between looks for due deliveries when no notification arrives.",
  ),
  retrySchedule: setting(
    "RETRY_SCHEDULE",
    "5s,1m,5m,30m,2h,5h,10h,14h,20h,24h",
    BOTH,
    expecting(parseSchedule, "1–50 durations such as 5s,1m,2h"),
    "Delays before the second, third … attempt, each stretched by a random 1.0–1.2, never shortened. After the last one a delivery is a dead letter. The worker goes by it; the server only compares it with `NUNCIO_MAX_PENDING`.",
  ),
  maxPendingMs: setting(
    "MAX_PENDING",
    "7d",
    BOTH,
    expecting(parseDuration, "a duration such as 7d"),
    "How long a delivery may stay unfinished, from its publish on; then it ends as EXPIRED. Longer than the retry schedule with its jitter, shorter than `NUNCIO_PAYLOAD_RETENTION`.",
  ),
  orderHoldMs: setting(
    "ORDER_HOLD",
    "1h",
    WORKER,
    orderHold,
    "How long one failing delivery may hold back the later ones of its user, where a subscription keeps the order; then it ends as ORDER_HOLD. Counted while another one waits and the subscription is being sent to. 1 s at least.",
  ),
  payloadRetentionMs: setting(
    "PAYLOAD_RETENTION",
    "30d",
    BOTH,
    retention,
    "How long an event's payload and id are kept, by whole days in UTC; after that its id may be used anew. A day that an unfinished delivery needs stays. Longer than `NUNCIO_MAX_PENDING`. The worker goes by it; the server only compares.",
  ),
  attemptRetentionMs: setting(
    "ATTEMPT_RETENTION",
    "30d",
    WORKER,
    retention,
    "How long the attempts of deliveries are kept, by whole days in UTC. A delivered delivery is seen for as long as its attempt.",
  ),
  deadLetterRetentionMs: setting(
    "DEAD_LETTER_RETENTION",
    "30d",
    WORKER,
    retention,
    "How long a dead letter is kept after its end.",
  ),
  maxEventBytes: setting(
    "MAX_EVENT_BYTES",
    "262144",
    SERVER,
    wholeNumber(1_024, 16_777_216),
    "Bytes of one event as the body that receivers get.",
  ),
  maxRequestBytes: setting(
    "MAX_REQUEST_BYTES",
    "4194304",
    SERVER,
    wholeNumber(4_096, 67_108_864),
    "Bytes of one RPC request.",
  ),
  maxResponseBytes: setting(
    "MAX_RESPONSE_BYTES",
    "65536",
    WORKER,
    wholeNumber(1_024, 16_777_216),
    "Bytes of a receiver's answer that are read; what is longer is cut off with its connection. The status line decides anyway.",
  ),
  maxSubscriptionsPerTenant: setting(
    "MAX_SUBSCRIPTIONS_PER_TENANT",
    "100",
    SERVER,
    wholeNumber(1, 10_000),
    "Subscriptions a tenant may have. Each event is stored once per matching subscription as a pending delivery.",
  ),
  maxEventsPerSecond: setting(
    "MAX_EVENTS_PER_SECOND",
    "0",
    SERVER,
    wholeNumber(0, 1_000_000),
    "Events that one tenant may publish per second through one server; a second's worth may come at once. 0: no limit. What is over it is RESOURCE_EXHAUSTED with RetryInfo.",
  ),
  maxPendingPerTenant: setting(
    "MAX_PENDING_PER_TENANT",
    "0",
    SERVER,
    wholeNumber(0, 999_999_999),
    "Pending deliveries from which on a tenant's publishes are RESOURCE_EXHAUSTED with RetryInfo. Counted every ten seconds, so that it is not exact. 0: no limit.",
  ),
  userAttributeKeys: setting(
    "USER_ATTRIBUTE_KEYS",
    "",
    SERVER,
    parseAttributeKeys,
    "Keys, separated by commas, that `user.attributes` may have. None by default: an attribute that nobody listed is refused.",
  ),
  targetAllowHttp: setting(
    "TARGET_ALLOW_HTTP",
    "false",
    BOTH,
    parseBoolean,
    "Whether subscriptions may use plain http (ports 80 and 1024 up). Bodies then travel readable. `npm start` sets it to true.",
  ),
  targetAllowedCidrs: setting(
    "TARGET_ALLOWED_CIDRS",
    "",
    BOTH,
    parseAllowedCidrs,
    "Networks, separated by commas, that may be called although they are not public. Each opens them to every tenant. `npm start` sets loopback.",
  ),
  shutdownTimeoutMs: setting(
    "SHUTDOWN_TIMEOUT_MS",
    "20000",
    BOTH,
    wholeNumber(0, 600_000),
    "Milliseconds after SIGTERM for what is in flight to end. Give the process a little more before it is killed.",
  ),
  logLevel: setting(
    "LOG_LEVEL",
    "info",
    BOTH,
    expecting((text) => LOG_LEVELS.find((level) => level === text), "one of trace, debug, info, warn, error, fatal"),
    "Least severe log line to write: trace, debug, info, warn, error or fatal. `npm start` sets it to warn.",
  ),
} as const;

const LOG_LEVELS = ["trace", "debug", "info", "warn", "error", "fatal"] as const;

type Value<K extends keyof typeof SETTINGS> = ReturnType<(typeof SETTINGS)[K]["parse"]>;

export type Config = { readonly [K in keyof typeof SETTINGS]: Value<K> };

/** Names of the settings that a process reads. */
type Keys = keyof typeof SETTINGS;

/** Every fault of the settings at once. */
export class SettingsError extends Error {
  readonly faults: readonly string[];

  constructor(faults: readonly string[]) {
    super(`the settings are not usable:\n${faults.map((fault) => `  - ${fault}`).join("\n")}`);
    this.faults = faults;
  }
}

/** The exit code for settings that cannot work (sysexits.h, EX_CONFIG): starting again does not help. */
export const EXIT_BAD_SETTINGS = 78;

/**
 * Reads and validates what `reader` needs; throws SettingsError with every fault, and never shows a secret's value. A
 * setting of the other process is left at its default.
 */
export function readConfig(env: NodeJS.ProcessEnv, reader: Process): Config {
  const faults: string[] = [];
  const values: Partial<Record<Keys, unknown>> = {};
  for (const key of Object.keys(SETTINGS) as Keys[]) {
    const { name, fallback, usedBy, parse } = SETTINGS[key] as Setting<unknown>;
    const needed = usedBy.includes(reader);
    const text = env[name] ?? fallback;
    if (text === undefined || (text === "" && fallback === undefined)) {
      if (needed) faults.push(`${name} is required`);
      continue;
    }
    try {
      values[key] = parse(needed ? text : (fallback ?? text));
    } catch (error) {
      if (needed) faults.push(`${name}: ${(error as Error).message}`);
    }
  }
  const config = values as Config;
  if (faults.length === 0) faults.push(...findContradictions(config, reader));
  if (faults.length > 0) throw new SettingsError(faults);
  return config;
}

/** Set by `npm start` for its children; no setting of anybody else's. */
export const EXIT_WITH_PARENT = "NUNCIO_EXIT_WITH_PARENT";

/** Names that look like ours and are not: misspelt, or of another version. Worth a warning, not a refusal to start. */
export function findUnknownSettings(env: NodeJS.ProcessEnv): string[] {
  return Object.keys(env).filter((name) => name.startsWith("NUNCIO_") && !KNOWN_NAMES.has(name));
}

/** What the command line reads: who has them set, and starts a server too, made no mistake. */
const OF_THE_COMMAND_LINE = ["NUNCIO_ADDRESS", "NUNCIO_KEY", "NUNCIO_TENANT", "NUNCIO_SIGNING_SECRET"];

const KNOWN_NAMES = new Set([
  ...Object.values(SETTINGS).map(({ name }) => name),
  EXIT_WITH_PARENT,
  ...OF_THE_COMMAND_LINE,
]);

function findContradictions(config: Config, reader: Process): string[] {
  const faults: string[] = [];
  if (reader === "worker" && config.leaseMs < config.requestTimeoutMs + LEASE_MARGIN_MS) {
    faults.push(`NUNCIO_LEASE_MS must be at least NUNCIO_REQUEST_TIMEOUT_MS + ${LEASE_MARGIN_MS}`);
  }
  if (config.maxPendingMs <= longestScheduleMs(config.retrySchedule)) {
    faults.push("NUNCIO_MAX_PENDING must exceed the sum of NUNCIO_RETRY_SCHEDULE × 1.2");
  }
  if (config.maxPendingMs >= config.payloadRetentionMs) {
    faults.push("NUNCIO_MAX_PENDING must stay below NUNCIO_PAYLOAD_RETENTION");
  }
  return faults;
}

export function toAddressPolicy(config: Config): AddressPolicy {
  return { allowHttp: config.targetAllowHttp, allowedCidrs: config.targetAllowedCidrs };
}

function expecting<T>(parse: (text: string) => T | undefined, expected: string): (text: string) => T {
  return (text) => {
    const value = parse(text);
    if (value === undefined) throw new Error(`expected ${expected}`);
    return value;
  };
}

function wholeNumber(min: number, max: number): (text: string) => number {
  return expecting((text) => {
    const value = /^\d{1,9}$/.test(text.trim()) ? Number(text) : Number.NaN;
    return value >= min && value <= max ? value : undefined;
  }, `a whole number from ${min} to ${max}`);
}

const DAY_MS = 86_400_000;
const LONGEST_RETENTION_MS = 3_650 * DAY_MS;

/** Looked for once in a while, so a second at least. */
function orderHold(text: string): number {
  const ms = parseDuration(text);
  if (ms !== undefined && ms >= 1_000) return ms;
  throw new Error("expected a duration such as 1h, at least 1s");
}

/** By whole days, so a day at least; the database functions of retention take no less. */
function retention(text: string): number {
  const ms = parseDuration(text);
  if (ms !== undefined && ms >= DAY_MS && ms <= LONGEST_RETENTION_MS) return ms;
  throw new Error("expected a duration from 1d to 3650d");
}

function parseBoolean(text: string): boolean {
  if (text === "true") return true;
  if (text === "false") return false;
  throw new Error("expected true or false");
}

function parseAddress(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text.trim());
  const port = Number(match?.[3]);
  if (!match || port > 65_535) throw new Error("expected host:port, for example 127.0.0.1:8080 or [::1]:8080");
  return { host: (match[1] ?? match[2]) as string, port };
}

function parseDatabaseUrl(text: string): Secret {
  if (!URL.canParse(text) || !/^postgres(ql)?:$/.test(new URL(text).protocol)) {
    throw new Error("expected postgres://user:password@host:port/database");
  }
  return new Secret(text);
}

function parseOperatorKey(text: string): Secret {
  if (!/^[\x21-\x7e]{20,512}$/.test(text)) throw new Error("expected 20–512 printable ASCII characters without spaces");
  return new Secret(text);
}

function parseAttributeKeys(text: string): ReadonlySet<string> {
  const keys = text
    .split(",")
    .map((key) => key.trim())
    .filter((key) => key !== "");
  for (const key of keys) {
    if (!/^[A-Za-z0-9_-]{1,64}$/.test(key)) throw new Error(`${JSON.stringify(key)} is not 1–64 of A-Za-z0-9_-`);
    if (looksSecret(key)) throw new Error(`${JSON.stringify(key)} looks like a secret, which an event never carries`);
  }
  return new Set(keys);
}
