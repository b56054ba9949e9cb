import { Code } from "@connectrpc/connect";
import { errorToJsonBytes } from "@connectrpc/connect/protocol-connect";
import { setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import { detailedError } from "./interceptors/translate-errors.ts";
import type { RequestHandler } from "./port.ts";

/** What is no RPC: a gRPC client learns it from its trailers, everybody else from a 404 with the same error as JSON. */
export const answerUnknownPath: RequestHandler = (request, response) => {
  const error = detailedError(
    Code.Unimplemented,
    "there is no such RPC; paths look like /nuncio.v1.EventService/Publish",
    "RPC_NOT_FOUND",
  );
  const contentType = request.headers["content-type"] ?? "";
  if (contentType.startsWith("application/grpc")) {
    const trailers = new Headers();
    setTrailerStatus(trailers, error);
    // A response of trailers only: the status stands in the headers (gRPC over HTTP/2, "Trailers-Only").
    response.writeHead(200, { "content-type": contentType, ...Object.fromEntries(trailers) });
    response.end();
  } else {
    response.writeHead(404, { "content-type": "application/json" });
    response.end(errorToJsonBytes(error, undefined));
  }
};
