import { create } from "@bufbuild/protobuf";
import {
  type GetDeliveryRequest,
  type GetDeliveryResponse,
  GetDeliveryResponseSchema,
} from "../../gen/nuncio/v1/delivery_service_pb.ts";
import { parseDeliveryId } from "../core/ids.ts";
import { whileAvailable } from "../store/database.ts";
import { getDelivery as readDelivery } from "../store/deliveries.ts";
import { fromDelivery } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, notFound } from "./request-checks.ts";

export function getDelivery(deps: RpcDependencies) {
  return async (request: GetDeliveryRequest): Promise<GetDeliveryResponse> => {
    checkRequest(request, { required: ["id"] });
    const place = parseDeliveryId(request.id);
    if (place === undefined) throw notFound("DELIVERY_NOT_FOUND", "delivery");
    const { delivery, attempts } = await whileAvailable(() => readDelivery(deps.orm, request.tenantId, place));
    return create(GetDeliveryResponseSchema, { delivery: fromDelivery(delivery, attempts) });
  };
}
