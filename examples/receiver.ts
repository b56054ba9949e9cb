import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { Webhook } from "standardwebhooks";
import type { Person } from "./user-event.ts";

// The receiving end: what a tenant runs to learn about its users. The five lines that every receiver needs are in
// `Inbox.receive`: verify the raw bytes, drop what is known by its id, apply only what is newer.

/** The body of a delivery, as far as a receiver needs it. */
export type Body = {
  readonly id: string;
  readonly type: string;
  readonly tenantid: string;
  readonly usersequence: string;
  readonly data: { readonly user: { readonly id: string } & Partial<Person> };
};

/** One event that was accepted. */
export type Received = { readonly webhookId: string; readonly contentType: string; readonly body: Body };

/** What the receiver believes about a user: the newest event it has seen. */
export type Belief = { readonly usersequence: string; readonly type: string; readonly user: Body["data"]["user"] };

/** One request, for whoever watches. */
export type Arrival = {
  readonly inbox: string;
  readonly attempt: number;
  readonly status: number;
  readonly duplicate: boolean;
  readonly body: Body;
};

export type Receiver = {
  urlOf(inbox: string): string;
  /** Accepts deliveries that are signed with this secret under `urlOf(inbox)`. */
  open(inbox: string, signingSecret: string): Inbox;
  close(): Promise<void>;
};

const MAX_BODY_BYTES = 1024 * 1024;

/** Opens a receiver on a free port of this machine. */
export async function openReceiver(onArrival: (arrival: Arrival) => void): Promise<Receiver> {
  const inboxes = new Map<string, Inbox>();
  const server = createServer(async (request, response) => {
    const inbox = inboxes.get(request.url ?? "");
    const raw = await readRaw(request).catch(() => undefined);
    // Nothing takes time here. Where it does, store the raw event, answer, and work on it afterwards.
    response.writeHead(inbox === undefined || raw === undefined ? 404 : inbox.receive(raw, request.headers)).end();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  return {
    urlOf: (inbox) => `http://127.0.0.1:${port}/${inbox}`,
    open: (name, signingSecret) => {
      const inbox = new Inbox(name, signingSecret, onArrival);
      inboxes.set(`/${name}`, inbox);
      return inbox;
    },
    close: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      server.closeAllConnections();
      await closed;
    },
  };
}

/** What arrived for one subscription. */
export class Inbox {
  readonly name: string;
  /** Accepted events without duplicates, in the order of arrival. */
  readonly received: Received[] = [];
  readonly beliefs = new Map<string, Belief>();
  /** Requests with a good signature. */
  attempts = 0;
  /** First attempts that were answered 500 on purpose. */
  failedFirstAttempts = 0;
  duplicates = 0;
  /** What a sender must never do. */
  readonly faults: string[] = [];
  /** Answers 410 to everything, as a server from which the application was removed. */
  isGone = false;
  #webhook: Webhook;
  readonly #onArrival: (arrival: Arrival) => void;
  readonly #known = new Set<string>();
  readonly #firstBytes = new Map<string, string>();

  constructor(name: string, signingSecret: string, onArrival: (arrival: Arrival) => void) {
    this.name = name;
    this.#webhook = new Webhook(signingSecret);
    this.#onArrival = onArrival;
  }

  /** From now on only what is signed with this secret. */
  takeSecret(signingSecret: string): void {
    this.#webhook = new Webhook(signingSecret);
  }

  /** The status to answer with. */
  receive(raw: Buffer, headers: IncomingMessage["headers"]): number {
    if (this.isGone) return 410;
    let body: Body;
    try {
      body = this.#webhook.verify(raw, headers as Record<string, string>) as Body;
    } catch (error) {
      this.faults.push(`a request with webhook-id ${headers["webhook-id"]} is refused: ${(error as Error).message}`);
      return 401;
    }
    this.attempts += 1;
    this.#compareWithFirst(raw, headers);
    const webhookId = String(headers["webhook-id"]);
    const attempt = Number(headers["x-identity-attempt"]);
    // The same id may stand for another event of another tenant.
    const key = JSON.stringify([body.tenantid, webhookId]);
    const duplicate = this.#known.has(key);
    const badMoment = badMomentOf(String(headers["x-identity-delivery-id"]), attempt);
    const status = badMoment === undefined ? 204 : 500;
    if (badMoment !== undefined) this.failedFirstAttempts += 1;
    if (duplicate) this.duplicates += 1;
    else if (badMoment !== "before it is stored") {
      this.#known.add(key);
      this.received.push({ webhookId, contentType: String(headers["content-type"]), body });
      this.#apply(body);
    }
    this.#onArrival({ inbox: this.name, attempt, status, duplicate, body });
    return status;
  }

  /** Deliveries may overtake one another. Twenty digits with leading zeros: the order of text is the order of numbers. */
  #apply({ usersequence, type, data: { user } }: Body): void {
    const known = this.beliefs.get(user.id);
    if (known === undefined || usersequence > known.usersequence)
      this.beliefs.set(user.id, { usersequence, type, user });
  }

  /** Every attempt of a delivery carries the same bytes and the same id. */
  #compareWithFirst(raw: Buffer, headers: IncomingMessage["headers"]): void {
    const delivery = String(headers["x-identity-delivery-id"]);
    const bytes = `${headers["webhook-id"]} ${createHash("sha256").update(raw).digest("hex")}`;
    const first = this.#firstBytes.get(delivery) ?? bytes;
    this.#firstBytes.set(delivery, first);
    if (bytes !== first) this.faults.push(`two attempts of ${delivery} differ`);
    if (headers["x-identity-event-id"] !== headers["webhook-id"]) this.faults.push(`${delivery} has two event ids`);
  }
}

/**
 * Receivers have bad moments: this one in about a third of the first attempts, always the same ones. Half of them come
 * when the event is stored already and only the answer is lost, so that it arrives a second time.
 */
export function badMomentOf(deliveryId: string, attempt: number): "before it is stored" | "after" | undefined {
  const digest = createHash("sha256").update(deliveryId).digest();
  if (attempt !== 1 || digest.readUInt32BE() % 3 !== 0) return undefined;
  return digest.readUInt8(4) % 2 === 0 ? "before it is stored" : "after";
}

async function readRaw(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MAX_BODY_BYTES) throw new Error("the body is too large");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
