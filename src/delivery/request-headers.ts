import type { DeliveryId } from "../core/ids.ts";
import { type SigningKey, signIdentity, signStandard } from "../core/signature.ts";
import type { ContentType } from "../core/subscription.ts";

const CONTENT_TYPE_HEADER: Readonly<Record<ContentType, string>> = {
  JSON: "application/json",
  CLOUDEVENTS_JSON: "application/cloudevents+json; charset=utf-8",
};

export type SignedRequest = {
  readonly eventId: string;
  readonly deliveryId: DeliveryId;
  readonly attempt: number;
  readonly redrive: boolean;
  /** Unix seconds of this attempt, by the database's clock. */
  readonly timestamp: number;
  readonly body: Buffer;
  readonly traceparent: string | null;
  readonly contentType: ContentType;
  /** The subscription's own, checked when it was created. */
  readonly headers: Readonly<Record<string, string>>;
};

/** The headers of DESIGN section 3, names and values in turn. Signed anew for each attempt, over the stored bytes. */
export function toRequestHeaders(keys: readonly SigningKey[], request: SignedRequest): string[] {
  const signed = { id: request.eventId, timestamp: request.timestamp, body: request.body };
  const headers = [
    "content-type",
    CONTENT_TYPE_HEADER[request.contentType],
    "user-agent",
    "Nuncio",
    "webhook-id",
    request.eventId,
    "webhook-timestamp",
    String(request.timestamp),
    "webhook-signature",
    signStandard(keys, signed),
    "x-identity-signature",
    signIdentity(keys, signed),
    "x-identity-event-id",
    request.eventId,
    "x-identity-delivery-id",
    request.deliveryId,
    "x-identity-attempt",
    String(request.attempt),
  ];
  if (request.redrive) headers.push("x-identity-redrive", "1");
  if (request.traceparent !== null) headers.push("traceparent", request.traceparent);
  for (const name in request.headers) headers.push(name, request.headers[name] as string);
  return headers;
}
