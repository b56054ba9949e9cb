import type { DescMethod, DescService } from "@bufbuild/protobuf";
import {
  type Client,
  createConnectRouter,
  createContextValues,
  createHandlerContext,
  type HandlerContext,
} from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { Health } from "../../gen/grpc/health/v1/health_pb.ts";
import { ServerReflection } from "../../gen/grpc/reflection/v1/reflection_pb.ts";
import { DeliveryService } from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { EventType } from "../../gen/nuncio/v1/event_pb.ts";
import { EventService } from "../../gen/nuncio/v1/event_service_pb.ts";
import { OperationsService } from "../../gen/nuncio/v1/operations_service_pb.ts";
import { UserStatus } from "../../gen/nuncio/v1/user_pb.ts";
import { SubscriptionState } from "../../gen/nuncio/v1/webhook_subscription_pb.ts";
import { WebhookSubscriptionService } from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import { Secret } from "../../src/core/secret.ts";
import { ALL_ROLES, AUTHORIZATION, rolesFor } from "../../src/rpc/authorization.ts";
import { createGate, PRINCIPAL } from "../../src/rpc/interceptors/authenticate.ts";
import { registerRoutes } from "../../src/rpc/routes.ts";
import { useDatabase } from "../support/database.ts";
import { failureOf } from "../support/errors.ts";
import { addSubscription, newTenant } from "../support/fixtures.ts";
import { startTests } from "../support/loop.ts";
import { createDependencies, inProcess, OPERATOR_KEY } from "../support/service.ts";

const db = useDatabase();
const withKey = inProcess(() => createDependencies(db, db.server));
const withoutKey = inProcess(() => createDependencies(db, db.server), "");

const SERVICES = [EventService, WebhookSubscriptionService, DeliveryService, OperationsService];
const METHODS: readonly DescMethod[] = SERVICES.flatMap((service: DescService) => service.methods);
const nameOf = (method: DescMethod) => `${method.parent.typeName}/${method.name}`;

/** Calls a method by its descriptor. */
function call(service: typeof withKey, method: DescMethod, request: object): Promise<unknown> {
  const clients: Record<string, Client<DescService>> = {
    [EventService.typeName]: service.events,
    [WebhookSubscriptionService.typeName]: service.subscriptions,
    [DeliveryService.typeName]: service.deliveries,
    [OperationsService.typeName]: service.operations,
  };
  const client = clients[method.parent.typeName] as unknown as Record<string, (r: object) => Promise<unknown>>;
  return (client[method.localName] as (r: object) => Promise<unknown>)(request);
}

describe("the table of roles", () => {
  it("has a row for every method of every service of ours, and no other row", () => {
    const rows = Object.entries(AUTHORIZATION).flatMap(([service, rules]) =>
      Object.keys(rules).map((method) => `${service}/${method}`),
    );
    const methods = METHODS.map(({ parent, localName }) => `${parent.typeName}/${localName}`);
    expect(rows.sort()).toEqual(methods.sort());
  });

  it("names known roles only, at least one for each method", () => {
    for (const rules of Object.values(AUTHORIZATION)) {
      for (const roles of Object.values(rules)) {
        expect(roles.length).toBeGreaterThan(0);
        expect([...ALL_ROLES]).toEqual(expect.arrayContaining([...roles]));
      }
    }
  });

  it("covers whatever the server serves, and is open for health and reflection alone", () => {
    const router = createConnectRouter();
    registerRoutes(createDependencies(db, db.server), { isServing: () => true, reflection: true })(router);
    const served = router.handlers.map(({ method }) => method);
    expect(served.filter((method) => rolesFor(method) === undefined)).toEqual([]);
    const open = served.filter((method) => rolesFor(method) === "open");
    expect(new Set(open.map(({ parent }) => parent.typeName))).toEqual(
      new Set([Health.typeName, ServerReflection.typeName]),
    );
    expect(
      served
        .filter((method) => !open.includes(method))
        .map(nameOf)
        .sort(),
    ).toEqual(METHODS.map(nameOf).sort());
  });
});

describe("the gate", () => {
  const gate = createGate(new Secret(OPERATOR_KEY));

  function contextOf(method: DescMethod, authorization = `Bearer ${OPERATOR_KEY}`): HandlerContext {
    return createHandlerContext({
      service: method.parent,
      method,
      protocolName: "connect",
      requestMethod: "POST",
      url: "http://nuncio.test/",
      requestHeader: { authorization },
      contextValues: createContextValues(),
    });
  }

  it("says who is calling", () => {
    const context = contextOf(EventService.method.publish);
    gate(context);
    expect(context.values.get(PRINCIPAL)).toEqual({ id: "bootstrap_operator", roles: ALL_ROLES });
  });

  it("lets nobody call a method without a row", async () => {
    const parent = { ...EventService, typeName: "nuncio.v1.OtherService" };
    const stranger = { ...EventService.method.publish, parent } as unknown as DescMethod;
    const entered = async () => gate(contextOf(stranger));
    expect(await failureOf(entered())).toMatchObject({ code: "PermissionDenied", reason: "ROLE_MISSING" });
  });

  it("is not opened by what every object has", async () => {
    for (const localName of ["constructor", "toString", "__proto__"]) {
      const stranger = { ...EventService.method.publish, localName } as unknown as DescMethod;
      const entered = async () => gate(contextOf(stranger));
      await expect(entered()).rejects.toThrow();
    }
  });
});

