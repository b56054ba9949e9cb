import { setImmediate } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, createHandlerContext, createRouterTransport } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import {
  Health,
  HealthCheckRequestSchema,
  HealthCheckResponse_ServingStatus as ServingStatus,
} from "../../gen/grpc/health/v1/health_pb.ts";
import { healthService } from "../../src/rpc/health.ts";

const SERVICE = "nuncio.v1.EventService";

function healthClient(isServing: () => boolean | Promise<boolean>) {
  const transport = createRouterTransport(({ service }) => {
    service(Health, healthService(isServing, [SERVICE], 1));
  });
  return createClient(Health, transport);
}

describe("check", () => {
  it.each([
    ["", true, ServingStatus.SERVING],
    ["", false, ServingStatus.NOT_SERVING],
    [SERVICE, true, ServingStatus.SERVING],
    [SERVICE, false, ServingStatus.NOT_SERVING],
  ])("answers for service %j, when serving is %j, with status %i", async (service, serving, status) => {
    expect(await healthClient(() => serving).check({ service })).toMatchObject({ status });
  });

  it("waits for an answer that takes time", async () => {
    const client = healthClient(async () => {
      await setImmediate();
      return false;
    });
    expect(await client.check({})).toMatchObject({ status: ServingStatus.NOT_SERVING });
  });

  it("refuses an unknown service as not found", async () => {
    const error = await healthClient(() => true)
      .check({ service: "nuncio.v1.NoSuchService" })
      .catch(ConnectError.from);
    expect(error).toMatchObject({ code: Code.NotFound, rawMessage: 'unknown service "nuncio.v1.NoSuchService"' });
  });
});

describe("watch", () => {
  it("says the status at once and then only when it changes", async () => {
    const answers = [true, true, false, false, false, true];
    const seen: ServingStatus[] = [];
    const client = healthClient(() => answers.shift() ?? true);
    for await (const { status } of client.watch({ service: SERVICE })) {
      seen.push(status);
      if (seen.length === 3) break;
    }
    expect(seen).toEqual([ServingStatus.SERVING, ServingStatus.NOT_SERVING, ServingStatus.SERVING]);
    expect(answers).toEqual([]);
  });

  it("stops waiting when the call is aborted", async () => {
    const call = createHandlerContext({
      service: Health,
      method: Health.method.watch,
      protocolName: "grpc",
      requestMethod: "POST",
      url: "http://localhost/grpc.health.v1.Health/Watch",
    });
    const anHour = 3_600_000;
    const watching = healthService(() => true, [SERVICE], anHour).watch?.(create(HealthCheckRequestSchema), call);
    const statuses = watching![Symbol.asyncIterator]();
    expect(await statuses.next()).toEqual({ done: false, value: { status: ServingStatus.SERVING } });
    const next = statuses.next();
    call.abort();
    expect(await next).toMatchObject({ done: true });
  });

  it("says that a service is unknown, and the call stays open", async () => {
    const call = new AbortController();
    const client = healthClient(() => true);
    const statuses = client.watch({ service: "nuncio.v1.NoSuchService" }, { signal: call.signal });
    const iterator = statuses[Symbol.asyncIterator]();
    expect((await iterator.next()).value).toMatchObject({ status: ServingStatus.SERVICE_UNKNOWN });
    const next = iterator.next();
    call.abort();
    await expect(next).rejects.toMatchObject({ code: Code.Canceled });
  });
});

describe("list", () => {
  it("names the whole server and every service", async () => {
    const { statuses } = await healthClient(() => true).list({});
    expect(Object.fromEntries(Object.entries(statuses).map(([name, { status }]) => [name, status]))).toEqual({
      "": ServingStatus.SERVING,
      [SERVICE]: ServingStatus.SERVING,
    });
  });
});
