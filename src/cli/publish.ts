import { create, fromJson, type JsonValue, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import type { Command } from "commander";
import { RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import type { Status } from "../../gen/google/rpc/status_pb.ts";
import { type Event, EventSchema, EventType, EventTypeSchema } from "../../gen/nuncio/v1/event_pb.ts";
import {
  type PublishResponse,
  PublishResponseSchema,
  PublishResultSchema,
} from "../../gen/nuncio/v1/event_service_pb.ts";
import { UserStatus, UserStatusSchema } from "../../gen/nuncio/v1/user_pb.ts";
import { CliError, EXIT } from "./exit-codes.ts";
import { harmless } from "./output.ts";
import { readText, type Session, withSession } from "./session.ts";
import { wordParser, wordsOf } from "./words.ts";

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
/** Below the 4 MiB that a server takes unless it is told otherwise. */
const BATCH_BYTES = 3 * 1024 * 1024;

export function addPublish(program: Command): void {
  program
    .command("publish")
    .summary("publish one event, or a file of them")
    .description(
      "Publishes an event and says how many deliveries it became. With --file: events as JSON, one object or one a line, " +
        "in the fields of nuncio.v1.Event; --tenant goes into those that name none. An event carries the whole user: what is " +
        "not given is unset for whoever receives it.",
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
    .option("--changed <paths...>", "what changed, such as displayName; an update needs it")
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

/**
 * Refused events are shown and the others go on; each is numbered as it stands in the file. What could not be asked is not
 * asked again here: with ids of their own the whole file can be.
 */
async function publishFile(session: Session, file: string): Promise<void> {
  const { out, nuncio } = session;
  const events = readEvents(readText(file), session.tenantIdOrNone);
  const refused = { forGood: 0, forNow: 0 };
  const refusedOf = new Map<string, number>();
  let asked = 0;
  for (const batch of batchesOf(events)) {
    const { results } = await nuncio.events.batchPublish({ events: batch }).catch((error: unknown) => {
      out.note(asked === 0 ? "Nothing was published." : `Events 1–${asked} were published, or refused as shown.`);
      throw error;
    });
    for (const [j, result] of results.entries()) {
      const { case: kind, value } = result.result;
      const event = batch[j] as Event;
      const user = JSON.stringify([event.tenantId, event.user?.id]);
      const behind = refusedOf.get(user);
      if (kind === "failure") {
        refused[isForNow(value) ? "forNow" : "forGood"] += 1;
        refusedOf.set(user, behind ?? asked + j + 1);
      } else if (behind !== undefined) {
        out.note(
          `event ${asked + j + 1} has overtaken event ${behind} of the same user, which was refused: published later, that ` +
            "would come after it. Publish what is true of the user now instead.",
        );
        refusedOf.delete(user);
      }
      if (out.isJson) out.message(PublishResultSchema, result);
      else if (kind === "success") out.say(describe(value));
      else out.say(`event ${asked + j + 1}: ${Code[value?.code ?? 0] ?? ""} ${harmless(value?.message ?? "")}`);
    }
    asked += batch.length;
  }
  const count = refused.forGood + refused.forNow;
  if (count === 0) return;
  const exitCode = refused.forGood === 0 ? EXIT.unavailable : EXIT.refused;
  const later = refused.forNow === 0 ? "" : ` ${refused.forNow} of them may be accepted later: publish the file again.`;
  throw new CliError(exitCode, `${count} of ${events.length} events were refused.${later}`);
}

/** One that says how long to wait. */
function isForNow(failure: Status | undefined): boolean {
  return failure?.details.some(({ typeUrl }) => typeUrl.endsWith(`/${RetryInfoSchema.typeName}`)) ?? false;
}

/** As many as a request may hold, in number and in bytes. */
function* batchesOf(events: readonly Event[]): Generator<Event[]> {
  let batch: Event[] = [];
  let bytes = 0;
  for (const event of events) {
    const size = toBinary(EventSchema, event).length;
    if (batch.length === BATCH || (batch.length > 0 && bytes + size > BATCH_BYTES)) {
      yield batch;
      [batch, bytes] = [[], 0];
    }
    batch.push(event);
    bytes += size;
  }
  if (batch.length > 0) yield batch;
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

function parseJson(text: string, where: string): JsonValue {
  try {
    return JSON.parse(text) as JsonValue;
  } catch (cause) {
    throw new CliError(EXIT.usage, `${where} is not JSON: ${(cause as Error).message}`, { cause });
  }
}

function describe({ eventId, duplicate, deliveries }: PublishResponse): string {
  if (duplicate) return `${eventId}  known already: nothing was stored`;
  return `${eventId}  ${deliveries === 1 ? "1 delivery" : `${deliveries} deliveries`}`;
}
