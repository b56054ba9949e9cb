import { hash } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import canonicalize from "canonicalize";
import {
  type CreateRedriveRequest,
  type CreateRedriveResponse,
  CreateRedriveResponseSchema,
} from "../../gen/nuncio/v1/delivery_service_pb.ts";
import type { Fault } from "../core/errors.ts";
import { toUuid, type Uuid } from "../core/ids.ts";
import { checkRedrive, type RedriveSpec } from "../core/redrive.ts";
import { checkStorableText } from "../core/text.ts";
import { whileAvailable } from "../store/database.ts";
import { createRedrive as storeRedrive } from "../store/redrives.ts";
import { fromRedrive, toRedriveSpec } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, checkRequestId, MAX_ID, toSubscriptionUuid } from "./request-checks.ts";

const PATH = "redrive";

export function createRedrive(deps: RpcDependencies) {
  return async (request: CreateRedriveRequest): Promise<CreateRedriveResponse> => {
    const spec = readSpec(request);
    const redrive = await whileAvailable(() =>
      storeRedrive(deps.orm, request.tenantId, {
        spec,
        redriveUuid: toUuid(deps.newUuidV7()) as Uuid,
        requestId: request.requestId === "" ? undefined : request.requestId,
        contentHash: hash("sha256", canonicalize(spec) as string, "buffer"),
      }),
    );
    return create(CreateRedriveResponseSchema, { redrive: fromRedrive(redrive) });
  };
}

function readSpec(request: CreateRedriveRequest): RedriveSpec {
  const faults: Fault[] = [];
  const wire = request.redrive;
  if (wire === undefined) faults.push({ path: PATH, description: "is required" });
  const spec = wire && toRedriveSpec(wire, PATH, faults);
  if (spec) checkRedrive(spec, PATH, faults);
  if (wire?.subscriptionId === "") faults.push({ path: `${PATH}.subscription_id`, description: "is required" });
  checkStorableText(wire?.subscriptionId ?? "", MAX_ID, `${PATH}.subscription_id`, faults);
  checkRequestId(request.requestId, faults);
  checkRequest(request, { faults });
  return {
    ...(spec as Omit<RedriveSpec, "subscription">),
    subscription: toSubscriptionUuid(wire?.subscriptionId ?? ""),
  };
}
