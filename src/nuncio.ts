import { readFileSync } from "node:fs";
import { ConnectError } from "@connectrpc/connect";
import { CommanderError } from "commander";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { CliError, EXIT, exitCodeOf } from "./cli/exit-codes.ts";
import { createProgram } from "./cli/program.ts";

// `npm run nuncio -- …`: the command line.

process.exitCode = await main();

async function main(): Promise<number> {
  const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as {
    version: string;
  };
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

function explain(error: unknown): string {
  if (error instanceof CliError) return error.message;
  if (!(error instanceof ConnectError)) return error instanceof Error ? (error.stack ?? error.message) : String(error);
  const [info] = error.findDetails(ErrorInfoSchema);
  const lines = [`${info?.reason ? `${info.reason}: ` : ""}${error.rawMessage}`];
  for (const { fieldViolations } of error.findDetails(BadRequestSchema)) {
    for (const { field, description } of fieldViolations) lines.push(`  ${field}: ${description}`);
  }
  const [retry] = error.findDetails(RetryInfoSchema);
  if (retry?.retryDelay) lines.push(`Try again in ${retry.retryDelay.seconds} s.`);
  if (info === undefined) lines.push("No answer of a Nuncio: is it running, and is --address right?");
  return lines.join("\n");
}
