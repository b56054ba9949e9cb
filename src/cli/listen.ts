import { once } from "node:events";
import {
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from "node:http";
import type { AddressInfo } from "node:net";
import { type Command, InvalidArgumentError } from "commander";
import { request } from "undici";
import { type EventType, EventTypeSchema } from "../../gen/nuncio/v1/event_pb.ts";
import { SubscriptionOrdering } from "../../gen/nuncio/v1/webhook_subscription_pb.ts";
import { Secret } from "../core/secret.ts";
import { type Verdict, verifyRequest } from "../core/verification.ts";
import { CliError, EXIT } from "./exit-codes.ts";
import { harmless, type Output, styled } from "./output.ts";
import { type Session, untilInterrupted, withSession } from "./session.ts";
import { describeVerdict } from "./verify.ts";
import { collecting, wordParser, wordsOf } from "./words.ts";

type ListenOptions = {
  readonly host: string;
  readonly port: number;
  readonly publicUrl?: string;
  readonly forward?: string;
  readonly type?: EventType[];
  readonly status: number;
  readonly body: boolean;
};

const MAX_BODY_BYTES = 20 * 1024 * 1024;
const FORWARD_TIMEOUT_MS = 10_000;
const UNSUBSCRIBE_TIMEOUT_MS = 5_000;
/** Made by the one who receives it, not passed on. */
const HOP_BY_HOP = new Set([
  "connection",
  "content-length",
  "expect",
  "host",
  "keep-alive",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
]);

export function addListen(program: Command): void {
  program
    .command("listen")
    .summary("receive a tenant's events on this machine while you watch")
    .description(
      "Opens a receiver, subscribes it, verifies and prints what arrives, and unsubscribes when it ends (Ctrl-C). With --forward " +
        "each request goes on to your own receiver, byte for byte, and is answered with its status.",
    )
    .option("--host <address>", "where to listen", "127.0.0.1")
    .option("--port <port>", "0: any that is free", parsePort, 0)
    .option("--public-url <url>", "how Nuncio reaches it, where that is not http://<host>:<port>/ (a tunnel)", parseUrl)
    .option("--forward <url>", "your receiver", parseUrl)
    .option("--type <types>", wordsOf(EventTypeSchema).join(", "), collecting(wordParser(EventTypeSchema)))
    .option("--status <code>", "what to answer without --forward; 500 shows the retries", parseStatus, 204)
    .option("--no-body", "print one line per request")
    .action(withSession(listen));
}

async function listen(session: Session, options: ListenOptions): Promise<void> {
  const { out, nuncio, tenantId } = session;
  const stop = untilInterrupted();
  const receiver = new Receiver(out, options);
  const server = createServer((message, response) => void receiver.answer(message, response));
  const port = await openPort(server, options);
  const url = options.publicUrl ?? `http://${options.host.includes(":") ? `[${options.host}]` : options.host}:${port}/`;
  try {
    const { webhookSubscription, signingSecret } = await nuncio.subscriptions.createWebhookSubscription({
      tenantId,
      webhookSubscription: {
        url,
        description: "nuncio listen",
        eventTypes: options.type ?? [],
        ordering: SubscriptionOrdering.NONE,
      },
    });
    const id = webhookSubscription?.id ?? "";
    receiver.expect(new Secret(signingSecret));
    out.note(`${id} listens at ${url} for ${tenantId}; Ctrl-C unsubscribes and ends.`);
    if (!stop.aborted) await once(stop, "abort");
    await unsubscribe(session, id);
  } finally {
    server.close();
    server.closeAllConnections();
  }
}

async function openPort(server: Server, { host, port }: ListenOptions): Promise<number> {
  try {
    server.listen(port, host);
    await once(server, "listening");
  } catch (cause) {
    throw new CliError(EXIT.usage, `Cannot listen on ${host}:${port}: ${(cause as Error).message}`, { cause });
  }
  return (server.address() as AddressInfo).port;
}

/** Says what is left behind where it cannot: Nuncio would go on trying for days. */
async function unsubscribe({ out, nuncio, tenantId }: Session, id: string): Promise<void> {
  try {
    await nuncio.subscriptions.deleteWebhookSubscription({ tenantId, id }, { timeoutMs: UNSUBSCRIBE_TIMEOUT_MS });
    out.note(`${id} is unsubscribed.`);
  } catch (error) {
    out.note(`${id} is STILL SUBSCRIBED. Later: nuncio subscriptions delete ${id} --tenant ${tenantId}`);
    throw error;
  }
}

class Receiver {
  readonly #out: Output;
  readonly #options: ListenOptions;
  readonly #secret = Promise.withResolvers<Secret>();

  constructor(out: Output, options: ListenOptions) {
    this.#out = out;
    this.#options = options;
  }

  /** What comes before is kept waiting: it can only be the first delivery. */
  expect(secret: Secret): void {
    this.#secret.resolve(secret);
  }

  async answer(message: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const body = await readBody(message);
      const secret = await this.#secret.promise;
      const verdicts = verifyRequest({ headers: single(message.headers), body }, [secret], Date.now() / 1000);
      const isGood = verdicts.every(({ fault }) => fault === undefined);
      // Whoever finds this port is no sender of ours, and is not passed on.
      const { status, why } = isGood ? await this.#decide(message, body) : { status: 401, why: "" };
      response.writeHead(status).end();
      this.#show(message.headers, body, verdicts, status, why);
    } catch (error) {
      response.writeHead(500).end();
      this.#out.note(`A request could not be read: ${(error as Error).message}`);
    }
  }

  async #decide(message: IncomingMessage, body: Buffer): Promise<{ status: number; why: string }> {
    const { forward, status } = this.#options;
    if (forward === undefined) return { status, why: "" };
    try {
      const answer = await request(forward, {
        method: "POST",
        headers: Object.fromEntries(Object.entries(single(message.headers)).filter(([name]) => !HOP_BY_HOP.has(name))),
        body,
        headersTimeout: FORWARD_TIMEOUT_MS,
        bodyTimeout: FORWARD_TIMEOUT_MS,
      });
      await answer.body.dump();
      return { status: answer.statusCode, why: "by your receiver" };
    } catch (error) {
      return { status: 502, why: `your receiver did not answer: ${(error as Error).message || (error as Error).name}` };
    }
  }

  #show(headers: IncomingHttpHeaders, body: Buffer, verdicts: readonly Verdict[], status: number, why: string): void {
    const text = body.toString("utf8");
    const isGood = verdicts.every(({ fault }) => fault === undefined);
    if (this.#out.isJson) {
      this.#out.json({ verified: isGood, status, verdicts, headers: single(headers), body: text });
      return;
    }
    const attempt = headers["x-identity-attempt"];
    const head = [
      new Date().toISOString().slice(11, 19),
      isGood ? styled("green", "verified") : styled("red", "NOT VERIFIED"),
      styled("bold", harmless(String(headers["x-identity-event-type"] ?? typeOf(text)))),
      harmless(String(headers["webhook-id"] ?? "")),
      attempt === undefined ? "" : `attempt ${harmless(String(attempt))}`,
      `→ ${status}${why === "" ? "" : ` ${why}`}`,
    ];
    this.#out.say(head.filter((part) => part !== "").join("  "));
    if (!isGood) for (const verdict of verdicts) this.#out.say(`          ${describeVerdict(verdict)}`);
    else if (this.#options.body) this.#out.say(prettily(text));
  }
}

