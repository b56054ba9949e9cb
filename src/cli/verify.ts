import type { Command } from "commander";
import { Secret } from "../core/secret.ts";
import { SIGNING_SECRET_PREFIX } from "../core/signature.ts";
import { TOLERANCE_SECONDS, type Verdict, verifyRequest } from "../core/verification.ts";
import { CliError, EXIT } from "./exit-codes.ts";
import { Output, styled } from "./output.ts";
import { readBytes, readText } from "./session.ts";

type VerifyOptions = {
  readonly body: string;
  readonly header?: readonly string[];
  readonly headers?: string;
  readonly secretFile?: string;
  readonly ignoreTime?: boolean;
};

export function addVerify(program: Command): void {
  program
    .command("verify")
    .summary("say which signature of a received request fails, and why")
    .description(
      "Judges a request that a receiver got: the exact bytes of its body, its headers, the signing secret. Asks no server. " +
        "Exit code 0 if both signatures are good, 1 if not.",
    )
    .requiredOption("--body <file>", "the body, byte for byte; - is standard input")
    .option("--header <name:value...>", "a header; may be given several times")
    .option("--headers <file>", "the headers, one `name: value` a line, as curl -i prints them")
    .option("--secret-file <file>", "signing secrets, one a line (default: NUNCIO_SIGNING_SECRET)")
    .option("--ignore-time", `do not judge the time: for a request kept longer than ${TOLERANCE_SECONDS} s`)
    .action((options: VerifyOptions, command: Command) => {
      verify(new Output(command.optsWithGlobals<{ json?: boolean }>().json === true), options);
    });
}

function verify(out: Output, options: VerifyOptions): void {
  if (options.body === "-" && options.headers === "-") {
    throw new CliError(EXIT.usage, "Standard input is the body or the headers, not both.");
  }
  const lines = [
    ...(options.header ?? []),
    ...(options.headers === undefined ? [] : readText(options.headers).split(/\r?\n/)),
  ];
  const request = { headers: readHeaders(lines), body: readBytes(options.body) };
  const verdicts = verifyRequest(request, readSecrets(options), options.ignoreTime ? undefined : Date.now() / 1000);
  for (const verdict of verdicts) {
    if (out.isJson) out.json({ ...verdict, fault: verdict.fault ?? null });
    else out.say(describeVerdict(verdict));
  }
  const failed = verdicts.filter(({ fault }) => fault !== undefined).length;
  if (verdicts.some(({ fault }) => fault === "TIMESTAMP_TOO_OLD"))
    out.note("Of a request that was kept: --ignore-time.");
  if (failed > 0) throw new CliError(EXIT.no, `${failed} of ${verdicts.length} signatures failed.`);
}

export function describeVerdict({ header, fault, explanation }: Verdict): string {
  const word = fault === undefined ? styled("green", "good  ") : styled("red", "FAILED");
  return `${word}  ${header}: ${fault === undefined ? "" : `${fault}, `}${explanation}`;
}

/** Of several lines with one name the last counts. Lines without a colon, such as a status line, are passed over. */
function readHeaders(lines: readonly string[]): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const line of lines) {
    const colon = line.indexOf(":");
    if (colon > 0) headers[line.slice(0, colon).trim().toLowerCase()] = line.slice(colon + 1).trim();
  }
  return headers;
}

/** What the libraries take: `whsec_` and the base64 of 24–64 bytes. Ours have 32. */
const SECRET_PATTERN = new RegExp(`^${SIGNING_SECRET_PREFIX}[A-Za-z0-9+/]{32,86}={0,2}$`);

/** Not from the command line, where every user of the machine could read them. */
function readSecrets({ secretFile }: VerifyOptions): Secret[] {
  const text = secretFile === undefined ? (process.env.NUNCIO_SIGNING_SECRET ?? "") : readText(secretFile);
  const secrets = text.split(/\s+/).filter((secret) => secret !== "");
  if (secrets.length === 0) {
    throw new CliError(EXIT.usage, "Which secret? Set NUNCIO_SIGNING_SECRET, or say --secret-file <file>.");
  }
  if (secrets.some((secret) => !SECRET_PATTERN.test(secret))) {
    throw new CliError(
      EXIT.usage,
      `A signing secret begins with ${SIGNING_SECRET_PREFIX}: give it whole, as it was printed.`,
    );
  }
  return secrets.map((secret) => new Secret(secret));
}
