import type { Command } from "commander";
import {
  OperationalEventSchema,
  type OperationalEventType,
  OperationalEventTypeSchema,
} from "../../gen/nuncio/v1/operational_event_pb.ts";
import { noteMore, pagesOf, parseLimit } from "./paging.ts";
import { type Session, withSession } from "./session.ts";
import { collecting, formatTime, toWord, wordParser, wordsOf } from "./words.ts";

type Filter = {
  readonly subscription?: string;
  readonly type?: OperationalEventType[];
  readonly limit?: number;
};

const SHOWN = 50;

export function addOperationalEvents(program: Command): void {
  program
    .command("operational-events")
    .alias("ops")
    .summary("what was given up, failed, recovered, was disabled")
    .description("Lists what happened to a tenant's subscriptions, counted by the hour, newest first.")
    .option("--subscription <id>", "of this subscription")
    .option(
      "--type <types>",
      wordsOf(OperationalEventTypeSchema).join(", "),
      collecting(wordParser(OperationalEventTypeSchema)),
    )
    .option("--limit <number>", `how many (default: ${SHOWN})`, parseLimit)
    .action(withSession(list));
}

async function list(session: Session, { subscription, type, limit = SHOWN }: Filter): Promise<void> {
  const { out, nuncio, tenantId } = session;
  const { items, hasMore } = await pagesOf(limit, async (page) => {
    const filter = { tenantId, subscriptionId: subscription ?? "", types: type ?? [] };
    const response = await nuncio.operations.listOperationalEvents({ ...filter, ...page });
    return { items: response.operationalEvents, nextPageToken: response.nextPageToken };
  });
  if (out.isJson) for (const event of items) out.message(OperationalEventSchema, event);
  else {
    out.table(
      ["FIRST", "LAST", "WHAT", "REASON", "COUNT", "SUBSCRIPTION"],
      items.map((event) => [
        formatTime(event.firstTime),
        formatTime(event.lastTime),
        toWord(OperationalEventTypeSchema, event.type),
        event.reason,
        String(event.count),
        event.subscriptionId,
      ]),
      "Nothing has happened that an operator would have to know.",
    );
  }
  noteMore(out, limit, hasMore);
}
