import type { DescMessage, JsonValue } from "@bufbuild/protobuf";
import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import type { UniversalHandler, UniversalServerRequest, UniversalServerResponse } from "@connectrpc/connect/protocol";
import { codeToHttpStatus, errorFromJsonBytes, errorToJsonBytes } from "@connectrpc/connect/protocol-connect";
import { findTrailerError, setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import { invalidArgument, type Reason, withoutEchoes } from "../core/errors.ts";
import { bytesOf, isByteStream, once, readAll } from "./byte-streams.ts";
import { detailedError } from "./interceptors/translate-errors.ts";
import { type JsonReading, readFaultyJson } from "./json-faults.ts";
import type { Judges } from "./judges.ts";
import { answerReadableEvents } from "./unreadable-events.ts";

/**
 * Gives details to the errors that Connect makes by itself, before any interceptor: bytes that do not parse, requests
 * that are too large, deadlines. Without this they would carry a bare message (connect-es has no hook there).
 * Call it after the routes are registered; it wraps each handler, for every protocol.
 */
export function completeErrors(router: ConnectRouter, judges: Judges): void {
  router.handlers.forEach((handler, i) => {
    router.handlers[i] = Object.assign(
      (request: UniversalServerRequest) => answerCompletely(handler, request, judges),
      {
        protocolNames: handler.protocolNames,
        allowedMethods: handler.allowedMethods,
        requestPath: handler.requestPath,
        service: handler.service,
        method: handler.method,
        supportedContentType: handler.supportedContentType,
      },
    );
  });
}

async function answerCompletely(
  handler: UniversalHandler,
  request: UniversalServerRequest,
  judges: Judges,
): Promise<UniversalServerResponse> {
  const contentType = request.header.get("content-type") ?? "";
  const read = new KeptBody(request.body, isPlainJson(request.header));
  const response = await handler({ ...request, body: read.body });
  const complete = (error: ConnectError) => completed(error, handler, read, judges);
  if (contentType.startsWith("application/grpc-web")) {
    return { ...response, body: completeLastEnvelope(bytesOf(response.body), complete) };
  }
  if (contentType.startsWith("application/grpc")) {
    return { ...response, body: completeTrailer(bytesOf(response.body), response.trailer, complete) };
  }
  if (response.status < 400) return response;
  const published = await answerReadableEvents(handler, request, read.again(handler.method.input), judges);
  const answer = published ?? response;
  return answer.status < 400 ? answer : completeUnary(answer, complete);
}

/** Reasons for the codes that Connect itself answers with. */
const REASONS: Partial<Record<Code, Reason>> = {
  [Code.InvalidArgument]: "MALFORMED_REQUEST",
  [Code.ResourceExhausted]: "REQUEST_TOO_LARGE",
  [Code.Unimplemented]: "RPC_NOT_FOUND",
  [Code.DeadlineExceeded]: "CALL_ENDED",
  [Code.Canceled]: "CALL_ENDED",
  [Code.Internal]: "INTERNAL",
};

/** The error with details, or undefined if it has some, or is none of those that we know the reason of. */
function completed(
  error: ConnectError,
  handler: UniversalHandler,
  read: KeptBody,
  judges: Judges,
): ConnectError | undefined {
  // Bytes that are no message are the caller's fault; Connect calls them an internal error.
  const unparsable = error.code === Code.Internal && error.rawMessage.startsWith("parse binary");
  const code = unparsable ? Code.InvalidArgument : error.code;
  const reason = REASONS[code];
  if (error.details.length > 0 || reason === undefined) return undefined;
  const reading = reason === "MALFORMED_REQUEST" ? read.again(handler.method.input) : undefined;
  if (reading === undefined || reading.faults.length === 0) return detailedError(code, error.rawMessage, reason);
  const { faults, sound } = reading;
  const judged = judges.get(handler.requestPath);
  const all = [...faults, ...withoutEchoes(judged && sound ? judged.judge(sound) : [], faults)];
  const refusal = invalidArgument(judged?.reason ?? "INVALID_REQUEST", all);
  return detailedError(code, refusal.message, refusal.reason, { faults: all });
}

async function completeUnary(
  response: UniversalServerResponse,
  complete: (error: ConnectError) => ConnectError | undefined,
): Promise<UniversalServerResponse> {
  if (!response.header?.get("content-type")?.startsWith("application/json")) return response;
  const bytes = await readAll(response.body);
  const error = errorFromJsonBytes(bytes, undefined, new ConnectError("the answer is no error", Code.Unknown));
  const better = complete(error);
  const body = better === undefined ? bytes : errorToJsonBytes(better, undefined);
  const header = new Headers(response.header);
  header.set("content-length", String(body.byteLength));
  const status = better === undefined ? response.status : codeToHttpStatus(better.code);
  return { ...response, status, header, body: once(body) };
}

async function* completeTrailer(
  body: AsyncIterable<Uint8Array>,
  trailer: Headers | undefined,
  complete: (error: ConnectError) => ConnectError | undefined,
): AsyncGenerator<Uint8Array> {
  yield* body;
  const error = trailer && findTrailerError(trailer);
  const better = error && complete(error);
  if (better) setTrailerStatus(trailer, better);
}

/** In gRPC-Web the trailer is the last envelope of the body, flagged in its first byte. */
async function* completeLastEnvelope(
  body: AsyncIterable<Uint8Array>,
  complete: (error: ConnectError) => ConnectError | undefined,
): AsyncGenerator<Uint8Array> {
  for await (const chunk of body) {
    yield (chunk[0] ?? 0) & TRAILER_FLAG ? completeEnvelope(chunk, complete) : chunk;
  }
}

const TRAILER_FLAG = 0x80;
const ENVELOPE_HEAD = 5;

function completeEnvelope(
  envelope: Uint8Array,
  complete: (error: ConnectError) => ConnectError | undefined,
): Uint8Array {
  const trailer = new Headers();
  for (const line of Buffer.from(envelope.subarray(ENVELOPE_HEAD)).toString("utf8").split("\r\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) trailer.append(line.slice(0, colon).trim(), line.slice(colon + 1).trim());
  }
  const error = findTrailerError(trailer);
  const better = error && complete(error);
  if (!better) return envelope;
  setTrailerStatus(trailer, better);
  const text = Buffer.from([...trailer].map(([name, value]) => `${name}: ${value}\r\n`).join(""));
  const head = Buffer.alloc(ENVELOPE_HEAD);
  head[0] = envelope[0] as number;
  head.writeUInt32BE(text.length, 1);
  return Buffer.concat([head, text]);
}

/** A request body that remembers what passed through it, if that was JSON: for the case that it is refused. */
class KeptBody {
  readonly body: UniversalServerRequest["body"];
  readonly #chunks: Uint8Array[] = [];
  readonly #keep: boolean;
  #reading: JsonReading | undefined;

  constructor(body: UniversalServerRequest["body"], keep: boolean) {
    this.#keep = keep;
    this.body = keep && isByteStream(body) ? this.#remember(body) : body;
  }

  /** What it says, fault by fault; undefined if it is no JSON at all. Read once, however often this is asked. */
  again(schema: DescMessage): JsonReading | undefined {
    if (this.#keep && this.#reading === undefined) {
      const json = parseJson(Buffer.concat(this.#chunks).toString("utf8"));
      this.#reading = json === undefined ? undefined : readFaultyJson(schema, json);
    }
    return this.#reading;
  }

  async *#remember(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of body) {
      this.#chunks.push(chunk);
      yield chunk;
    }
  }
}

function parseJson(text: string): JsonValue | undefined {
  try {
    return JSON.parse(text) as JsonValue;
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}

function isPlainJson(header: Headers): boolean {
  const encoding = header.get("content-encoding");
  return (header.get("content-type") ?? "").startsWith("application/json") && (encoding ?? "identity") === "identity";
}
