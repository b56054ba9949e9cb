import { create } from "@bufbuild/protobuf";
import {
  type RedriveDeliveryRequest,
  type RedriveDeliveryResponse,
  RedriveDeliveryResponseSchema,
} from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { whileAvailable } from "../store/database.ts";
import { redriveDelivery as repair } from "../store/repairs.ts";
import { fromDelivery } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, toDeliveryPlace } from "./request-checks.ts";

export function redriveDelivery(deps: RpcDependencies) {
  return async (request: RedriveDeliveryRequest): Promise<RedriveDeliveryResponse> => {
    checkRequest(request, { required: ["id"] });
    const place = toDeliveryPlace(request.id);
    const { delivery, promoted, atMs } = await whileAvailable(() =>
      repair(deps.orm, request.tenantId, place, deps.bounds),
    );
    deps.wakeUp.announce(promoted, atMs);
    return create(RedriveDeliveryResponseSchema, { delivery: fromDelivery(delivery) });
  };
}
