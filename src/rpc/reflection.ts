import { type DescFile, type DescMessage, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { nestedTypes } from "@bufbuild/protobuf/reflect";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, type ServiceImpl } from "@connectrpc/connect";
import type {
  ServerReflection,
  ServerReflectionRequest,
  ServerReflectionResponseSchema,
} from "../../gen/grpc/reflection/v1/reflection_pb.ts";

type Answer = NonNullable<MessageInitShape<typeof ServerReflectionResponseSchema>["messageResponse"]>;

/**
 * `grpc.reflection.v1.ServerReflection`: lists the services of `files`, and finds symbols and extensions in them and in
 * everything they import. A file is always answered with all it imports, each before what it imports itself.
 */
export function reflectionService(files: readonly DescFile[]): ServiceImpl<typeof ServerReflection> {
  const index = buildIndex(files);
  return {
    async *serverReflectionInfo(requests) {
      for await (const request of requests) {
        yield {
          validHost: request.host,
          originalRequest: request,
          messageResponse: answer(index, request.messageRequest),
        };
      }
    },
  };
}

interface Index {
  services: { name: string }[];
  files: Map<string, DescFile>;
  /** By fully-qualified name: messages, fields, oneofs, enums, enum values, extensions, services and methods. */
  symbols: Map<string, DescFile>;
  /** By the message type they extend, then by number; empty for a message that nothing extends. */
  extensions: Map<string, Map<number, DescFile>>;
  /** By file name: its serialised descriptor and those of all it imports. */
  descriptors: Map<string, Uint8Array[]>;
}

function answer(index: Index, request: ServerReflectionRequest["messageRequest"]): Answer {
  switch (request.case) {
    case "listServices":
      return { case: "listServicesResponse", value: { service: index.services } };
    case "fileByFilename":
      return answerFile(index, index.files.get(request.value), `file ${request.value}`);
    case "fileContainingSymbol":
      return answerFile(index, index.symbols.get(request.value), `symbol ${request.value}`);
    case "fileContainingExtension": {
      const { containingType, extensionNumber } = request.value;
      const file = index.extensions.get(containingType)?.get(extensionNumber);
      return answerFile(index, file, `extension ${extensionNumber} of ${containingType}`);
    }
    case "allExtensionNumbersOfType": {
      const extensions = index.extensions.get(request.value);
      if (extensions === undefined) return refuse(Code.NotFound, `unknown message ${request.value}`);
      const extensionNumber = [...extensions.keys()];
      return { case: "allExtensionNumbersResponse", value: { baseTypeName: request.value, extensionNumber } };
    }
    case undefined:
      return refuse(Code.InvalidArgument, "the request asks nothing: set one field of message_request");
  }
}

function answerFile(index: Index, file: DescFile | undefined, sought: string): Answer {
  if (file === undefined) return refuse(Code.NotFound, `unknown ${sought}`);
  const fileDescriptorProto = index.descriptors.get(file.proto.name) ?? [];
  return { case: "fileDescriptorResponse", value: { fileDescriptorProto } };
}

/** An answer rather than an error of the call, so that the stream stays open for the next question. */
function refuse(code: Code, errorMessage: string): Answer {
  return { case: "errorResponse", value: { errorCode: code, errorMessage } };
}

function buildIndex(roots: readonly DescFile[]): Index {
  const all = withImports(roots);
  const bytes = new Map(all.map((file) => [file, toBinary(FileDescriptorProtoSchema, file.proto)]));
  const index: Index = {
    services: roots.flatMap((file) => file.services.map((service) => ({ name: service.typeName }))),
    files: new Map(all.map((file) => [file.proto.name, file])),
    symbols: new Map(),
    extensions: new Map(),
    descriptors: new Map(
      all.map((file) => [file.proto.name, withImports([file]).flatMap((needed) => bytes.get(needed) ?? [])]),
    ),
  };
  for (const file of all) indexSymbols(index, file);
  return index;
}

/** The files and all they import, each once, and each before what it imports: backwards, the order of protoc. */
function withImports(files: readonly DescFile[]): DescFile[] {
  const importedFirst = new Set<DescFile>();
  const visit = (file: DescFile): void => {
    if (importedFirst.has(file)) return;
    file.dependencies.forEach(visit);
    importedFirst.add(file);
  };
  files.forEach(visit);
  return [...importedFirst].reverse();
}

function indexSymbols({ symbols, extensions }: Index, file: DescFile): void {
  for (const type of nestedTypes(file)) {
    symbols.set(type.typeName, file);
    switch (type.kind) {
      case "message":
        for (const member of [...type.fields, ...type.oneofs]) symbols.set(`${type.typeName}.${member.name}`, file);
        extensionsOf(extensions, type);
        break;
      case "enum":
        // As in C++, the values of an enum are names in the scope around it.
        for (const value of type.values) symbols.set(siblingName(type.typeName, value.name), file);
        break;
      case "service":
        for (const method of type.methods) symbols.set(`${type.typeName}.${method.name}`, file);
        break;
      case "extension":
        extensionsOf(extensions, type.extendee).set(type.number, file);
        break;
    }
  }
}

function extensionsOf(extensions: Index["extensions"], { typeName }: DescMessage): Map<number, DescFile> {
  const found = extensions.get(typeName) ?? new Map<number, DescFile>();
  extensions.set(typeName, found);
  return found;
}

function siblingName(typeName: string, name: string): string {
  return typeName.slice(0, typeName.lastIndexOf(".") + 1) + name;
}
