import type { UniversalServerRequest, UniversalServerResponse } from "@connectrpc/connect/protocol";

type Body = UniversalServerRequest["body"] | UniversalServerResponse["body"];

export function isByteStream(body: unknown): body is AsyncIterable<Uint8Array> {
  return typeof body === "object" && body !== null && Symbol.asyncIterator in body;
}

export function bytesOf(body: Body): AsyncIterable<Uint8Array> {
  return isByteStream(body) ? body : none();
}

export async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

async function* none(): AsyncGenerator<Uint8Array> {
  yield* [];
}

/** All of a response's body at once. */
export async function readAll(body: Body): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(bytesOf(body)));
}
