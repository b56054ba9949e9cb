import type { Message } from "@bufbuild/protobuf";
import type { Fault, Reason } from "../core/errors.ts";

/** What an RPC finds wrong with a message, by the RPC's request path, and the reason that it gives for it. */
export type Judges = ReadonlyMap<string, { readonly reason: Reason; readonly judge: (message: Message) => Fault[] }>;
