import type { Emission } from "./emitter.ts";
import type { Belief, Received } from "./receiver.ts";
import type { Person, UserEvent, UserEventType } from "./user-event.ts";

/** One subscription: what it asked for, what its receiver got, and what Nuncio says became of it. */
export type Subscribed = {
  readonly name: string;
  readonly tenantId: string;
  /** Empty: all. */
  readonly eventTypes: readonly UserEventType[];
  readonly contentType: string;
  /** Accepted events, after the receiver dropped what it knew. */
  readonly received: readonly Received[];
  readonly beliefs: ReadonlyMap<string, Belief>;
  readonly faults: readonly string[];
  /** It was disabled for a while, when events became no delivery of it; a redrive has made up for that. */
  readonly wasDisabled: boolean;
  /** Every delivery that Nuncio lists for the subscription. */
  readonly listed: readonly { readonly eventId: string; readonly state: string }[];
};

export type Outcome = {
  readonly emissions: readonly Emission[];
  readonly subscriptions: readonly Subscribed[];
  /** The gateway's people at the end, by tenant. */
  readonly people: ReadonlyMap<string, readonly Person[]>;
};

/**
 * Every difference between what was emitted and what was received, one line each; none if each event reached each
 * matching subscription exactly once, whole and unchanged, nothing else did, and each receiver ends up knowing what the
 * gateway knows. It is written from the documentation of the body, not from the code that makes it.
 */
export function compare({ emissions, subscriptions, people }: Outcome): string[] {
  return [
    ...compareAnswers(emissions, subscriptions),
    ...subscriptions.flatMap((subscription) => {
      const events = emissions.map(({ event }) => event).filter((event) => matches(subscription, event));
      const differences = [
        ...subscription.faults,
        ...compareDeliveries(events, subscription),
        ...compareSequences(events, subscription),
        ...compareList(events, subscription),
        ...compareBeliefs(events, subscription, people.get(subscription.tenantId) ?? []),
      ];
      return differences.map((difference) => `${subscription.name}: ${difference}`);
    }),
  ];
}

export function matches({ tenantId, eventTypes }: Pick<Subscribed, "tenantId" | "eventTypes">, event: UserEvent) {
  return tenantId === event.tenantId && (eventTypes.length === 0 || eventTypes.includes(event.type));
}

function compareAnswers(emissions: readonly Emission[], subscriptions: readonly Subscribed[]): string[] {
  return emissions.flatMap(({ event, state, deliveries, why }) => {
    if (state !== "accepted") return [`gateway: ${describe(event)} is ${state}${why === undefined ? "" : `: ${why}`}`];
    const matching = subscriptions.filter((subscription) => matches(subscription, event));
    const least = matching.filter(({ wasDisabled }) => !wasDisabled).length;
    if (deliveries === undefined || (deliveries >= least && deliveries <= matching.length)) return [];
    return [`gateway: Nuncio stores ${deliveries} deliveries of ${describe(event)}, not ${matching.length}`];
  });
}

function compareDeliveries(events: readonly UserEvent[], { tenantId, contentType, received }: Subscribed): string[] {
  const differences: string[] = [];
  const arrived = Map.groupBy(received, ({ webhookId }) => webhookId);
  for (const event of events) {
    const copies = arrived.get(event.id) ?? [];
    arrived.delete(event.id);
    if (copies.length === 0) differences.push(`${describe(event)} never arrives`);
    if (copies.length > 1) differences.push(`${describe(event)} is accepted ${copies.length} times`);
    for (const copy of copies) {
      const { usersequence, ...body } = copy.body;
      if (!/^\d{20}$/.test(usersequence)) differences.push(`${describe(event)} has usersequence ${show(usersequence)}`);
      const found = differencesBetween(toExpectedBody(event), body, "body");
      if (copy.contentType !== contentType) found.push(`content-type is ${show(copy.contentType)}`);
      differences.push(...found.map((difference) => `${describe(event)}: ${difference}`));
    }
  }
  for (const { webhookId, body } of [...arrived.values()].flat()) {
    const whose = body.tenantid === tenantId ? "" : `, of tenant ${body.tenantid}`;
    differences.push(`${body.type} ${webhookId} of ${body.data?.user?.id} arrives unexpectedly${whose}`);
  }
  return differences;
}

/** The gateway publishes a person's events one after the other, so their sequence has to grow in that order. */
function compareSequences(events: readonly UserEvent[], { received }: Subscribed): string[] {
  const sequences = new Map(received.map(({ webhookId, body }) => [webhookId, body.usersequence]));
  const last = new Map<string, string>();
  return events.flatMap((event) => {
    const sequence = sequences.get(event.id);
    if (sequence === undefined) return [];
    const before = last.get(event.user.id) ?? "";
    last.set(event.user.id, sequence);
    return sequence > before ? [] : [`${describe(event)} has sequence ${sequence}, the event before it ${before}`];
  });
}

