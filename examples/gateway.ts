import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { isDeepStrictEqual } from "node:util";
import type { Client } from "@connectrpc/connect";
import { v7 as uuidV7 } from "uuid";
import type { EventService } from "../gen/nuncio/v1/event_service_pb.ts";
import { type Emission, Emitter } from "./emitter.ts";
import type { Person, Profile, UserEvent, UserEventType } from "./user-event.ts";

// A small identity gateway. Its tenants' people live in memory; whatever changes one of them emits an event. The header
// `x-tenant` stands for the host name by which a real one tells its customers apart.
//
//   POST   /signup                   {profile}
//   POST   /oauth/callback           {provider, subject, profile}: the first login makes the person, later ones update
//   GET    /people                   everyone
//   PATCH  /people/:id               a profile as a merge patch (RFC 7396): null unsets
//   POST   /people/:id/suspend       {reason}; also unsuspend, deactivate, reactivate
//   DELETE /people/:id
//
// The answer never waits for Nuncio and never fails because of it: the change comes first, then the event is handed to
// the emitter.

export type Gateway = {
  readonly address: string;
  /** Every event that the gateway emitted, in order, and what became of it. */
  readonly emissions: readonly Emission[];
  /** How many events Nuncio has not accepted yet. */
  waiting(): number;
  close(): Promise<void>;
};

type Tenant = {
  readonly people: Map<string, Person>;
  /** `provider`, `subject` → person id. */
  readonly identities: Map<string, string>;
  /** Ids are never reused, so this never goes back. */
  idsGiven: number;
};

/** Who does something, to whom, and why: what an event says beside the person. */
type Act = { readonly tenantId: string; readonly actor: UserEvent["actor"]; readonly reason?: string };

/** A refusal that the caller gets to see. */
class Refusal extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

const MAX_BODY_BYTES = 1024 * 1024;

/** What a person may set, and which of it has members. */
const PROFILE_FIELDS: Readonly<Record<keyof Profile, boolean>> = {
  externalId: false,
  userName: false,
  displayName: false,
  name: true,
  emails: false,
  phoneNumbers: false,
  locale: false,
  timezone: false,
  groupIds: false,
  roleIds: false,
  organization: true,
};