describe("[B41] without credential", () => {
  it.each(METHODS.map((method) => [nameOf(method), method] as const))("%s is UNAUTHENTICATED", async (_, method) => {
    expect(await failureOf(call(withoutKey, method, {}))).toMatchObject({
      code: "Unauthenticated",
      reason: "INVALID_CREDENTIAL",
      retry: false,
    });
  });
});

describe("[B41] another tenant's id", () => {
  const takesId = METHODS.filter(
    ({ input, localName }) =>
      input.fields.some(({ name }) => name === "id") || localName === "updateWebhookSubscription",
  );
  const requestOf = ({ localName }: DescMethod, tenantId: string, id: string) =>
    localName === "updateWebhookSubscription" ? { tenantId, webhookSubscription: { id } } : { tenantId, id };

  const REASONS: Record<string, string> = {
    getEvent: "EVENT_NOT_FOUND",
    getWebhookSubscription: "SUBSCRIPTION_NOT_FOUND",
    deleteWebhookSubscription: "SUBSCRIPTION_NOT_FOUND",
    pauseWebhookSubscription: "SUBSCRIPTION_NOT_FOUND",
    resumeWebhookSubscription: "SUBSCRIPTION_NOT_FOUND",
    updateWebhookSubscription: "SUBSCRIPTION_NOT_FOUND",
    rotateWebhookSubscriptionSecret: "SUBSCRIPTION_NOT_FOUND",
    testWebhookSubscription: "SUBSCRIPTION_NOT_FOUND",
    getDelivery: "DELIVERY_NOT_FOUND",
    redriveDelivery: "DELIVERY_NOT_FOUND",
    cancelDelivery: "DELIVERY_NOT_FOUND",
    getRedrive: "REDRIVE_NOT_FOUND",
    getErasure: "ERASURE_NOT_FOUND",
    cancelRedrive: "REDRIVE_NOT_FOUND",
  };

  async function addAll(tenantId: string) {
    const { subscription } = await addSubscription(db, tenantId);
    const user = { id: "u_1", status: UserStatus.ACTIVE };
    const { eventId } = await withKey.events.publish({ event: { tenantId, type: EventType.USER_CREATED, user } });
    const { deliveries } = await withKey.deliveries.listDeliveries({ tenantId });
    const [delivery] = deliveries;
    const { redrive } = await withKey.deliveries.createRedrive({
      tenantId,
      redrive: { subscriptionId: subscription.id },
    });
    return {
      redrive: redrive?.id ?? "",
      erasure: (await withKey.events.eraseUser({ tenantId, userId: "nobody" })).erasure?.id ?? "",
      event: eventId,
      webhookSubscription: subscription.id,
      delivery: delivery?.id ?? "",
    };
  }

  const idFor = (method: DescMethod, ids: Awaited<ReturnType<typeof addAll>>) => {
    if (method.localName.endsWith("Redrive")) return ids.redrive;
    if (method.localName.endsWith("Erasure")) return ids.erasure;
    if (method.parent === EventService) return ids.event;
    return method.parent === DeliveryService ? ids.delivery : ids.webhookSubscription;
  };

  it("stands in this table for every RPC that takes an id", () => {
    expect(takesId.map(({ localName }) => localName).sort()).toEqual(Object.keys(REASONS).sort());
  });

  it.each(takesId.map((method) => [nameOf(method), method] as const))("is NOT_FOUND for %s", async (_, method) => {
    const [owner, other] = [newTenant(), newTenant()];
    const ids = await addAll(owner);
    await addAll(other);
    if (method.localName === "testWebhookSubscription") startTests(db);
    const notFound = { code: "NotFound", reason: REASONS[method.localName], retry: false };
    const id = idFor(method, ids);
    const foreign = await failureOf(call(withKey, method, requestOf(method, other, id)));
    expect(foreign).toMatchObject(notFound);
    expect(foreign.message).not.toContain(owner);
    // A tenant that never was, and an id that never was, are answered in the same words.
    expect(await failureOf(call(withKey, method, requestOf(method, newTenant(), id)))).toEqual(foreign);
    for (const unknown of [`${id.slice(0, -1)}${id.endsWith("a") ? "b" : "a"}`, "rubbish"]) {
      expect(await failureOf(call(withKey, method, requestOf(method, owner, unknown)))).toMatchObject(notFound);
    }
    const { webhookSubscription } = await withKey.subscriptions.getWebhookSubscription({
      tenantId: owner,
      id: ids.webhookSubscription,
    });
    expect(webhookSubscription?.state).toBe(SubscriptionState.ENABLED);
    await expect(call(withKey, method, requestOf(method, owner, id))).resolves.toBeDefined();
  });

  it("filters to nothing in ListDeliveries", async () => {
    const [owner, other] = [newTenant(), newTenant()];
    const ids = await addAll(owner);
    await addAll(other);
    for (const filter of [{ subscriptionId: ids.webhookSubscription }, { eventId: ids.event }]) {
      expect((await withKey.deliveries.listDeliveries({ tenantId: owner, ...filter })).deliveries).toHaveLength(1);
      expect((await withKey.deliveries.listDeliveries({ tenantId: other, ...filter })).deliveries).toEqual([]);
    }
  });

  it("is in no list", async () => {
    const [owner, other] = [newTenant(), newTenant()];
    await addAll(owner);
    expect((await withKey.deliveries.listDeliveries({ tenantId: other })).deliveries).toEqual([]);
    const list = await withKey.subscriptions.listWebhookSubscriptions({ tenantId: other });
    expect(list.webhookSubscriptions).toEqual([]);
  });
});
