import { create, createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import {
  FieldDescriptorProto_Label,
  FieldDescriptorProto_Type,
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
} from "@bufbuild/protobuf/wkt";
import { createClient, createRouterTransport } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { file_grpc_health_v1_health } from "../../gen/grpc/health/v1/health_pb.ts";
import {
  ExtensionRequestSchema,
  ServerReflection,
  type ServerReflectionRequest,
  type ServerReflectionResponse,
} from "../../gen/grpc/reflection/v1/reflection_pb.ts";
import { file_nuncio_v1_delivery_service } from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { file_nuncio_v1_event_service } from "../../gen/nuncio/v1/event_service_pb.ts";
import { reflectionService } from "../../src/rpc/reflection.ts";

type Question = ServerReflectionRequest["messageRequest"];

const NOT_FOUND = 5;
const INVALID_ARGUMENT = 3;

/** `acme.Base` has an extension of number 100, declared inside another message, and none of number 101. */
const extended = createFileRegistry(
  create(FileDescriptorSetSchema, {
    file: [
      {
        name: "acme/base.proto",
        package: "acme",
        syntax: "proto2",
        messageType: [{ name: "Base", extensionRange: [{ start: 100, end: 200 }] }],
      },
      {
        name: "acme/extra.proto",
        package: "acme",
        syntax: "proto2",
        dependency: ["acme/base.proto"],
        messageType: [
          {
            name: "Holder",
            extension: [
              {
                name: "note",
                number: 100,
                extendee: ".acme.Base",
                type: FieldDescriptorProto_Type.STRING,
                label: FieldDescriptorProto_Label.OPTIONAL,
              },
            ],
          },
        ],
      },
    ],
  }),
);

const client = createClient(
  ServerReflection,
  createRouterTransport(({ service }) => {
    const files = [file_nuncio_v1_event_service, file_nuncio_v1_delivery_service, file_grpc_health_v1_health];
    service(ServerReflection, reflectionService([...files, extended.getFile("acme/extra.proto")!]));
  }),
);

async function ask(...questions: Question[]): Promise<ServerReflectionResponse[]> {
  async function* requests() {
    for (const messageRequest of questions) yield { host: "nuncio.example", messageRequest };
  }
  const responses: ServerReflectionResponse[] = [];
  for await (const response of client.serverReflectionInfo(requests())) responses.push(response);
  return responses;
}

function extensionOfBase(extensionNumber: number): Question {
  const value = create(ExtensionRequestSchema, { containingType: "acme.Base", extensionNumber });
  return { case: "fileContainingExtension", value };
}

/** The files of the answer, in order, read the way a client reads them. */
async function askForFiles(question: Question) {
  const [response] = await ask(question);
  const answer = response?.messageResponse;
  if (answer?.case !== "fileDescriptorResponse") throw new Error(`answered with ${answer?.case}`);
  return answer.value.fileDescriptorProto.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes));
}

describe("list_services", () => {
  it("names the services of the given files", async () => {
    const [response] = await ask({ case: "listServices", value: "" });
    expect(response).toMatchObject({
      validHost: "nuncio.example",
      originalRequest: { host: "nuncio.example", messageRequest: { case: "listServices" } },
      messageResponse: {
        case: "listServicesResponse",
        value: {
          service: [
            { name: "nuncio.v1.EventService" },
            { name: "nuncio.v1.DeliveryService" },
            { name: "grpc.health.v1.Health" },
          ],
        },
      },
    });
  });
});

