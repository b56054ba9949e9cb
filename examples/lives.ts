import type { Person, Profile } from "./user-event.ts";

// What the demo has people do, each life by requests to the gateway like any other client's.

/** A tenant's front door at the gateway. */
export class FrontDoor {
  readonly #address: string;
  readonly #tenantId: string;
  readonly #signal: AbortSignal;

  constructor(address: string, tenantId: string, signal: AbortSignal) {
    this.#address = address;
    this.#tenantId = tenantId;
    this.#signal = signal;
  }

  /** What the gateway answers; throws if it does not answer as expected. */
  async ask<T = Person>(method: string, path: string, body: unknown, expectedStatus: number): Promise<T> {
    const response = await fetch(`${this.#address}${path}`, {
      method,
      headers: { "x-tenant": this.#tenantId, "content-type": "application/json" },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: this.#signal,
    });
    const text = await response.text();
    if (response.status !== expectedStatus) {
      throw new Error(`the gateway answers ${response.status} to ${method} ${path}, not ${expectedStatus}: ${text}`);
    }
    return (text === "" ? undefined : JSON.parse(text)) as T;
  }

  signUp = (profile: Profile) => this.ask("POST", "/signup", { profile }, 201);
  logIn = (login: Login, expectedStatus: number) => this.ask("POST", "/oauth/callback", login, expectedStatus);
  change = (id: string, patch: object) => this.ask("PATCH", `/people/${encodeURIComponent(id)}`, patch, 200);
  turn = (id: string, verb: "suspend" | "unsuspend" | "deactivate" | "reactivate", reason?: string) =>
    this.ask("POST", `/people/${encodeURIComponent(id)}/${verb}`, { reason }, 200);
  remove = (id: string) => this.ask<void>("DELETE", `/people/${encodeURIComponent(id)}`, undefined, 204);
  everyone = () => this.ask<Person[]>("GET", "/people", undefined, 200);
}

type Login = { readonly provider: string; readonly subject: string; readonly profile: Profile };

/** `self` is the person, `next` is somebody else's profile to become, `login` is theirs at another site. */
type Life = (door: FrontDoor, self: Profile, next: Profile, login: Login) => Promise<void>;

/** Together they take every path through the gateway. */
const LIVES: readonly Life[] = [
  async function staysAndChangesName(door, self, next) {
    const { id } = await door.signUp(self);
    await door.change(id, { displayName: next.displayName ?? null, name: next.name ?? { formatted: "New Name" } });
    await door.change(id, { displayName: "" });
    // Nothing changes, so nothing is emitted.
    await door.change(id, { displayName: "" });
    await door.change(id, { displayName: null, locale: "en-GB", organization: { managerId: "u_1" } });
  },
  async function logsInFromElsewhere(door, _self, next, login) {
    const { id } = await door.logIn(login, 201);
    await door.logIn(login, 200);
    await door.logIn({ ...login, profile: { displayName: next.displayName ?? "renamed at the provider" } }, 200);
    await door.change(id, { emails: next.emails ?? [] });
    await door.change(id, { emails: [], userName: "by.another.name+alias" });
  },
  async function leavesAndComesBack(door, self) {
    const { id } = await door.signUp(self);
    await door.turn(id, "deactivate", "contract ended 🏁");
    await door.turn(id, "reactivate");
    await door.change(id, { name: { givenName: "Again", familyName: null }, phoneNumbers: null });
  },
  async function isSuspendedForAWhile(door, self, next) {
    const { id } = await door.signUp(self);
    await door.turn(id, "suspend", "unusual sign-in");
    await door.change(id, { displayName: next.displayName ?? "renamed while suspended" });
    await door.turn(id, "unsuspend");
  },
  async function isDeletedWhileActive(door, self) {
    const { id } = await door.signUp(self);
    await door.change(id, { timezone: "Europe/Zurich" });
    await door.remove(id);
  },
  async function isDeletedAndLogsInAgain(door, _self, next, login) {
    const { id } = await door.logIn(login, 201);
    await door.turn(id, "deactivate");
    await door.logIn(login, 403);
    await door.remove(id);
    await door.logIn({ ...login, profile: next }, 201);
  },
  async function isSuspendedAndNeverReturns(door, self) {
    const { id } = await door.signUp(self);
    await door.turn(id, "suspend");
    await door.turn(id, "deactivate", "did not answer");
    await door.turn(id, "reactivate");
    await door.turn(id, "suspend");
    await door.remove(id);
  },
];

/** Providers end up in person ids; one of them needs escaping wherever ids meet URLs. */
const PROVIDERS = ["google-oauth2", "https://idp.example/saml?x=1&y=%41#f"] as const;

/** Leads the `index`th person's life at this door; resolves when it is over. */
export async function live(door: FrontDoor, index: number, people: readonly Profile[]): Promise<void> {
  const self = people[index % people.length] ?? {};
  const next = people[(index + 1) % people.length] ?? {};
  const provider = PROVIDERS[index % PROVIDERS.length] as string;
  // Seven lives and three tenants have no common divisor, so every life is led in every tenant.
  await LIVES[index % LIVES.length]?.(door, self, next, { provider, subject: `subject-${index}`, profile: self });
}
