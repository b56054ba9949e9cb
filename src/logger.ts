import { type Logger, pino } from "pino";

export type { Logger };

/**
 * One JSON line per unit of work, on standard output. Fields are ids and figures; the redaction is a second fence for
 * what should not have been passed in the first place.
 */
export function createLogger(process: "server" | "worker" | "migrate" | "start", level: string): Logger {
  return pino({
    level,
    base: { process },
    timestamp: pino.stdTimeFunctions.isoTime,
    redact: {
      paths: ["authorization", "*.authorization", "headers", "*.headers", "body", "*.body", "secret", "*.secret"],
      censor: "[redacted]",
    },
    serializers: { error: serializeError },
  });
}

/** Code and message of an error and its causes. A driver's query and parameters, which hold payloads, stay out. */
function serializeError(error: unknown): unknown {
  if (!(error instanceof Error)) return { message: String(error) };
  const code = "code" in error ? error.code : undefined;
  // Drizzle puts the statement and its parameters into the message; the driver's own error is its cause.
  const message = error.message.startsWith("Failed query") ? "failed query" : error.message;
  return {
    name: error.name,
    message,
    code,
    stack: error.stack?.split("\n").slice(1, 8).join("\n"),
    cause: error.cause === undefined ? undefined : serializeError(error.cause),
  };
}
