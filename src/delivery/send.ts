import type { Dispatcher } from "undici";
import { hostOf, type Verdict } from "../core/address-policy.ts";
import { classifyFailure, classifyStatus, type Outcome, type Phase, type PhaseDurations } from "../core/attempt.ts";
import type { Connection, Connections, Origin } from "./connections.ts";
import type { Resolve } from "./resolver.ts";

export type SendDependencies = {
  readonly resolve: Resolve;
  readonly connections: Connections;
  /** The verdict on a whole answer of DNS. */
  readonly judge: (addresses: readonly string[]) => Verdict;
  /** A monotonic clock, in milliseconds. */
  readonly nowMs: () => number;
};

/** Where a request goes, taken apart once for all the requests that go there. */
export type Destination = Origin & {
  /** Path and query. */
  readonly path: string;
};

export function toDestination(url: URL): Destination {
  return { origin: url.origin, host: hostOf(url), path: url.pathname + url.search };
}

export type OutgoingRequest = {
  readonly destination: Destination;
  /** Names and values in turn. */
  readonly headers: readonly string[];
  readonly body: Buffer;
  /** From the start of name resolution to the last byte. */
  readonly timeoutMs: number;
  readonly maxResponseBytes: number;
};

export type Sent = {
  readonly outcome: Outcome;
  readonly phases: PhaseDurations;
  readonly durationMs: number;
  /** The header `retry-after`, as it came. */
  readonly retryAfter: string | undefined;
};

/** The first bytes of a failed response that are kept. */
const EXCERPT_BYTES = 1024;

/**
 * Makes one POST to an address that was checked, and returns what it met; never throws for what a receiver, a name
 * server or the network does. Redirects are not followed, nothing is sent twice, and everything is bounded: time by one
 * deadline, the response by `maxResponseBytes`. When it returns, the request is over or its socket is destroyed.
 */
export function send(deps: SendDependencies, request: OutgoingRequest): Promise<Sent> {
  return new Exchange(deps, request).run();
}

/** One attempt on its way through its phases. Implements undici's handler itself: no stream, no signal per request. */
class Exchange implements Dispatcher.DispatchHandler {
  readonly #deps: SendDependencies;
  readonly #request: OutgoingRequest;
  readonly #startedAtMs: number;
  readonly #phases: { [P in Phase]?: number } = {};
  #phase: Phase = "dns";
  #phaseBeganAtMs: number;
  #settle: (sent: Sent) => void = () => undefined;
  #settled = false;
  #deadline: NodeJS.Timeout | undefined;
  #connection: Connection | undefined;
  #httpStatus = 0;
  #retryAfter: string | undefined;
  #received = 0;
  #excerpt: Buffer[] = [];
  #excerptBytes = 0;

  constructor(deps: SendDependencies, request: OutgoingRequest) {
    this.#deps = deps;
    this.#request = request;
    this.#startedAtMs = deps.nowMs();
    this.#phaseBeganAtMs = this.#startedAtMs;
  }

  run(): Promise<Sent> {
    return new Promise((settle) => {
      this.#settle = settle;
      this.#deadline = setTimeout(() => this.#expire(), this.#request.timeoutMs);
      this.#deps.resolve(this.#request.destination.host).then(
        (addresses) => this.#dial(addresses),
        (error) => this.#finish({ kind: "dns_failed", detail: `dns: ${codeOf(error)}` }),
      );
    });
  }

  #dial(addresses: readonly string[]): void {
    if (this.#settled) return;
    const { destination, headers, body } = this.#request;
    const verdict = this.#deps.judge(addresses);
    if (verdict.kind === "refused") {
      this.#finish({ kind: "address_refused", detail: verdict.reason });
      return;
    }
    this.#enter("connect");
    try {
      this.#connection = this.#deps.connections.borrow(destination, addresses[0] as string);
      this.#connection.dispatch({ path: destination.path, method: "POST", headers: headers as string[], body }, this);
    } catch (error) {
      this.#finish(classifyFailure(error as Error, this.#phase));
    }
  }

  /** A socket is ours and the request is about to be written. */
  onRequestStart(controller: Dispatcher.DispatchController): void {
    if (this.#settled) controller.abort(new Error("the attempt has ended"));
    else this.#enter("first_byte");
  }

  onRequestUpgrade(controller: Dispatcher.DispatchController): void {
    controller.abort(new Error("the receiver wants another protocol"));
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    httpStatus: number,
    { "retry-after": retryAfter }: Readonly<Record<string, string | string[] | undefined>>,
  ): void {
    if (httpStatus < 200) return;
    this.#httpStatus = httpStatus;
    this.#retryAfter = Array.isArray(retryAfter) ? retryAfter[0] : retryAfter;
    this.#enter("body");
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    const { maxResponseBytes } = this.#request;
    if (this.#excerptBytes < EXCERPT_BYTES) {
      // A copy: the chunk is a view of a buffer that the parser goes on using.
      const part = Buffer.from(chunk.subarray(0, EXCERPT_BYTES - this.#excerptBytes));
      this.#excerpt.push(part);
      this.#excerptBytes += part.length;
    }
    this.#received += chunk.length;
    if (this.#received <= maxResponseBytes) return;
    this.#finishByStatus();
  }

  onResponseEnd(): void {
    this.#connection?.release(true);
    this.#finishByStatus();
  }

  onResponseError(_controller: Dispatcher.DispatchController | null, error: Error): void {
    // A body that breaks off changes nothing: the status line has decided.
    if (this.#phase === "body") this.#finishByStatus();
    else this.#finish(classifyFailure(error, this.#phase));
  }

  #expire(): void {
    if (this.#phase === "body") this.#finishByStatus();
    else this.#finish({ kind: "timeout", detail: `${this.#phase}: no end within ${this.#request.timeoutMs} ms` });
  }

  #finishByStatus(): void {
    this.#finish(classifyStatus(this.#httpStatus, Buffer.concat(this.#excerpt).toString("utf8")));
  }

  #enter(phase: Phase): void {
    const now = this.#deps.nowMs();
    this.#phases[this.#phase] = now - this.#phaseBeganAtMs;
    this.#phase = phase;
    this.#phaseBeganAtMs = now;
  }

  #finish(outcome: Outcome): void {
    if (this.#settled) return;
    this.#settled = true;
    // Given back already after a whole response; else whatever is still on its way ends here, its socket with it.
    this.#connection?.release(false);
    clearTimeout(this.#deadline);
    const now = this.#deps.nowMs();
    this.#phases[this.#phase] = now - this.#phaseBeganAtMs;
    const durationMs = now - this.#startedAtMs;
    this.#settle({ outcome, phases: this.#phases, durationMs, retryAfter: this.#retryAfter });
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "no answer";
}