async function readBody(message: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of message as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MAX_BODY_BYTES) throw new Error(`it is longer than ${MAX_BODY_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function single(headers: IncomingHttpHeaders): Record<string, string> {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, String(value ?? "")]));
}

function typeOf(body: string): string {
  try {
    return String((JSON.parse(body) as { type?: unknown }).type ?? "");
  } catch {
    return "";
  }
}

function prettily(body: string): string {
  try {
    const lines = JSON.stringify(JSON.parse(body), undefined, 2).split("\n");
    return lines.map((line) => `          ${harmless(line)}`).join("\n");
  } catch {
    return `          ${harmless(body)}`;
  }
}

function parseUrl(text: string): string {
  if (!URL.canParse(text) || !/^https?:$/.test(new URL(text).protocol))
    throw new InvalidArgumentError("Expected an http or https URL.");
  return text;
}

function parsePort(text: string): number {
  const port = Number(text);
  if (!/^\d{1,5}$/.test(text) || port > 65_535) throw new InvalidArgumentError("Expected a port from 0 to 65535.");
  return port;
}

function parseStatus(text: string): number {
  const status = Number(text);
  if (!Number.isInteger(status) || status < 200 || status > 599)
    throw new InvalidArgumentError("Expected a status from 200 to 599.");
  return status;
}
