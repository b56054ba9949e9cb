import { describe, expect, it } from "vitest";
import { checkEvent, type EventDraft } from "../../src/core/event.ts";
import { looksSecret } from "../../src/core/secret-words.ts";
import type { User } from "../../src/core/user.ts";

const KEYS = new Set(["costCenter", "badge"]);
const user: User = { id: "u_1", status: "ACTIVE" };
const base: EventDraft = { tenantId: "acme", type: "user.created", user, changed: [] };

const pathsOf = (draft: EventDraft) => checkEvent(draft, KEYS).map(({ path }) => path);

describe("an event", () => {
  it("passes when it is as the contract says", () => {
    expect(pathsOf(base)).toEqual([]);
    expect(
      pathsOf({ ...base, id: "evt_1:a-B", actor: { type: "admin", id: "u_9" }, reason: "x".repeat(1024) }),
    ).toEqual([]);
    expect(pathsOf({ ...base, type: "user.deleted", user: { id: "u_1", externalId: "x" } })).toEqual([]);
    expect(
      pathsOf({
        ...base,
        type: "user.updated",
        changed: ["displayName", "name.givenName", "emails", "attributes.badge"],
        previous: { id: "", displayName: "Z", name: { givenName: "" }, attributes: { badge: "1" } },
      }),
    ).toEqual([]);
  });

  const refused: [string, Partial<EventDraft>, string[]][] = [
    ["an id with a dot", { id: "a.b" }, ["event.id"]],
    ["an id of 65 characters", { id: "a".repeat(65) }, ["event.id"]],
    ["a tenant with a slash", { tenantId: "a/b" }, ["event.tenant_id"]],
    ["no tenant", { tenantId: "" }, ["event.tenant_id"]],
    ["a time after the year 9999", { occurTime: { seconds: 253_402_300_800n, nanos: 0 } }, ["event.occur_time"]],
    ["a negative nanosecond", { occurTime: { seconds: 0n, nanos: -1 } }, ["event.occur_time"]],
    ["a user id with a space", { user: { ...user, id: "u 1" } }, ["event.user.id"]],
    ["no user id", { user: { ...user, id: "" } }, ["event.user.id"]],
    ["half a surrogate pair", { user: { ...user, displayName: "\ud800" } }, ["event.user.display_name"]],
    [
      "a display name that is too long",
      { user: { ...user, displayName: "é".repeat(1025) } },
      ["event.user.display_name"],
    ],
    [
      "an e-mail without a value",
      { user: { ...user, emails: [{ value: "", primary: true, verified: false }] } },
      ["event.user.emails[0].value"],
    ],
    [
      "two primary numbers",
      { user: { ...user, phoneNumbers: [1, 2].map((n) => ({ value: `${n}`, primary: true, verified: false })) } },
      ["event.user.phone_numbers[1].primary"],
    ],
    [
      "an attribute nobody listed",
      { user: { ...user, attributes: { shoe: "42" } } },
      ['event.user.attributes["shoe"]'],
    ],
    ["an actor without a type", { actor: { type: "" } }, ["event.actor.type"]],
    ["an update that changed nothing", { type: "user.updated" }, ["event.changed"]],
    ["a changed path into nowhere", { changed: ["nick"] }, ["event.changed[0]"]],
    ["a changed path in snake case", { changed: ["display_name"] }, ["event.changed[0]"]],
    ["a changed id", { changed: ["id"] }, ["event.changed[0]"]],
    ["a path that is named twice", { changed: ["locale", "locale"] }, ["event.changed[1]"]],
    ["a path inside another", { changed: ["name", "name.givenName"] }, ["event.changed[1]"]],
    [
      "previous beyond what changed",
      { changed: ["locale"], previous: { id: "", userName: "x" } },
      ["event.previous.user_name"],
    ],
    ["previous with an id", { changed: ["locale"], previous: { id: "u_1" } }, ["event.previous.id"]],
    [
      "a deleted user with more than ids",
      { type: "user.deleted", user: { id: "u", displayName: "x" } },
      ["event.user.display_name"],
    ],
  ];
  for (const [what, change, paths] of refused) {
    it(`[B06] is refused with ${what}, by its path`, () => expect(pathsOf({ ...base, ...change })).toEqual(paths));
  }

  it("[B06] names every fault at once", () => {
    const draft: EventDraft = { tenantId: "", id: ".", changed: ["nick"], user: { id: "", locale: "x".repeat(65) } };
    expect(pathsOf(draft)).toEqual([
      "event.id",
      "event.tenant_id",
      "event.type",
      "event.user.locale",
      "event.user.id",
      "event.changed[0]",
    ]);
  });

  const statuses = ["ACTIVE", "SUSPENDED", "DEACTIVATED"] as const;
  const allowed = {
    "user.created": ["ACTIVE", "SUSPENDED"],
    "user.updated": ["ACTIVE", "SUSPENDED"],
    "user.deactivated": ["DEACTIVATED"],
    "user.reactivated": ["ACTIVE"],
    "user.deleted": [] as string[],
  } as const;
  for (const [type, good] of Object.entries(allowed)) {
    for (const status of statuses) {
      const verdict = (good as readonly string[]).includes(status) ? "agrees with" : "contradicts";
      it(`[B56] ${status} ${verdict} ${type}`, () => {
        const changed = type === "user.updated" ? ["locale"] : [];
        const paths = pathsOf({
          ...base,
          type: type as EventDraft["type"] & string,
          changed,
          user: { id: "u_1", status },
        });
        expect(paths).toEqual(verdict === "contradicts" ? ["event.user.status"] : []);
      });
    }
  }
});

describe("a key that looks secret", () => {
  const secret = [
    "password",
    "userPassword",
    "user_password_hash",
    "pwHash",
    "apiToken",
    "TOKEN",
    "mySecretSauce",
    "otp",
    "totpSeed",
    "login_otp",
    "otpcode",
    "passwdFile",
    "recoveryCodes",
    "privateKey",
    "salt",
    "pinCode",
    "Password1",
    "x-api-key",
  ];
  for (const key of secret) it(`[B56] ${key} is refused`, () => expect(looksSecret(key)).toBe(true));
  const plain = [
    "costCenter",
    "badge",
    "shippingAddress",
    "footprint",
    "laptop",
    "hashtagless",
    "department2",
    "pinned",
  ];
  for (const key of plain) it(`${key} is none`, () => expect(looksSecret(key)).toBe(false));
});
