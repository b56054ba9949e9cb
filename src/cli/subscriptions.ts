import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type Duration, durationMs } from "@bufbuild/protobuf/wkt";
import { type Command, InvalidArgumentError } from "commander";
import { AttemptOutcome, type DeliveryAttempt, DeliveryAttemptSchema } from "../../gen/nuncio/v1/delivery_pb.ts";
import { EventTypeSchema } from "../../gen/nuncio/v1/event_pb.ts";
import {
  ContentTypeSchema,
  type RetryPolicy,
  SubscriptionOrderingSchema,
  SubscriptionState,
  SubscriptionStateSchema,
  type WebhookSubscription,
  WebhookSubscriptionSchema,
} from "../../gen/nuncio/v1/webhook_subscription_pb.ts";
import {
  CreateWebhookSubscriptionResponseSchema,
  RotateWebhookSubscriptionSecretResponseSchema,
} from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import { ATTEMPT_HEAD, attemptRow } from "./deliveries.ts";
import { CliError, EXIT } from "./exit-codes.ts";
import { pagesOf } from "./paging.ts";
import { readText, type Session, withSession } from "./session.ts";
import { collecting, formatTime, parseLength, parseWholeNumber, toWord, wordParser, wordsOf } from "./words.ts";

export function addSubscriptions(program: Command): void {
  const subscriptions = program
    .command("subscriptions")
    .alias("subs")
    .summary("list, create, change, pause, rotate, test, delete webhook subscriptions");

  subscriptions.command("list").description("Lists a tenant's subscriptions.").action(withSession(list));
  subscriptions.command("get").argument("<id>").description("Shows one subscription.").action(withSession(get));
  withSettings(
    subscriptions
      .command("create")
      .argument("<url>", "where deliveries are sent")
      .description("Subscribes a URL and prints the signing secret, which is shown this once."),
  )
    .option("--request-id <id>", "makes trying again safe: the same id answers with the same subscription")
    .action(withSession(add));
  withSettings(
    subscriptions
      .command("update")
      .argument("<id>")
      .description("Changes what is given and nothing else; in force before it returns."),
  )
    .option("--url <url>")
    .option(
      "--unset <fields>",
      `take back, apart by commas: ${Object.keys(UNSETTABLE).join(", ")}`,
      collecting((name) => {
        const path = UNSETTABLE[name];
        if (path === undefined)
          throw new InvalidArgumentError(`Expected one of ${Object.keys(UNSETTABLE).join(", ")}.`);
        return path;
      }),
    )
    .action(withSession(update));
  subscriptions
    .command("pause")
    .argument("<id>")
    .description("Keeps its deliveries until it is resumed. New events go on becoming deliveries.")
    .action(withSession(pause));
  subscriptions
    .command("resume")
    .argument("<id>")
    .description("Sends again: after a pause, and after it was disabled.")
    .action(withSession(resume));
  subscriptions
    .command("rotate")
    .argument("<id>")
    .description("Makes a new signing secret and prints it. For the grace period both sign.")
    .option("--grace <duration>", "how long the old one goes on signing, 0s–7d (default: 24h)", parseLength)
    .action(withSession(rotate));
  subscriptions
    .command("test")
    .argument("<id>")
    .description(
      "Sends a signed nuncio.ping through a worker and shows the real answer. Exit code 1 unless it is a 2xx.",
    )
    .action(withSession(test));
  subscriptions
    .command("delete")
    .argument("<id>")
    .description("Deletes a subscription; what is pending is cancelled.")
    .action(withSession(remove));
}

type Settings = {
  readonly type?: WebhookSubscription["eventTypes"];
  readonly description?: string;
  readonly ordering?: WebhookSubscription["ordering"];
  readonly contentType?: WebhookSubscription["contentType"];
  readonly headerFile?: string;
  readonly rate?: number;
  readonly maxInFlight?: number;
  readonly retry?: Duration[];
};

/** The options that `create` and `update` share, and the field that each fills. */
function withSettings(command: Command): Command {
  return command
    .option(
      "--type <types>",
      "only these events, apart by commas (default: all)",
      collecting(wordParser(EventTypeSchema)),
    )
    .option("--description <text>")
    .option(
      "--ordering <ordering>",
      wordsOf(SubscriptionOrderingSchema).join(", "),
      wordParser(SubscriptionOrderingSchema),
    )
    .option("--content-type <type>", wordsOf(ContentTypeSchema).join(", "), wordParser(ContentTypeSchema))
    .option(
      "--header-file <file>",
      "headers for each request, one `name: value` a line; in `update` they replace all (default: none)",
    )
    .option("--rate <requests>", "requests a second, over all workers", parseWholeNumber)
    .option("--max-in-flight <requests>", "requests at once", parseWholeNumber)
    .option("--retry <delays>", "delays before the second, third … attempt, such as 5s,1m,1h", collecting(parseLength));
}

