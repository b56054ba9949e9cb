import { connectNodeAdapter } from "@connectrpc/connect-node";
import { describe, expect, it } from "vitest";
import { openPort, type Port } from "../../src/rpc/port.ts";
import { registerRoutes } from "../../src/rpc/routes.ts";
import { cleanUp } from "../support/clean-up.ts";
import { useDatabase } from "../support/database.ts";
import { newTenant } from "../support/fixtures.ts";
import { createDependencies, frame, OPERATOR_KEY } from "../support/service.ts";

const db = useDatabase();
let port: Port | undefined;

async function batchPublish(body: unknown): Promise<{ status: number; json: Record<string, never> }> {
  if (port === undefined) {
    const routes = registerRoutes(createDependencies(db, db.server), { isServing: () => true, reflection: false });
    port = await openPort(connectNodeAdapter({ ...frame(), routes }), { host: "127.0.0.1", port: 0 });
    cleanUp(() => port?.close(0));
  }
  const response = await fetch(`http://127.0.0.1:${port.address.port}/nuncio.v1.EventService/BatchPublish`, {
    method: "POST",
    headers: { authorization: `Bearer ${OPERATOR_KEY}`, "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  return { status: response.status, json: (await response.json()) as Record<string, never> };
}

const good = (tenantId: string, id: string) => ({
  id,
  tenantId,
  type: "EVENT_TYPE_USER_CREATED",
  user: { id: "u_1", status: "USER_STATUS_ACTIVE" },
});

describe("a batch in JSON", () => {
  it("[B11] lets an event that cannot even be read fail alone, in its place, with all of its faults", async () => {
    const tenant = newTenant();
    const bad = { ...good(tenant, "x"), type: "EVENT_TYPE_USER_CREATE", nick: 1, user: { id: "" } };
    const { status, json } = await batchPublish({ events: [good(tenant, "a"), bad, good(tenant, "b"), bad] });
    expect(status).toBe(200);
    const results = json.results as unknown as {
      success?: { eventId: string };
      failure?: { code: number; details: unknown[] };
    }[];
    expect(results.map(({ success, failure }) => success?.eventId ?? failure?.code)).toEqual(["a", 3, "b", 3]);
    expect(results[1]?.failure?.details).toMatchObject([
      { "@type": "type.googleapis.com/google.rpc.ErrorInfo", reason: "INVALID_EVENT", domain: "nuncio" },
      {
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        fieldViolations: [{ field: "events[1].type" }, { field: "events[1].nick" }, { field: "events[1].user.id" }],
      },
    ]);
    expect(await db.admin`SELECT event_id FROM nuncio.events ORDER BY event_id`).toEqual([
      { event_id: "a" },
      { event_id: "b" },
    ]);
  });

  it("[B11] answers for events that all fail, and shows the details of one that fails later", async () => {
    const tenant = newTenant();
    const none = await batchPublish({ events: [{ nick: 1 }] });
    expect(none).toMatchObject({ status: 200, json: { results: [{ failure: { code: 3 } }] } });
    const semantic = await batchPublish({ events: [{ ...good(tenant, "."), user: { id: "u" } }] });
    expect(semantic).toMatchObject({
      status: 200,
      json: { results: [{ failure: { code: 3, details: [{ reason: "INVALID_EVENT" }, {}] } }] },
    });
  });

  it("fails as a whole for what stands outside its events", async () => {
    const { status, json } = await batchPublish({ events: [good(newTenant(), "a")], evnts: [] });
    expect(status).toBe(400);
    expect(json).toMatchObject({ code: "invalid_argument", details: [{ debug: { reason: "INVALID_REQUEST" } }, {}] });
  });
});
