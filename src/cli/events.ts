import type { Timestamp } from "@bufbuild/protobuf/wkt";
import type { Command } from "commander";
import { EventSchema, type EventType, EventTypeSchema } from "../../gen/nuncio/v1/event_pb.ts";
import { GetEventResponseSchema } from "../../gen/nuncio/v1/event_service_pb.ts";
import { DELIVERY_HEAD, deliveryRow } from "./deliveries.ts";
import { noteMore, pagesOf, parseLimit } from "./paging.ts";
import { type Session, withSession } from "./session.ts";
import { collecting, formatTime, parseTime, toWord, wordParser, wordsOf } from "./words.ts";

type EventFilter = {
  readonly type?: EventType[];
  readonly user?: string;
  readonly after?: Timestamp;
  readonly before?: Timestamp;
  readonly limit?: number;
};

const SHOWN = 50;

export function addEvents(program: Command): void {
  const events = program.command("events").summary("list events, show one with its deliveries");
  events
    .command("list")
    .description("Lists events, newest first.")
    .option("--type <types>", wordsOf(EventTypeSchema).join(", "), collecting(wordParser(EventTypeSchema)))
    .option("--user <id>", "about this user")
    .option("--after <time>", "accepted since, such as 2h (ago) or 2026-03-01T04:00:00Z", parseTime)
    .option("--before <time>", "accepted before", parseTime)
    .option("--limit <number>", `how many (default: ${SHOWN})`, parseLimit)
    .action(withSession(list));
  events
    .command("get")
    .argument("<id>")
    .description("Shows an event as it was published, and where it went.")
    .action(withSession(get));
}

async function list(session: Session, { type, user, after, before, limit = SHOWN }: EventFilter): Promise<void> {
  const { out, nuncio, tenantId } = session;
  const { items: events, hasMore } = await pagesOf(limit, async (page) => {
    const response = await nuncio.events.listEvents({
      tenantId,
      eventTypes: type ?? [],
      userId: user ?? "",
      ...(after === undefined ? {} : { createTimeAfter: after }),
      ...(before === undefined ? {} : { createTimeBefore: before }),
      ...page,
    });
    return { items: response.events, nextPageToken: response.nextPageToken };
  });
  if (out.isJson) for (const event of events) out.message(EventSchema, event);
  else {
    out.table(
      ["ID", "TYPE", "USER", "SEQUENCE", "ACCEPTED"],
      events.map((event) => [
        event.id,
        toWord(EventTypeSchema, event.type),
        event.user?.id ?? "",
        String(event.userSequence),
        formatTime(event.createTime),
      ]),
      "No such events.",
    );
  }
  noteMore(out, limit, hasMore);
}

async function get(session: Session, id: string): Promise<void> {
  const { out, nuncio, tenantId } = session;
  const response = await nuncio.events.getEvent({ tenantId, id });
  if (out.isJson) {
    out.message(GetEventResponseSchema, response);
    return;
  }
  if (response.event !== undefined) out.message(EventSchema, response.event);
  out.say("");
  out.table(DELIVERY_HEAD, response.deliveries.map(deliveryRow), "It matched no subscription.");
}
