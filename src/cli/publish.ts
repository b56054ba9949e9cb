import { create, fromJson, type JsonValue, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import type { Command } from "commander";
import { type Event, EventSchema, EventType, EventTypeSchema } from "../../gen/nuncio/v1/event_pb.ts";
import {
  type PublishResponse,
  PublishResponseSchema,
  PublishResultSchema,
} from "../../gen/nuncio/v1/event_service_pb.ts";
import { UserStatus, UserStatusSchema } from "../../gen/nuncio/v1/user_pb.ts";
import { CliError, EXIT } from "./exit-codes.ts";
import { readText, type Session, withSession } from "./session.ts";
import { parseJson, wordParser, wordsOf } from "./words.ts";

type PublishOptions = {
  readonly file?: string;
  readonly id?: string;
  readonly type?: EventType;
  readonly user?: string;
  readonly displayName?: string;
  readonly userName?: string;
  readonly email?: string;
  readonly status?: UserStatus;
  readonly changed?: string[];
  readonly reason?: string;
};

const BATCH = 100;

export function addPublish(program: Command): void {
  program
    .command("publish")
    .summary("publish one event, or a file of them")
    .description(
      "Publishes an event and says how many deliveries it became. With --file: events as JSON, one object or one a line, " +
        "in the fields of nuncio.v1.Event; --tenant goes into those that name none.",
    )
    .option("--file <file>", "events as JSON; - is standard input")
    .option("--id <id>", "the event's id, which makes trying again safe (default: the server makes one)")
    .option("--type <type>", wordsOf(EventTypeSchema).join(", "), wordParser<EventType>(EventTypeSchema))
    .option("--user <id>", "whom it is about")
    .option("--display-name <name>")
    .option("--user-name <name>")
    .option("--email <address>", "their primary address")
    .option(
      "--status <status>",
      `${wordsOf(UserStatusSchema).join(", ")} (default: what the type implies)`,
      wordParser<UserStatus>(UserStatusSchema),
    )
    .option("--changed <paths...>", "what an update changed, such as displayName")
    .option("--reason <text>")
    .addHelpText(
      "after",
      "\nExamples:\n  nuncio publish --tenant acme --type user.created --user u_1 --display-name 'Zoë'\n  nuncio publish --file events.ndjson",
    )
    .action(withSession(publish));
}

async function publish(session: Session, options: PublishOptions): Promise<void> {
  if (options.file !== undefined) return publishFile(session, options.file);
  if (options.type === undefined || options.user === undefined) {
    throw new CliError(EXIT.usage, "Say --type and --user, or --file.");
  }
  const event = toEvent(session.tenantId, options.type, options.user, options);
  const response = await session.nuncio.events.publish({ event });
  if (session.out.isJson) session.out.message(PublishResponseSchema, response);
  else session.out.say(describe(response));
}

/** A status that goes with the type, since an event without one is refused; a deleted user has none. */
const IMPLIED_STATUS: Partial<Record<EventType, UserStatus>> = {
  [EventType.USER_CREATED]: UserStatus.ACTIVE,
  [EventType.USER_UPDATED]: UserStatus.ACTIVE,
  [EventType.USER_DEACTIVATED]: UserStatus.DEACTIVATED,
  [EventType.USER_REACTIVATED]: UserStatus.ACTIVE,
};

function toEvent(
  tenantId: string,
  type: EventType,
  userId: string,
  { id, displayName, userName, email, status, changed, reason }: PublishOptions,
): MessageInitShape<typeof EventSchema> {
  return {
    id: id ?? "",
    tenantId,
    type,
    occurTime: timestampNow(),
    user: {
      id: userId,
      status: status ?? IMPLIED_STATUS[type] ?? UserStatus.UNSPECIFIED,
      ...(displayName === undefined ? {} : { displayName }),
      ...(userName === undefined ? {} : { userName }),
      ...(email === undefined ? {} : { emails: [{ value: email, primary: true }] }),
    },
    changed: changed ?? [],
    ...(reason === undefined ? {} : { reason }),
  };
}

/** Refused events are shown and the others go on; each is numbered as it stands in the file. */
async function publishFile(session: Session, file: string): Promise<void> {
  const { out, nuncio } = session;
  const events = readEvents(readText(file), session.tenantIdOrNone);
  let refused = 0;
  for (let i = 0; i < events.length; i += BATCH) {
    const { results } = await nuncio.events.batchPublish({ events: events.slice(i, i + BATCH) });
    for (const [j, result] of results.entries()) {
      const { case: kind, value } = result.result;
      if (kind === "failure") refused += 1;
      if (out.isJson) out.message(PublishResultSchema, result);
      else if (kind === "success") out.say(describe(value));
      else out.say(`event ${i + j + 1}: ${Code[value?.code ?? 0] ?? ""} ${value?.message ?? ""}`);
    }
  }
  if (refused > 0) throw new CliError(EXIT.refused, `${refused} of ${events.length} events were refused.`);
}

/** One object, a list, or one object a line. */
function readEvents(text: string, tenantId: string | undefined): Event[] {
  const isLines = text.startsWith("{") && /\}\s*\n\s*\{/.test(text);
  const values = isLines
    ? text.split("\n").flatMap((line, i) => (line.trim() === "" ? [] : [parseJson(line, `line ${i + 1}`)]))
    : [parseJson(text, "the file")].flat();
  return values.map((value, i) => {
    try {
      const event = fromJson(EventSchema, value as JsonValue);
      return event.tenantId === "" && tenantId !== undefined ? create(EventSchema, { ...event, tenantId }) : event;
    } catch (cause) {
      throw new CliError(EXIT.usage, `event ${i + 1}: ${(cause as Error).message}`, { cause });
    }
  });
}

function describe({ eventId, duplicate, deliveries }: PublishResponse): string {
  if (duplicate) return `${eventId}  known already: nothing was stored`;
  return `${eventId}  ${deliveries === 1 ? "1 delivery" : `${deliveries} deliveries`}`;
}
