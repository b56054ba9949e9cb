import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Command } from "commander";
import { connectToNuncio, type Nuncio } from "./client.ts";
import { CliError, EXIT } from "./exit-codes.ts";
import { Output } from "./output.ts";

/** What every command understands. */
type GlobalOptions = {
  readonly address: string;
  readonly keyFile?: string;
  readonly tenant?: string;
  readonly json?: boolean;
};

/** What `npm start` made for itself under this name in the project's folder; undefined if nothing. */
export function readKept(name: string): string | undefined {
  const path = join(".nuncio", name);
  return existsSync(path) ? readFileSync(path, "utf8").trim() : undefined;
}

/** `host:port`, or an http or https URL. */
export function checkAddress(address: string): string {
  const url = address.includes("://") ? address : `http://${address}`;
  if (URL.canParse(url) && /^https?:$/.test(new URL(url).protocol)) return address;
  throw new CliError(EXIT.usage, `--address ${address} is neither host:port nor a URL.`);
}

/** One run of one command: where it goes, as whom, and how it shows what it gets. Nothing is sent before a call. */
export class Session {
  readonly out: Output;
  readonly #options: GlobalOptions;
  #nuncio: Nuncio | undefined;

  constructor(command: Command) {
    const options = command.optsWithGlobals<GlobalOptions>();
    const isGiven = command.getOptionValueSourceWithGlobals("address") !== "default";
    this.#options = { ...options, address: isGiven ? options.address : process.env.NUNCIO_LISTEN || options.address };
    this.out = new Output(this.#options.json === true);
  }

  get address(): string {
    return this.#options.address;
  }

  get nuncio(): Nuncio {
    this.#nuncio ??= connectToNuncio(checkAddress(this.#options.address), findKey(this.#options));
    return this.#nuncio;
  }

  /** The credential that calls would carry; undefined where there is none. */
  get key(): string | undefined {
    try {
      return findKey(this.#options);
    } catch {
      return undefined;
    }
  }

  get tenantId(): string {
    const { tenant } = this.#options;
    if (!tenant) throw new CliError(EXIT.usage, "Which tenant? Say --tenant <id>, or set NUNCIO_TENANT.");
    return tenant;
  }

  /** The tenant where one was given: for what names its own. */
  get tenantIdOrNone(): string | undefined {
    return this.#options.tenant || undefined;
  }

  close(): void {
    this.#nuncio?.close();
  }
}

/** Runs a command's work with a session of its own, and closes it, however it ends. */
export function withSession<Args extends unknown[]>(
  work: (session: Session, ...args: Args) => Promise<void>,
): (...args: [...Args, Command]) => Promise<void> {
  return async (...args) => {
    const session = new Session(args.at(-1) as Command);
    try {
      await work(session, ...(args.slice(0, -1) as unknown as Args));
    } finally {
      session.close();
    }
  };
}

/** Not from the command line, where every user of the machine could read it. */
function findKey({ keyFile }: GlobalOptions): string {
  const given = process.env.NUNCIO_KEY || process.env.NUNCIO_BOOTSTRAP_OPERATOR_KEY;
  const key = keyFile === undefined ? given || readKept("operator-key") : readText(keyFile);
  // Checked here, since an error about the header that it does not fit into would quote it.
  if (key && !/^[\x21-\x7e]+$/.test(key)) {
    throw new CliError(EXIT.credential, "The key is not one line of printable ASCII without spaces.");
  }
  if (key) return key;
  throw new CliError(
    EXIT.credential,
    "No key: set NUNCIO_KEY, or say --key-file <file>, or run this where `npm start` keeps one (.nuncio/operator-key).",
  );
}

/** A file as the user named it (`-`: standard input), without the space around it. */
export function readText(file: string): string {
  return readBytes(file).toString("utf8").trim();
}

export function readBytes(file: string): Buffer {
  try {
    return readFileSync(file === "-" ? 0 : userPath(file));
  } catch (cause) {
    throw new CliError(EXIT.usage, `Cannot read ${file}: ${(cause as Error).message}`, { cause });
  }
}

/** A path as the user meant it: npm runs commands in the project's folder and says where it was called. */
function userPath(file: string): string {
  return resolve(process.env.INIT_CWD ?? process.cwd(), file);
}

let hasOwnEnd = false;

/** Whether the command that runs comes to an end of its own when nobody reads it any more. */
export function endsByItself(): boolean {
  return hasOwnEnd;
}

/** Ends when the user has had enough: for commands that go on by themselves. The signal is no fault. */
export function untilInterrupted(): AbortSignal {
  hasOwnEnd = true;
  const ending = new AbortController();
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(name, () => ending.abort());
  // A pipe whose reader has gone: nobody reads the rest.
  process.stdout.on("error", () => ending.abort());
  return ending.signal;
}