const UNSETTABLE: Readonly<Record<string, string>> = {
  types: "event_types",
  description: "description",
  headers: "headers",
  rate: "rate_limit",
  "max-in-flight": "max_in_flight",
  retry: "retry_policy",
};

function toFields(settings: Settings): {
  message: MessageInitShape<typeof WebhookSubscriptionSchema>;
  paths: string[];
} {
  const { type, description, ordering, contentType, headerFile, rate, maxInFlight, retry } = settings;
  const fields: Readonly<Record<string, MessageInitShape<typeof WebhookSubscriptionSchema> | undefined>> = {
    event_types: type && { eventTypes: type },
    description: description === undefined ? undefined : { description },
    ordering: ordering === undefined ? undefined : { ordering },
    content_type: contentType === undefined ? undefined : { contentType },
    headers: headerFile === undefined ? undefined : { headers: readHeaders(headerFile) },
    rate_limit: rate === undefined ? undefined : { rateLimit: { requestsPerSecond: rate } },
    max_in_flight: maxInFlight === undefined ? undefined : { maxInFlight },
    retry_policy: retry && { retryPolicy: { schedule: retry } },
  };
  const given = Object.entries(fields).filter(([, field]) => field !== undefined);
  return { message: Object.assign({}, ...given.map(([, field]) => field)), paths: given.map(([path]) => path) };
}

async function list(session: Session): Promise<void> {
  const { out, nuncio, tenantId } = session;
  const { items: subscriptions } = await pagesOf(Number.POSITIVE_INFINITY, async (page) => {
    const response = await nuncio.subscriptions.listWebhookSubscriptions({ tenantId, ...page });
    return { items: response.webhookSubscriptions, nextPageToken: response.nextPageToken };
  });
  if (out.isJson) {
    for (const subscription of subscriptions) out.message(WebhookSubscriptionSchema, subscription);
    return;
  }
  out.table(
    ["ID", "STATE", "EVENTS", "ORDER", "FAILURES", "LAST SUCCESS", "URL"],
    subscriptions.map((subscription) => [
      subscription.id,
      stateOf(subscription),
      typesOf(subscription),
      toWord(SubscriptionOrderingSchema, subscription.ordering),
      String(subscription.consecutiveFailures),
      formatTime(subscription.lastSuccessTime),
      subscription.url,
    ]),
    `The tenant ${tenantId} has no subscriptions.`,
  );
}

async function get(session: Session, id: string): Promise<void> {
  const { webhookSubscription } = await session.nuncio.subscriptions.getWebhookSubscription({
    tenantId: session.tenantId,
    id,
  });
  show(session, webhookSubscription);
}

async function add(session: Session, url: string, options: Settings & { requestId?: string }): Promise<void> {
  const { out, nuncio, tenantId } = session;
  const response = await nuncio.subscriptions.createWebhookSubscription({
    tenantId,
    webhookSubscription: { ...toFields(options).message, url },
    requestId: options.requestId ?? "",
  });
  if (out.isJson) {
    out.message(CreateWebhookSubscriptionResponseSchema, response);
    return;
  }
  show(session, response.webhookSubscription);
  saySecret(session, response.signingSecret);
}

async function update(
  session: Session,
  id: string,
  options: Settings & { url?: string; unset?: string[] },
): Promise<void> {
  const { message, paths } = toFields(options);
  const all = [...paths, ...(options.url === undefined ? [] : ["url"]), ...(options.unset ?? [])];
  if (all.length === 0) throw new CliError(EXIT.usage, "Nothing to change: name at least one field (see --help).");
  const { webhookSubscription } = await session.nuncio.subscriptions.updateWebhookSubscription({
    tenantId: session.tenantId,
    webhookSubscription: { ...message, id, url: options.url ?? "" },
    updateMask: { paths: all },
  });
  show(session, webhookSubscription);
}

async function pause(session: Session, id: string): Promise<void> {
  const { tenantId, nuncio } = session;
  show(session, (await nuncio.subscriptions.pauseWebhookSubscription({ tenantId, id })).webhookSubscription);
}

async function resume(session: Session, id: string): Promise<void> {
  const { tenantId, nuncio } = session;
  show(session, (await nuncio.subscriptions.resumeWebhookSubscription({ tenantId, id })).webhookSubscription);
}

