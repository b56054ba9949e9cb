import { readFileSync } from "node:fs";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import { CommanderError } from "commander";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { CliError, EXIT, exitCodeOf } from "./cli/exit-codes.ts";
import { harmless } from "./cli/output.ts";
import { createProgram } from "./cli/program.ts";
import { endsByItself } from "./cli/session.ts";

// `npm run nuncio -- …`: the command line.

process.exitCode = await main();

async function main(): Promise<number> {
  const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as {
    version: string;
  };
  // Whoever reads us has had enough (`| head`): no fault of anybody's.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (!endsByItself()) process.exit(error.code === "EPIPE" ? EXIT.ok : EXIT.bug);
  });
  // A connection that breaks outside every call has failed the call as well, and that is told.
  process.on("uncaughtException", (error) => fail(error));
  try {
    await createProgram(version).parseAsync();
    return EXIT.ok;
  } catch (error) {
    // Commander has said it already, and ends so for --help and --version too.
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    process.stderr.write(`${explain(error)}\n`);
    return exitCodeOf(error);
  }
}

/** An error outside every call: a connection that breaks, of which its call has told already, or a fault of ours. */
function fail(error: NodeJS.ErrnoException): never {
  if (/^(ERR_HTTP2|ECONN|EPIPE)/.test(error.code ?? "")) process.exit(EXIT.unavailable);
  process.stderr.write(`${harmless(error.message)}\n`);
  process.exit(EXIT.bug);
}

/** What a server says may be told by anybody who has its address. */
function explain(error: unknown): string {
  if (error instanceof CliError) return harmless(error.message);
  if (!(error instanceof ConnectError)) return error instanceof Error ? (error.stack ?? error.message) : String(error);
  const [info] = error.findDetails(ErrorInfoSchema);
  const lines = [`${info?.reason ? `${info.reason}: ` : ""}${error.rawMessage}`];
  const faults = error.findDetails(BadRequestSchema).flatMap(({ fieldViolations }) => fieldViolations);
  // The message of a single fault is that fault.
  if (faults.length > 1) for (const { field, description } of faults) lines.push(`  ${field}: ${description}`);
  const [retry] = error.findDetails(RetryInfoSchema);
  if (retry?.retryDelay) lines.push(`Try again in ${Math.ceil(durationMs(retry.retryDelay) / 1_000)} s.`);
  if (info === undefined)
    lines.push("No answer of a Nuncio: is it running, and is --address its RPC port (NUNCIO_LISTEN)?");
  return lines.map(harmless).join("\n");
}
