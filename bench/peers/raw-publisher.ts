import { once } from "node:events";
import { connect } from "node:http2";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { PublishRequestSchema, PublishResponseSchema } from "../../gen/nuncio/v1/event_service_pb.ts";
import { wireEvent } from "../events.ts";

export type RawPublisher = { publish(id: string): Promise<void>; close(): Promise<void> };

/**
 * Publish over one HTTP/2 connection, as https://connectrpc.com/docs/protocol#unary-request has it in bytes: at a steady rate the load generator shares two cores with
 * what it measures, and a client for Node costs it as much per call as the server needs.
 */
export async function openRawPublisher(baseUrl: string, key: string, tenantId: string): Promise<RawPublisher> {
  const session = connect(baseUrl);
  await once(session, "connect");
  const headers = {
    ":method": "POST",
    ":path": "/nuncio.v1.EventService/Publish",
    "content-type": "application/proto",
    authorization: `Bearer ${key}`,
  };
  return {
    publish: (id) =>
      new Promise((resolve, reject) => {
        const stream = session.request(headers);
        const chunks: Buffer[] = [];
        let status = 0;
        stream.on("response", (response) => {
          status = Number(response[":status"]);
        });
        stream.on("data", (chunk: Buffer) => chunks.push(chunk));
        stream.on("error", reject);
        stream.on("end", () => {
          const body = Buffer.concat(chunks);
          if (status !== 200) reject(new Error(`Publish answered ${status}: ${body}`));
          else if (fromBinary(PublishResponseSchema, body).eventId !== id) reject(new Error(`${id} was not stored`));
          else resolve();
        });
        stream.end(toBinary(PublishRequestSchema, create(PublishRequestSchema, { event: wireEvent(tenantId, id) })));
      }),
    close: () => new Promise((resolve) => session.close(resolve)),
  };
}
