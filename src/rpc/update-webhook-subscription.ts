import { create, isFieldSet } from "@bufbuild/protobuf";
import { type WebhookSubscription, WebhookSubscriptionSchema } from "../../gen/nuncio/v1/webhook_subscription_pb.ts";
import {
  type UpdateWebhookSubscriptionRequest,
  type UpdateWebhookSubscriptionResponse,
  UpdateWebhookSubscriptionResponseSchema,
} from "../../gen/nuncio/v1/webhook_subscription_service_pb.ts";
import type { Fault } from "../core/errors.ts";
import { checkSubscription, type SubscriptionSpec } from "../core/subscription.ts";
import { checkStorableText } from "../core/text.ts";
import { whileAvailable } from "../store/database.ts";
import { type SubscriptionChange, updateSubscription } from "../store/subscription-changes.ts";
import { fromSubscription, toSubscriptionSpec } from "./convert.ts";
import type { RpcDependencies } from "./dependencies.ts";
import { checkRequest, MAX_ID, toSubscriptionUuid } from "./request-checks.ts";

/** What may be changed: the proto's name of each field, and ours. */
const MEMBERS = {
  url: "url",
  event_types: "eventTypes",
  description: "description",
  ordering: "ordering",
  content_type: "contentType",
  headers: "headers",
  retry_policy: "retryDelaysMs",
  rate_limit: "requestsPerSecond",
  max_in_flight: "maxInFlight",
} as const satisfies Record<string, keyof SubscriptionSpec>;

type Field = keyof typeof MEMBERS;

const PATH = "webhook_subscription";

export function updateWebhookSubscription(deps: RpcDependencies) {
  return async (request: UpdateWebhookSubscriptionRequest): Promise<UpdateWebhookSubscriptionResponse> => {
    const faults: Fault[] = [];
    const change = readChange(deps, request, faults);
    checkRequest(request, { faults });
    const uuid = toSubscriptionUuid(request.webhookSubscription?.id ?? "");
    const { subscription, lane } = await whileAvailable(() =>
      updateSubscription(deps.orm, deps.box, request.tenantId, uuid, change),
    );
    deps.wakeUp.announce([lane]);
    return create(UpdateWebhookSubscriptionResponseSchema, { webhookSubscription: fromSubscription(subscription) });
  };
}

/** All that is wrong with the request, beside what every request has in common. */
export function findUpdateFaults(
  deps: Pick<RpcDependencies, "bounds">,
  request: UpdateWebhookSubscriptionRequest,
): Fault[] {
  const faults: Fault[] = [];
  readChange(deps, request, faults);
  return faults;
}

function readChange(
  { bounds }: Pick<RpcDependencies, "bounds">,
  request: UpdateWebhookSubscriptionRequest,
  faults: Fault[],
): SubscriptionChange {
  const wire = request.webhookSubscription;
  if (wire === undefined) {
    faults.push({ path: PATH, description: "is required" });
    return {};
  }
  if (wire.id === "") faults.push({ path: `${PATH}.id`, description: "is required" });
  checkStorableText(wire.id, MAX_ID, `${PATH}.id`, faults);

  const fields = request.updateMask?.paths.length ? readMask(request.updateMask.paths, faults) : setFields(wire);
  const all: Fault[] = [];
  const spec = toSubscriptionSpec(wire, PATH, all);
  checkSubscription(spec, bounds, PATH, all);
  faults.push(...all.filter(({ path }) => !isOfOther(path, fields)));
  return Object.fromEntries([...fields].map((field) => [MEMBERS[field], spec[MEMBERS[field]]]));
}

/** Whether a fault is about a field that may be changed and is not going to be. */
function isOfOther(path: string, fields: ReadonlySet<Field>): boolean {
  const field = path.slice(PATH.length + 1).split(/[.[]/)[0] as string;
  return field in MEMBERS && !fields.has(field as Field);
}

function readMask(paths: readonly string[], faults: Fault[]): Set<Field> {
  if (paths.includes("*")) return new Set(Object.keys(MEMBERS) as Field[]);
  const fields = new Set<Field>();
  paths.forEach((path, i) => {
    // Of a message of one field, that field is the whole.
    const field = path.replace(
      /^(retry_policy\.schedule|rate_limit\.requests_per_second)$/,
      (whole) => whole.split(".")[0] as string,
    );
    if (field in MEMBERS) fields.add(field as Field);
    else {
      const hint = path === "state" ? "; call Pause or Resume" : "";
      faults.push({ path: `update_mask.paths[${i}]`, description: `names nothing that can be changed${hint}` });
    }
  });
  return fields;
}

function setFields(wire: WebhookSubscription): Set<Field> {
  const set = WebhookSubscriptionSchema.fields.filter((field) => field.name in MEMBERS && isFieldSet(wire, field));
  return new Set(set.map((field) => field.name as Field));
}