function compareList(events: readonly UserEvent[], { listed }: Subscribed): string[] {
  const lists = Map.groupBy(listed, ({ eventId }) => eventId);
  const differences = events.flatMap((event) => {
    const states = (lists.get(event.id) ?? []).map(({ state }) => state);
    lists.delete(event.id);
    return states.length === 1 && states[0] === "DELIVERED"
      ? []
      : [`ListDeliveries has ${describe(event)} as ${states.join(" and ") || "nothing"}`];
  });
  return [...differences, ...[...lists.keys()].map((eventId) => `ListDeliveries has ${eventId} unexpectedly`)];
}

/** Who gets every event knows what the gateway knows; who gets some of them knows what the last of those said. */
function compareBeliefs(
  events: readonly UserEvent[],
  { eventTypes, beliefs }: Subscribed,
  people: readonly Person[],
): string[] {
  const truth = new Map<string, UserEvent["user"]>();
  for (const { type, user } of events) {
    if (type === "user.deleted") truth.delete(user.id);
    else truth.set(user.id, user);
  }
  if (eventTypes.length === 0) {
    truth.clear();
    for (const person of people) truth.set(person.id, person);
  }
  const differences: string[] = [];
  for (const [id, { type, user }] of beliefs) {
    if (type === "user.deleted") continue;
    const person = truth.get(id);
    if (person === undefined) differences.push(`the receiver knows ${id}, who does not exist`);
    else differences.push(...differencesBetween(toWire(person), user, `the receiver's ${id}`));
  }
  for (const id of truth.keys()) {
    const belief = beliefs.get(id);
    if (belief === undefined || belief.type === "user.deleted") differences.push(`the receiver does not know ${id}`);
  }
  return differences;
}

/** The body without its sequence, from what the gateway emitted. */
function toExpectedBody(event: UserEvent): unknown {
  const { id, tenantId, type, occurTime, user, changed, previous, actor, reason } = event;
  return {
    specversion: "1.0",
    id,
    source: `/tenants/${tenantId}`,
    type,
    subject: `users/${encodeURIComponent(user.id)}`,
    time: occurTime,
    datacontenttype: "application/json",
    dataschema: `urn:nuncio:schema:${type}:1`,
    tenantid: tenantId,
    data: {
      user: toWire(user),
      ...(changed.length > 0 ? { changed, previous: toExpectedPrevious(toWire(previous), changed) } : {}),
      actor,
      ...(reason === undefined ? {} : { reason }),
    },
  };
}

type Members = Readonly<Record<string, unknown>>;

/** A list without entries is the same as none. The gateway's other fields are called and written as in the body. */
function toWire(person: Partial<Person>): Members {
  return Object.fromEntries(Object.entries(person).filter(([, value]) => !Array.isArray(value) || value.length > 0));
}

/** Each changed path, `null` if nothing stood there. */
function toExpectedPrevious(previous: Members, changed: readonly string[]): Members {
  const expected: Record<string, unknown> = {};
  for (const path of changed) {
    const [field = "", member] = path.split(".");
    const value = previous[field] as Members | undefined;
    if (member === undefined) expected[field] = value ?? null;
    else expected[field] = { ...(expected[field] as Members | undefined), [member]: value?.[member] ?? null };
  }
  return expected;
}

/** The paths at which two JSON values differ, each with both sides. The order of members does not count. */
function differencesBetween(expected: unknown, actual: unknown, path: string): string[] {
  if (Array.isArray(expected) && Array.isArray(actual) && expected.length === actual.length) {
    return expected.flatMap((value, i) => differencesBetween(value, actual[i], `${path}[${i}]`));
  }
  if (isMembers(expected) && isMembers(actual)) {
    const names = new Set([...Object.keys(expected), ...Object.keys(actual)]);
    return [...names].flatMap((name) => differencesBetween(expected[name], actual[name], `${path}.${name}`));
  }
  return expected === actual ? [] : [`${path} is ${show(actual)}, not ${show(expected)}`];
}

function isMembers(value: unknown): value is Members {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function describe({ type, id, user }: UserEvent): string {
  return `${type} ${id} of ${user.id}`;
}

const LONGEST_SHOWN = 80;

/** In ASCII, for two names that look the same may be different ones. */
function show(value: unknown): string {
  const text = JSON.stringify(value) ?? "unset";
  const ascii = text.replace(/[^\x20-\x7e]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return ascii.length > LONGEST_SHOWN ? `${ascii.slice(0, LONGEST_SHOWN)}…` : ascii;
}
