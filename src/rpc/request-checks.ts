import type { Message } from "@bufbuild/protobuf";
import { type Fault, invalidArgument, NotFoundError, type Reason } from "../core/errors.ts";
import { parseDeliveryId, parseErasureId, parseRedriveId, parseSubscriptionId, type Uuid } from "../core/ids.ts";
import { checkStorableText, checkTenantId } from "../core/text.ts";
import type { DeliveryPlace } from "../store/deliveries.ts";
import { refuseUnknownFields } from "./convert.ts";

type TenantRequest = Message & { readonly tenantId: string };

/** At least as long as any id that we give out or accept: bounds what a look-up is asked. */
export const MAX_ID = 128;

/** The checks that every request about one tenant has in common, beside those that the RPC has found itself. */
export function checkRequest<R extends TenantRequest>(
  request: R,
  { required = [], faults = [] }: { required?: readonly (keyof R & string)[]; faults?: readonly Fault[] } = {},
): void {
  const all: Fault[] = [];
  refuseUnknownFields(request, "", all);
  checkTenantId(request.tenantId, "tenant_id", all);
  for (const field of required) {
    const value = request[field];
    const path = field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    if (value === "") all.push({ path, description: "is required" });
    else if (typeof value === "string") checkStorableText(value, MAX_ID, path, all);
  }
  all.push(...faults);
  if (all.length > 0) throw invalidArgument("INVALID_REQUEST", all);
}

/** The UUID in a subscription's id. Text that is no such id names nothing: NOT_FOUND, like an id of another tenant. */
export function toSubscriptionUuid(id: string): Uuid {
  const uuid = parseSubscriptionId(id);
  if (uuid === undefined) throw notFound("SUBSCRIPTION_NOT_FOUND", "subscription");
  return uuid;
}

/** What a delivery id stands for; likewise. */
export function toDeliveryPlace(id: string): DeliveryPlace {
  const place = parseDeliveryId(id);
  if (place === undefined) throw notFound("DELIVERY_NOT_FOUND", "delivery");
  return place;
}

/** The UUID in a redrive's id; likewise. */
export function toRedriveUuid(id: string): Uuid {
  const uuid = parseRedriveId(id);
  if (uuid === undefined) throw notFound("REDRIVE_NOT_FOUND", "redrive");
  return uuid;
}

/** The UUID in an erasure's id; likewise. */
export function toErasureUuid(id: string): Uuid {
  const uuid = parseErasureId(id);
  if (uuid === undefined) throw notFound("ERASURE_NOT_FOUND", "erasure");
  return uuid;
}

export function notFound(reason: Reason, what: string): NotFoundError {
  return new NotFoundError(reason, `there is no such ${what} in this tenant`);
}

const REQUEST_ID_PATTERN = /^[A-Za-z0-9_:-]{0,64}$/;

/** An empty one is none. */
export function checkRequestId(requestId: string, faults: Fault[]): void {
  if (REQUEST_ID_PATTERN.test(requestId)) return;
  faults.push({ path: "request_id", description: "must be 1–64 of A-Za-z0-9_:-" });
}

export function checkPageSize(pageSize: number, faults: Fault[]): void {
  if (pageSize < 0) faults.push({ path: "page_size", description: "must not be negative" });
}

/** The subscription that a list is limited to; undefined for all of them. */
export function toSubscriptionFilter(id: string, faults: Fault[]): Uuid | undefined {
  const uuid = parseSubscriptionId(id);
  if (id !== "" && uuid === undefined) {
    faults.push({ path: "subscription_id", description: "is no subscription id, which begins with sub_" });
  }
  return uuid;
}
