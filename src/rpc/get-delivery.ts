import { create } from "@bufbuild/protobuf";
import {
  type GetDeliveryRequest,
  type GetDeliveryResponse,
  GetDeliveryResponseSchema,
} from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { whileAvailable } from "../store/database.ts";
import { getDelivery as readDelivery } from "../store/deliveries.ts";
import { fromDelivery } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, toDeliveryPlace } from "./request-checks.ts";

export function getDelivery(deps: RpcDependencies) {
  return async (request: GetDeliveryRequest): Promise<GetDeliveryResponse> => {
    checkRequest(request, { required: ["id"] });
    const place = toDeliveryPlace(request.id);
    const { delivery, attempts } = await whileAvailable(() => readDelivery(deps.orm, request.tenantId, place));
    return create(GetDeliveryResponseSchema, { delivery: fromDelivery(delivery, attempts) });
  };
}
