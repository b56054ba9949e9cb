import { type Config, EXIT_BAD_SETTINGS, findUnknownSettings, readConfig, SettingsError } from "./config.ts";
import { SecretKeyError } from "./core/encryption.ts";
import { restAfter } from "./core/share-of-time.ts";
import { pause } from "./delivery/pause.ts";
import { createLogger, type Logger } from "./logger.ts";
import type { Tracing } from "./operations/tracing.ts";
import { exitWithParent } from "./supervisor.ts";

/** The wish that a process ends. */
export type Stop = {
  readonly signal: AbortSignal;
  /** Resolves when the wish comes. */
  readonly requested: Promise<void>;
};

const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 5_000;

/**
 * The frame of both processes: settings, log, signals, exit code. The first SIGTERM or SIGINT asks `run` to end, which
 * exits with 0; a second one, or a fault, ends the process at once, and what it held is taken up when its leases end.
 */
export async function runProcess(
  name: "server" | "worker",
  run: (config: Config, logger: Logger, stop: Stop) => Promise<void>,
): Promise<never> {
  let logger = createLogger(name, "info");
  try {
    const config = readConfig(process.env, name);
    logger = createLogger(name, config.logLevel);
    const unknown = findUnknownSettings(process.env);
    if (unknown.length > 0) logger.warn({ unknown }, "settings.unknown");
    await run(config, logger, listenForStop(logger));
    process.exit(0);
  } catch (error) {
    if (error instanceof SettingsError) logger.fatal({ faults: error.faults }, "settings.refused");
    else logger.fatal({ error }, error instanceof SecretKeyError ? "settings.refused" : `${name}.failed`);
    process.exit(error instanceof SettingsError || error instanceof SecretKeyError ? EXIT_BAD_SETTINGS : 1);
  }
}

function listenForStop(logger: Logger): Stop {
  const wish = new AbortController();
  const stop = () => {
    if (wish.signal.aborted) {
      logger.warn("process.stopped_at_once");
      process.exit(1);
    }
    wish.abort();
  };
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
  exitWithParent(() => wish.abort());
  const requested = new Promise<void>((resolve) => {
    wish.signal.addEventListener("abort", () => resolve(), { once: true });
  });
  return { signal: wish.signal, requested };
}

/** Tries until it succeeds, and says what it waits for; false if the wish to stop comes first. A wrong key ends it. */
export async function keepTrying(stop: Stop, logger: Logger, attempt: () => Promise<void>): Promise<boolean> {
  for (let pauseMs = FIRST_PAUSE_MS; !stop.signal.aborted; pauseMs = Math.min(pauseMs * 2, LONGEST_PAUSE_MS)) {
    try {
      await attempt();
      return true;
    } catch (error) {
      if (error instanceof SecretKeyError) throw error;
      logger.warn({ waitingFor: (error as Error).message }, "process.waiting");
      await Promise.race([stop.requested, elapse(pauseMs)]);
    }
  }
  return false;
}

/** Does it again and again until the signal, every `everyMs`, or seldomer where it takes long. A failure is for the log alone. */
export async function keepDoing(
  work: () => Promise<void>,
  { everyMs, onFailure }: { everyMs: number; onFailure: (error: unknown) => void },
  signal: AbortSignal,
): Promise<void> {
  while (!signal.aborted) {
    const beganAtMs = performance.now();
    try {
      await work();
    } catch (error) {
      if (!signal.aborted) onFailure(error);
    }
    const restMs = Math.min(restAfter(performance.now() - beganAtMs), LONGEST_REST_MS);
    await pause(Math.max(everyMs, restMs), signal);
  }
}

/** What is counted is shown, and alerts go by it: never older than this, whatever it takes. */
const LONGEST_REST_MS = 60_000;
const TRACING_CLOSE_MS = 3_000;

/** Sends the last spans, and gives up soon: a collector that is away keeps nobody from ending. */
export async function closeTracing(tracing: Tracing | undefined, logger: Logger): Promise<void> {
  if (tracing === undefined) return;
  try {
    await Promise.race([tracing.close(), elapse(TRACING_CLOSE_MS)]);
  } catch (error) {
    logger.warn({ error }, "tracing.not_sent");
  }
}

/** Resolves after this long, without keeping the process alive. */
export function elapse(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms).unref();
  });
}
