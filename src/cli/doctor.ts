import type { Command } from "commander";
import { withSession } from "./session.ts";

export function addDoctor(program: Command): void {
  program
    .command("doctor")
    .summary("check settings, database, clock, wake-ups and who answers")
    .description(
      "Checks what Nuncio needs, from this machine and with its environment: the settings, the database (schema, roles, " +
        "partitions, keys, clock, NOTIFY, old transactions), the server, the workers. What npm start keeps under .nuncio/ is " +
        "used where a setting is missing. Changes nothing. Exit code 1 if it finds a fault.",
    )
    .action(
      withSession(async (session) => {
        // Loaded when it is needed: what asks the database takes longer to load than most commands take.
        const { examine } = await import("./doctor-checks.ts");
        await examine(session);
      }),
    );
}