async function rotate(session: Session, id: string, { grace }: { grace?: Duration }): Promise<void> {
  const { out, nuncio, tenantId } = session;
  const response = await nuncio.subscriptions.rotateWebhookSubscriptionSecret({
    tenantId,
    id,
    ...(grace === undefined ? {} : { gracePeriod: grace }),
  });
  if (out.isJson) {
    out.message(RotateWebhookSubscriptionSecretResponseSchema, response);
    return;
  }
  show(session, response.webhookSubscription);
  saySecret(session, response.signingSecret);
}

async function test(session: Session, id: string): Promise<void> {
  const { out, nuncio, tenantId } = session;
  const { attempt = create(DeliveryAttemptSchema) } = await nuncio.subscriptions.testWebhookSubscription({
    tenantId,
    id,
  });
  if (out.isJson) out.message(DeliveryAttemptSchema, attempt);
  else showAttempt(session, attempt);
  if (attempt.outcome !== AttemptOutcome.DELIVERED) throw new CliError(EXIT.no, "The test was not delivered.");
}

async function remove(session: Session, id: string): Promise<void> {
  await session.nuncio.subscriptions.deleteWebhookSubscription({ tenantId: session.tenantId, id });
  session.out.say(`${id} is deleted.`);
}

function showAttempt({ out }: Session, attempt: DeliveryAttempt): void {
  out.table([...ATTEMPT_HEAD], [attemptRow(attempt)], "");
  if (attempt.responseExcerpt !== "") out.fields({ answer: attempt.responseExcerpt });
}

function show({ out }: Session, subscription: WebhookSubscription | undefined): void {
  if (subscription === undefined) return;
  if (out.isJson) {
    out.message(WebhookSubscriptionSchema, subscription);
    return;
  }
  const { id, url, description, ordering, contentType, headers, rateLimit, maxInFlight, retryPolicy } = subscription;
  out.fields({
    id,
    url,
    state: stateOf(subscription),
    events: typesOf(subscription),
    description,
    ordering: toWord(SubscriptionOrderingSchema, ordering),
    "content type": toWord(ContentTypeSchema, contentType),
    headers: Object.keys(headers).join(", "),
    rate: rateLimit === undefined ? "" : `${rateLimit.requestsPerSecond}/s`,
    "max in flight": maxInFlight === undefined ? "" : String(maxInFlight),
    "retries after": describeSchedule(retryPolicy),
    "failures in a row": subscription.consecutiveFailures === 0 ? "" : String(subscription.consecutiveFailures),
    "last success": formatTime(subscription.lastSuccessTime),
    "last failure": subscription.lastFailure
      ? `${formatTime(subscription.lastFailure.time)} ${subscription.lastFailure.detail}`
      : "",
    "old secret until": formatTime(subscription.replacedSecretExpireTime),
    created: formatTime(subscription.createTime),
    updated: formatTime(subscription.updateTime),
  });
}

function saySecret({ out }: Session, secret: string): void {
  out.say(`\nSigning secret, shown this once:\n\n  ${secret}\n`);
}

/** From so many failures in a row on only one attempt is made now and then: see `consecutive_failures` in the proto. */
const FAILING_FROM = 10;

function stateOf({ state, stateReason, consecutiveFailures }: WebhookSubscription): string {
  const word = toWord(SubscriptionStateSchema, state);
  if (stateReason !== "") return `${word} (${stateReason})`;
  const isFailing = state === SubscriptionState.ENABLED && consecutiveFailures >= FAILING_FROM;
  return isFailing ? `${word} (failing: a probe now and then)` : word;
}

function typesOf({ eventTypes }: WebhookSubscription): string {
  return eventTypes.length === 0 ? "all" : eventTypes.map((type) => toWord(EventTypeSchema, type)).join(", ");
}

/** Empty where the operator's schedule holds. */
function describeSchedule(policy: RetryPolicy | undefined): string {
  if (policy === undefined) return "";
  return policy.schedule.map((pause) => `${durationMs(pause) / 1_000}s`).join(", ") || "never";
}

/** From a file and not from the command line: their values are credentials as a rule. */
function readHeaders(file: string): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const line of readText(file)
    .split(/\r?\n/)
    .filter((text) => text.trim() !== "")) {
    const colon = line.indexOf(":");
    if (colon < 1) throw new CliError(EXIT.usage, `${file}: each line is name: value.`);
    headers[line.slice(0, colon).trim()] = line.slice(colon + 1).trim();
  }
  return headers;
}
