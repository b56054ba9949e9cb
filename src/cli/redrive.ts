import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { type Timestamp, timestampDate, timestampMs } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import { Presets, SingleBar } from "cli-progress";
import type { Command } from "commander";
import { DeliveryStateSchema } from "../../gen/nuncio/v1/delivery_pb.ts";
import { EventTypeSchema } from "../../gen/nuncio/v1/event_pb.ts";
import { type Redrive, RedriveSchema, RedriveState } from "../../gen/nuncio/v1/redrive_pb.ts";
import type { DeliveryFilter } from "./deliveries.ts";
import { CliError, EXIT, mayComeGood } from "./exit-codes.ts";
import type { Output } from "./output.ts";
import { type Session, untilInterrupted, withSession } from "./session.ts";
import { collecting, parseTime, wordParser, wordsOf } from "./words.ts";

type RedriveOptions = Pick<DeliveryFilter, "subscription" | "state" | "type" | "after" | "before"> & {
  readonly includeMissed?: boolean;
  readonly includeOvertaken?: boolean;
  readonly requestId?: string;
  readonly detach?: boolean;
  readonly follow?: string;
  readonly cancel?: string;
};

const POLL_MS = 500;
/** The bar's length: what is shown is a part of the range of time, in thousandths. */
const WHOLE = 1_000;

export function addRedrive(program: Command): void {
  program
    .command("redrive")
    .summary("deliver a night's events once more, with progress")
    .description(
      "Starts a job that delivers events of one subscription again, and follows it. Without --state: what became a dead " +
        "letter, and what the subscription missed while it was disabled or not there. Ctrl-C leaves the job running.",
    )
    .option("--subscription <id>")
    .option(
      "--after <time>",
      "events accepted since, such as 12h (ago) or 2026-03-01T04:00:00Z (default: all that are kept)",
      parseTime,
    )
    .option("--before <time>", "events accepted before (default: now)", parseTime)
    .option(
      "--state <states>",
      `${wordsOf(DeliveryStateSchema).slice(2, 4).join(", ")}`,
      collecting(wordParser(DeliveryStateSchema)),
    )
    .option("--type <types>", wordsOf(EventTypeSchema).join(", "), collecting(wordParser(EventTypeSchema)))
    .option("--include-missed", "with --state: also what never became a delivery")
    .option("--include-overtaken", "also what the receiver has got a later event of the same user after")
    .option("--request-id <id>", "makes trying again safe: the same id answers with the same job")
    .option("--detach", "start it and leave")
    .option("--follow <id>", "follow one that runs already")
    .option("--cancel <id>", "end one; what it made pending stays pending")
    .action(withSession(redrive));
}

async function redrive(session: Session, options: RedriveOptions): Promise<void> {
  const { out, nuncio, tenantId } = session;
  const ways = [options.subscription, options.follow, options.cancel].filter((way) => way !== undefined);
  if (ways.length !== 1)
    throw new CliError(EXIT.usage, "Say one of --subscription <id>, --follow <id>, --cancel <id>.");
  if (options.cancel !== undefined) {
    const { redrive: cancelled } = await nuncio.deliveries.cancelRedrive({ tenantId, id: options.cancel });
    return tell(out, cancelled as Redrive);
  }
  const job = options.follow === undefined ? await start(session, options) : await find(session, options.follow);
  if (options.detach) return tell(out, job);
  await follow(session, job);
}

async function start({ nuncio, tenantId }: Session, options: RedriveOptions): Promise<Redrive> {
  const { redrive: job } = await nuncio.deliveries.createRedrive({
    tenantId,
    requestId: options.requestId ?? randomUUID(),
    redrive: {
      subscriptionId: options.subscription ?? "",
      states: options.state ?? [],
      eventTypes: options.type ?? [],
      includeMissed: options.includeMissed ?? false,
      includeOvertaken: options.includeOvertaken ?? false,
      ...(options.after === undefined ? {} : { createTimeAfter: options.after }),
      ...(options.before === undefined ? {} : { createTimeBefore: options.before }),
    },
  });
  return job as Redrive;
}

async function find({ nuncio, tenantId }: Session, id: string, signal?: AbortSignal): Promise<Redrive> {
  return (await nuncio.deliveries.getRedrive({ tenantId, id }, signal ? { signal } : {})).redrive as Redrive;
}

async function follow(session: Session, first: Redrive): Promise<void> {
  const { out } = session;
  const stop = untilInterrupted();
  const bar = new SingleBar(
    {
      format: "{bar} {percentage}% | {scanned} events looked at, {redriven} made pending, {overtaken} overtaken",
      noTTYOutput: true,
      notTTYSchedule: 5_000,
      stream: process.stderr,
      hideCursor: true,
    },
    Presets.shades_classic,
  );
  out.note(`${first.id} (Ctrl-C leaves it running)`);
  if (!out.isJson) bar.start(WHOLE, 0, countsOf(first));
  let job = first;
  let from = first.createTimeAfter;
  try {
    while (job.state === RedriveState.RUNNING && !stop.aborted) {
      await delay(POLL_MS, undefined, { signal: stop }).catch(() => undefined);
      job = await whileItRuns(() => find(session, first.id, stop), job);
      from ??= job.scannedUntilTime;
      bar.update(partDone(job, from), countsOf(job));
    }
    if (job.state === RedriveState.SUCCEEDED) bar.update(WHOLE, countsOf(job));
  } finally {
    bar.stop();
  }
  tell(out, job);
  if (job.state === RedriveState.CANCELLED) throw new CliError(EXIT.no, "It was cancelled.");
}

/** The job goes on whether or not a server can be asked about it just now. */
async function whileItRuns(ask: () => Promise<Redrive>, last: Redrive): Promise<Redrive> {
  try {
    return await ask();
  } catch (error) {
    if (error instanceof ConnectError && mayComeGood(error)) return last;
    throw error;
  }
}

/** In thousandths of its range of time; from where it begins if nobody said since when. */
function partDone({ scannedUntilTime, createTimeBefore, createTime }: Redrive, from: Timestamp | undefined): number {
  const to = createTimeBefore ?? createTime;
  if (scannedUntilTime === undefined || from === undefined || to === undefined) return 0;
  const part = (timestampMs(scannedUntilTime) - timestampMs(from)) / Math.max(1, timestampMs(to) - timestampMs(from));
  return Math.round(Math.min(1, Math.max(0, part)) * WHOLE);
}

function countsOf({ scannedCount, redrivenCount, overtakenCount }: Redrive): Record<string, string> {
  return { scanned: String(scannedCount), redriven: String(redrivenCount), overtaken: String(overtakenCount) };
}

function tell(out: Output, job: Redrive): void {
  if (out.isJson) {
    out.message(RedriveSchema, job);
    return;
  }
  const { scanned, redriven, overtaken } = countsOf(job);
  const counts = `${scanned} events looked at, ${redriven} made pending, ${overtaken} left out as overtaken`;
  if (job.state === RedriveState.RUNNING) {
    const until =
      job.scannedUntilTime === undefined ? "" : ` up to ${timestampDate(job.scannedUntilTime).toISOString()}`;
    out.say(`${job.id} runs: ${counts}${until}. Go on watching with: nuncio redrive --follow ${job.id}`);
    return;
  }
  out.say(`${job.id} ${job.state === RedriveState.SUCCEEDED ? "is done" : "is cancelled"}: ${counts}.`);
  if (job.redrivenCount > 0n) {
    out.say(`What is still on its way: nuncio deliveries list --subscription ${job.subscriptionId} --state pending`);
  }
}
