import { create } from "@bufbuild/protobuf";
import {
  type CancelDeliveryRequest,
  type CancelDeliveryResponse,
  CancelDeliveryResponseSchema,
} from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { whileAvailable } from "../store/database.ts";
import { cancelDelivery as repair } from "../store/repairs.ts";
import { fromDelivery } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, toDeliveryPlace } from "./request-checks.ts";

export function cancelDelivery(deps: RpcDependencies) {
  return async (request: CancelDeliveryRequest): Promise<CancelDeliveryResponse> => {
    checkRequest(request, { required: ["id"] });
    const place = toDeliveryPlace(request.id);
    const { delivery, promoted, atMs } = await whileAvailable(() => repair(deps.orm, request.tenantId, place));
    deps.wakeUp.announce(promoted, atMs);
    return create(CancelDeliveryResponseSchema, { delivery: fromDelivery(delivery) });
  };
}
