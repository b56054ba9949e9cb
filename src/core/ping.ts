import { formatSubscriptionId, type Uuid } from "./ids.ts";

/** A test of a subscription: who asked for it, and which one it is. */
export type Ping = { readonly id: string; readonly tenantId: string; readonly subscriptionUuid: Uuid };

export function formatPingId(testUuid: Uuid): string {
  return `ping_${testUuid}`;
}

/** The body of a `nuncio.ping`: of the form of every delivery, without a user, a subject or a place in an order. */
export function renderPing({ id, tenantId, subscriptionUuid }: Ping, epochMs: number): string {
  return JSON.stringify({
    specversion: "1.0",
    id,
    source: `/tenants/${tenantId}`,
    type: "nuncio.ping",
    time: new Date(epochMs).toISOString(),
    datacontenttype: "application/json",
    dataschema: "urn:nuncio:schema:nuncio.ping:1",
    tenantid: tenantId,
    data: { subscriptionId: formatSubscriptionId(subscriptionUuid) },
  });
}