/** Opens the gateway on a free port of this machine. */
export async function openGateway(events: Client<typeof EventService>): Promise<Gateway> {
  const emitter = new Emitter(events);
  const tenants = new Map<string, Tenant>();
  const server = createServer(async (request, response) => {
    try {
      const { status, body } = await answer(request, tenants, emitter);
      send(response, status, body);
    } catch (error) {
      send(response, error instanceof Refusal ? error.status : 500, { error: (error as Error).message });
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  return {
    address: `http://127.0.0.1:${port}`,
    emissions: emitter.emissions,
    waiting: () => emitter.waiting,
    close: async () => {
      server.close();
      server.closeAllConnections();
      await emitter.close();
    },
  };
}

// Routes

async function answer(request: IncomingMessage, tenants: Map<string, Tenant>, emitter: Emitter): Promise<Answer> {
  const tenantId = request.headers["x-tenant"];
  if (typeof tenantId !== "string") throw new Refusal(400, "x-tenant is missing");
  // Read before the people are: from here on nothing waits, so two requests never see a change half done.
  const body = await readJson(request);
  const tenant = tenants.get(tenantId) ?? { people: new Map(), identities: new Map(), idsGiven: 0 };
  tenants.set(tenantId, tenant);

  const emit = (type: UserEventType, user: UserEvent["user"], act: Act, difference: Difference = NO_DIFFERENCE) =>
    emitter.emit({ id: `evt_${uuidV7()}`, type, occurTime: now(), user, ...difference, ...act });
  const visit = { tenantId, tenant, body, emit };

  const url = request.url ?? "";
  const open = OPEN_ROUTES[`${request.method} ${url}`];
  if (open !== undefined) return open(visit);
  const [, id = "", verb = ""] = /^\/people\/([^/]+)(\/[a-z]+)?$/.exec(url) ?? [];
  const change = CHANGES[`${request.method} /people/:id${verb}`];
  if (id === "" || change === undefined) throw new Refusal(404, "no such route");
  const person = tenant.people.get(decodeURIComponent(id));
  if (person === undefined) throw new Refusal(404, "no such person");
  return change({ ...visit, person });
}

type Visit = {
  readonly tenantId: string;
  readonly tenant: Tenant;
  readonly body: Readonly<Record<string, unknown>>;
  readonly emit: (type: UserEventType, user: UserEvent["user"], act: Act, difference?: Difference) => void;
};
type PersonVisit = Visit & { readonly person: Person };
type Answer = { readonly status: number; readonly body?: unknown };

const OPEN_ROUTES: Readonly<Record<string, (visit: Visit) => Answer>> = {
  "POST /signup": signUp,
  "POST /oauth/callback": logIn,
  "GET /people": ({ tenant }) => ({ status: 200, body: [...tenant.people.values()] }),
};

const CHANGES: Readonly<Record<string, (visit: PersonVisit) => Answer>> = {
  "PATCH /people/:id": changeProfile,
  "POST /people/:id/suspend": (visit) => setStatus(visit, "user.updated", "ACTIVE", "SUSPENDED"),
  "POST /people/:id/unsuspend": (visit) => setStatus(visit, "user.updated", "SUSPENDED", "ACTIVE"),
  "POST /people/:id/deactivate": deactivate,
  "POST /people/:id/reactivate": (visit) => setStatus(visit, "user.reactivated", "DEACTIVATED", "ACTIVE"),
  "DELETE /people/:id": remove,
};

// What happens to people

function signUp({ tenantId, tenant, body, emit }: Visit): Answer {
  const person = addPerson(tenant, "u_", toProfile(body.profile));
  emit("user.created", person, { tenantId, actor: { type: "user", id: person.id } });
  return { status: 201, body: person };
}

function logIn({ tenantId, tenant, body, emit }: Visit): Answer {
  const { provider, subject } = body;
  if (typeof provider !== "string" || typeof subject !== "string") throw new Refusal(400, "provider, subject");
  const profile = toProfile(body.profile);
  const identity = JSON.stringify([provider, subject]);
  const known = tenant.people.get(tenant.identities.get(identity) ?? "");
  if (known === undefined) {
    const person = addPerson(tenant, `${provider}|`, profile);
    tenant.identities.set(identity, person.id);
    emit("user.created", person, { tenantId, actor: { type: "oauth" }, reason: `first login by ${provider}` });
    return { status: 201, body: person };
  }
  if (known.status !== "ACTIVE") throw new Refusal(403, "may not log in");
  return update({ tenantId, tenant, body, emit, person: known }, profile, { tenantId, actor: { type: "oauth" } });
}

function changeProfile(visit: PersonVisit): Answer {
  if (visit.person.status === "DEACTIVATED") throw new Refusal(409, "is deactivated");
  const { tenantId, person } = visit;
  return update(visit, toProfile(visit.body), { tenantId, actor: { type: "user", id: person.id } });
}

/** Without a difference nothing has happened, so there is no event. */
function update({ tenant, emit, person }: PersonVisit, patch: Profile, act: Act): Answer {
  const after = mergePatch(person, patch) as Person;
  const difference = differenceBetween(person, after);
  if (difference.changed.length === 0) return { status: 200, body: person };
  const updated = save(tenant, after);
  emit("user.updated", updated, act, difference);
  return { status: 200, body: updated };
}

function setStatus(visit: PersonVisit, type: UserEventType, from: Person["status"], to: Person["status"]): Answer {
  const { tenantId, tenant, person, body, emit } = visit;
  if (person.status !== from) throw new Refusal(409, `is ${person.status}, not ${from}`);
  const { deactivateTime: _, ...rest } = person;
  const after: Person = { ...rest, status: to, ...(to === "DEACTIVATED" ? { deactivateTime: now() } : {}) };
  const saved = save(tenant, after);
  const reason = typeof body.reason === "string" ? { reason: body.reason } : {};
  emit(type, saved, { tenantId, actor: { type: "admin", id: "u_admin" }, ...reason }, differenceBetween(person, after));
  return { status: 200, body: saved };
}

function deactivate(visit: PersonVisit): Answer {
  return setStatus(
    visit,
    "user.deactivated",
    visit.person.status === "SUSPENDED" ? "SUSPENDED" : "ACTIVE",
    "DEACTIVATED",
  );
}

/** Receivers take access away on `user.deactivated`; so nobody is deleted without having been deactivated. */
function remove(visit: PersonVisit): Answer {
  const { tenantId, tenant, person, emit } = visit;
  if (person.status !== "DEACTIVATED") deactivate(visit);
  tenant.people.delete(person.id);
  for (const [identity, id] of tenant.identities) if (id === person.id) tenant.identities.delete(identity);
  const { id, externalId } = person;
  const act = { tenantId, actor: { type: "admin", id: "u_admin" } };
  emit("user.deleted", { id, ...(externalId === undefined ? {} : { externalId }) }, act);
  return { status: 204 };
}

function addPerson(tenant: Tenant, prefix: string, profile: Profile): Person {
  tenant.idsGiven += 1;
  const time = now();
  const person = mergePatch(
    { id: `${prefix}${tenant.idsGiven}`, status: "ACTIVE", createTime: time, updateTime: time },
    profile,
  ) as Person;
  tenant.people.set(person.id, person);
  return person;
}

function save(tenant: Tenant, person: Person): Person {
  const saved = { ...person, updateTime: now() };
  tenant.people.set(saved.id, saved);
  return saved;
}

function now(): string {
  return new Date().toISOString();
}

// Patches and differences

function toProfile(value: unknown): Profile {
  if (typeof value !== "object" || value === null) throw new Refusal(400, "a profile is an object");
  const stranger = Object.keys(value).find((field) => !Object.hasOwn(PROFILE_FIELDS, field));
  if (stranger !== undefined) throw new Refusal(400, `${stranger} is not part of a profile`);
  return value;
}

type Members = Readonly<Record<string, unknown>>;

/** RFC 7396. An object or list that has nothing left in it is unset. */
function mergePatch(target: Members, patch: Members): Members {
  const merged: Record<string, unknown> = { ...target };
  for (const [field, value] of Object.entries(patch)) {
    const next = isMembers(value) ? mergePatch(isMembers(merged[field]) ? merged[field] : {}, value) : value;
    const empty = next === null || (typeof next === "object" && Object.keys(next as object).length === 0);
    if (empty) delete merged[field];
    else merged[field] = next;
  }
  return merged;
}

function isMembers(value: unknown): value is Members {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

type Difference = Pick<UserEvent, "changed" | "previous">;

const NO_DIFFERENCE: Difference = { changed: [], previous: {} };

/** The paths at which two states differ, and what stood there before. `updateTime` always differs and is left out. */
function differenceBetween(before: Person, after: Person): Difference {
  const changed: string[] = [];
  const previous: Record<string, unknown> = {};
  const [old, fresh] = [before as Members, after as Members];
  for (const field of [...Object.keys(PROFILE_FIELDS), "status", "deactivateTime"]) {
    if (isDeepStrictEqual(old[field], fresh[field])) continue;
    if (!PROFILE_FIELDS[field as keyof Profile]) {
      changed.push(field);
      if (old[field] !== undefined) previous[field] = old[field];
      continue;
    }
    const [oldMembers, freshMembers] = [(old[field] ?? {}) as Members, (fresh[field] ?? {}) as Members];
    for (const member of new Set([...Object.keys(oldMembers), ...Object.keys(freshMembers)])) {
      if (oldMembers[member] === freshMembers[member]) continue;
      changed.push(`${field}.${member}`);
      if (oldMembers[member] === undefined) continue;
      previous[field] = { ...(previous[field] as Members | undefined), [member]: oldMembers[member] };
    }
  }
  return { changed, previous };
}

// HTTP

async function readJson(request: IncomingMessage): Promise<Members> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MAX_BODY_BYTES) throw new Refusal(413, "the body is too large");
    chunks.push(chunk);
  }
  if (bytes === 0) return {};
  try {
    const value: unknown = JSON.parse(Buffer.concat(chunks).toString("utf8"));
    if (isMembers(value)) return value;
  } catch (cause) {
    throw new Refusal(400, `the body is not JSON: ${(cause as Error).message}`);
  }
  throw new Refusal(400, "the body is not a JSON object");
}

function send(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(body === undefined ? undefined : JSON.stringify(body));
}
