import { Command, Option } from "commander";
import { addDeliveries } from "./deliveries.ts";
import { addDoctor } from "./doctor.ts";
import { addEvents } from "./events.ts";
import { addListen } from "./listen.ts";
import { addOperationalEvents } from "./operational-events.ts";
import { addPublish } from "./publish.ts";
import { addRedrive } from "./redrive.ts";
import { addSubscriptions } from "./subscriptions.ts";
import { addTail } from "./tail.ts";
import { addVerify } from "./verify.ts";

/** The command line: every command with its options. Nothing runs before it is parsed. */
export function createProgram(version: string): Command {
  const program = new Command("nuncio")
    .description("Publishes events and manages, watches and repairs their deliveries.")
    .version(version)
    .addOption(new Option("--address <host:port or url>", "the server").env("NUNCIO_ADDRESS").default("127.0.0.1:8080"))
    .option("--key-file <file>", "the bearer credential (default: NUNCIO_KEY, or the one that npm start keeps)")
    .addOption(new Option("--tenant <id>", "the tenant").env("NUNCIO_TENANT"))
    .option("--json", "print one JSON object a line, in the fields of the contract")
    .configureHelp({ showGlobalOptions: true })
    .showHelpAfterError("(--help shows how)")
    .exitOverride()
    .addHelpText(
      "after",
      `
Exit codes: 0 done; 1 the answer is no; 2 wrong command line; 3 refused by the server; 4 credential refused;
5 no answer, or try again later.

In a pipe: npm run --silent nuncio -- … --json`,
    );
  const groups = [
    addPublish,
    addSubscriptions,
    addEvents,
    addDeliveries,
    addOperationalEvents,
    addRedrive,
    addTail,
    addListen,
    addVerify,
    addDoctor,
  ];
  for (const add of groups) add(program);
  return program;
}
