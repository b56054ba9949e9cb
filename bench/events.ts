import type { MessageInitShape } from "@bufbuild/protobuf";
import { type EventSchema, EventType } from "../gen/nuncio/v1/event_pb.ts";
import { UserStatus } from "../gen/nuncio/v1/user_pb.ts";
import { hashContent } from "../src/core/content-hash.ts";
import { type AcceptedEvent, toEventTypeCode } from "../src/core/event.ts";
import { renderBodyTail, spliceSequence } from "../src/core/event-body.ts";
import type { AppendRow } from "../src/store/outbox/append.ts";

/** Many enough that neighbours rarely share a user's lock, as in life. */
const USERS = 20_000;
let turn = 0;

function nextUserName(users: number): string {
  turn = (turn + 1) % users;
  return `user${String(turn).padStart(6, "0")}`;
}

const OCCURRED = { seconds: 1_795_428_000n, nanos: 0 };

export function wireEvent(tenantId: string, id: string): MessageInitShape<typeof EventSchema> {
  const name = nextUserName(USERS);
  const emails = [{ value: `${name}@example.com`, primary: true, verified: true }];
  return {
    id,
    tenantId,
    type: EventType.USER_CREATED,
    occurTime: OCCURRED,
    user: { id: `u_${name}`, userName: name, displayName: "Zoë Example", status: UserStatus.ACTIVE, emails },
  };
}

/** What `rpc/publish.ts` makes of such an event. */
export function appendRow(tenantId: string, id: string, users = USERS): AppendRow {
  const name = nextUserName(users);
  const emails = [{ value: `${name}@example.com`, primary: true, verified: true }];
  const event: AcceptedEvent = {
    id,
    tenantId,
    type: "user.created",
    occurTime: OCCURRED,
    user: { id: `u_${name}`, userName: name, displayName: "Zoë Example", status: "ACTIVE", emails },
    changed: [],
  };
  return {
    tenantId,
    eventId: id,
    eventTypeCode: toEventTypeCode(event.type),
    userId: event.user.id,
    contentHash: hashContent(event),
    traceparent: undefined,
    bodyTail: renderBodyTail(event),
  };
}

/** The body that a receiver gets for such an event. */
export function sampleBody(): string {
  return spliceSequence(1n, appendRow("tenant_1", "evt_0199aa00-0000-7000-8000-000000000000").bodyTail);
}
