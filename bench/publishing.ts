import { startPeer } from "./child.ts";
import { OPERATOR_KEY, tenantName } from "./nuncio.ts";
import type { PublisherAnswer, PublisherRequest } from "./peers/publisher.ts";

/** HTTP/2 connections of the publisher: a few processes' worth, and enough that none is the bottleneck. */
const CONNECTIONS = 4;

/** Puts a load on a server from a process of its own, and resolves when the last call is answered. */
export async function publishFrom(baseUrl: string, load: PublisherRequest["load"]): Promise<PublisherAnswer> {
  const publisher = startPeer<PublisherRequest, PublisherAnswer>("publisher.ts");
  await publisher.ready;
  const answer = await publisher.ask({
    baseUrl,
    key: OPERATOR_KEY,
    tenantId: tenantName(0),
    connections: CONNECTIONS,
    load,
  });
  await publisher.stop();
  return answer;
}