describe("file_by_filename", () => {
  it("answers with the file first and everything it imports, each once", async () => {
    const files = await askForFiles({ case: "fileByFilename", value: "nuncio/v1/event_service.proto" });
    expect(files[0]?.name).toBe("nuncio/v1/event_service.proto");
    expect(files.map(({ name }) => name).sort()).toEqual([
      "google/protobuf/any.proto",
      "google/protobuf/duration.proto",
      "google/protobuf/timestamp.proto",
      "google/rpc/status.proto",
      "nuncio/v1/delivery.proto",
      "nuncio/v1/event.proto",
      "nuncio/v1/event_service.proto",
      "nuncio/v1/user.proto",
    ]);
  });

  it("answers in an order, backwards, in which a client can build every type", async () => {
    const files = await askForFiles({ case: "fileByFilename", value: "nuncio/v1/event_service.proto" });
    const registry = createFileRegistry(create(FileDescriptorSetSchema, { file: files.toReversed() }));
    const { publish } = registry.getService("nuncio.v1.EventService")!.method;
    expect(publish?.input.field.event?.message?.typeName).toBe("nuncio.v1.Event");
    const { createTime } = registry.getMessage("nuncio.v1.User")!.field;
    expect(createTime?.message?.typeName).toBe("google.protobuf.Timestamp");
  });

  it("finds a file that is only imported", async () => {
    const files = await askForFiles({ case: "fileByFilename", value: "google/protobuf/timestamp.proto" });
    expect(files.map(({ name }) => name)).toEqual(["google/protobuf/timestamp.proto"]);
  });
});

describe("file_containing_symbol", () => {
  it.each([
    ["a service", "nuncio.v1.EventService", "nuncio/v1/event_service.proto"],
    ["a method", "nuncio.v1.EventService.Publish", "nuncio/v1/event_service.proto"],
    ["a message", "nuncio.v1.User", "nuncio/v1/user.proto"],
    ["a field", "nuncio.v1.User.display_name", "nuncio/v1/user.proto"],
    ["a oneof", "nuncio.v1.PublishResult.result", "nuncio/v1/event_service.proto"],
    ["an enum", "nuncio.v1.EventType", "nuncio/v1/event.proto"],
    ["a value of an enum", "nuncio.v1.EVENT_TYPE_USER_CREATED", "nuncio/v1/event.proto"],
    ["a nested enum", "grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"],
    ["a value of a nested enum", "grpc.health.v1.HealthCheckResponse.SERVING", "grpc/health/v1/health.proto"],
    ["an extension", "acme.Holder.note", "acme/extra.proto"],
    ["a type of a library", "google.protobuf.Any", "google/protobuf/any.proto"],
  ])("finds the file of %s", async (_kind, symbol, file) => {
    const files = await askForFiles({ case: "fileContainingSymbol", value: symbol });
    expect(files[0]?.name).toBe(file);
  });
});

describe("extensions", () => {
  it("are found by message and number", async () => {
    const files = await askForFiles(extensionOfBase(100));
    expect(files.map(({ name }) => name)).toEqual(["acme/extra.proto", "acme/base.proto"]);
  });

  it.each([
    ["acme.Base", [100]],
    ["nuncio.v1.User", []],
  ])("of %s have the numbers %j", async (type, numbers) => {
    const [response] = await ask({ case: "allExtensionNumbersOfType", value: type });
    expect(response?.messageResponse).toMatchObject({
      case: "allExtensionNumbersResponse",
      value: { baseTypeName: type, extensionNumber: numbers },
    });
  });
});

describe("what is unknown", () => {
  it.each<Question>([
    { case: "fileByFilename", value: "nuncio/v1/none.proto" },
    { case: "fileContainingSymbol", value: "nuncio.v1.None" },
    { case: "fileContainingSymbol", value: "nuncio.v1" },
    { case: "fileContainingSymbol", value: "" },
    extensionOfBase(101),
    { case: "allExtensionNumbersOfType", value: "nuncio.v1.None" },
  ])("is answered as not found: $case $value", async (question) => {
    const [response] = await ask(question);
    expect(response?.messageResponse).toMatchObject({ case: "errorResponse", value: { errorCode: NOT_FOUND } });
  });

  it("leaves the stream open for the next question", async () => {
    const responses = await ask(
      { case: undefined },
      { case: "fileContainingSymbol", value: "nuncio.v1.None" },
      { case: "fileContainingSymbol", value: "nuncio.v1.Event" },
    );
    expect(responses.map(({ messageResponse }) => messageResponse)).toMatchObject([
      { case: "errorResponse", value: { errorCode: INVALID_ARGUMENT } },
      { case: "errorResponse", value: { errorCode: NOT_FOUND, errorMessage: "unknown symbol nuncio.v1.None" } },
      { case: "fileDescriptorResponse" },
    ]);
  });
});
