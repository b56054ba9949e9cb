import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { hashContent } from "../../src/core/content-hash.ts";
import { type AcceptedEvent, EVENT_TYPES, type EventDraft } from "../../src/core/event.ts";
import { bodyByteLength, renderBodyTail, spliceSequence } from "../../src/core/event-body.ts";

/** One golden body per type: these bytes are a promise to receivers and never change (DESIGN section 3). */
const golden = JSON.parse(readFileSync(new URL("../vectors/bodies.json", import.meta.url), "utf8")) as Record<
  string,
  { sequence: string; hash: string; body: string }
>;

const time = { seconds: 1_795_428_000n, nanos: 123_999_999 };

const events: Record<(typeof EVENT_TYPES)[number], AcceptedEvent> = {
  "user.created": {
    id: "evt_018f0000-0000-7000-8000-000000000001",
    tenantId: "acme",
    type: "user.created",
    occurTime: time,
    user: {
      id: "u/1 ü?".replaceAll(/[^\x21-\x7e]/g, "~"),
      externalId: "",
      userName: "zoe+tag@example.com",
      displayName: 'Zoë "Z" 김 👩‍💻 \u2028',
      name: { formatted: "Zoë Ng", givenName: "Zoë", familyName: "Ng" },
      status: "ACTIVE",
      emails: [
        { value: "z@example.com", type: "work", primary: true, verified: true },
        { value: "z@home.example", primary: false, verified: false },
      ],
      phoneNumbers: [{ value: "+41 44 000 00 00", primary: false, verified: false }],
      locale: "de-CH",
      timezone: "Europe/Zurich",
      groupIds: ["g_1", "g_2"],
      roleIds: ["r_1"],
      organization: { employeeNumber: "7", department: "R&D", managerId: "u_2" },
      attributes: { badge: "b", costCenter: "42" },
      createTime: time,
      updateTime: time,
    },
    changed: [],
    actor: { type: "admin", id: "u_9" },
    reason: "hired",
  },
  "user.updated": {
    id: "evt_2",
    tenantId: "acme",
    type: "user.updated",
    occurTime: time,
    user: { id: "u_1", displayName: "Zoë", status: "ACTIVE", name: { givenName: "Zoë" } },
    changed: ["name.givenName", "displayName", "emails", "attributes.badge", "name.familyName", "status"],
    previous: { id: "", displayName: "Zoe", name: { familyName: "Ng" }, status: "SUSPENDED" },
    actor: { type: "user" },
  },
  "user.deactivated": {
    id: "evt_3",
    tenantId: "acme",
    type: "user.deactivated",
    occurTime: time,
    user: { id: "u_1", status: "DEACTIVATED", deactivateTime: time },
    changed: ["status"],
    reason: "",
  },
  "user.reactivated": {
    id: "evt_4",
    tenantId: "acme",
    type: "user.reactivated",
    occurTime: time,
    user: { id: "u_1", status: "ACTIVE" },
    changed: [],
  },
  "user.deleted": {
    id: "evt_5",
    tenantId: "acme",
    type: "user.deleted",
    occurTime: { seconds: -62_135_596_800n, nanos: 0 },
    user: { id: "u_1", externalId: "ext" },
    changed: [],
  },
};

describe("the body", () => {
  for (const type of EVENT_TYPES) {
    it(`[B01] of ${type} is its golden bytes`, () => {
      const expected = golden[type];
      const body = spliceSequence(BigInt(expected?.sequence ?? 0), renderBodyTail(events[type]));
      expect(body).toBe(expected?.body);
      expect(Buffer.byteLength(body)).toBe(bodyByteLength(renderBodyTail(events[type])));
      expect(hashContent(events[type]).toString("hex")).toBe(expected?.hash);
    });
  }

  it("is a CloudEvent whose sequence stands at its fixed place", () => {
    const body = JSON.parse(spliceSequence(42n, renderBodyTail(events["user.updated"])));
    expect(body).toMatchObject({ specversion: "1.0", usersequence: "00000000000000000042", source: "/tenants/acme" });
    expect(Object.keys(body).slice(0, 3)).toEqual(["specversion", "usersequence", "id"]);
  });

  it("has every changed path in previous, null where it was unset", () => {
    const { previous } = JSON.parse(spliceSequence(1n, renderBodyTail(events["user.updated"]))).data;
    expect(previous).toEqual({
      displayName: "Zoe",
      name: { givenName: null, familyName: "Ng" },
      status: "SUSPENDED",
      emails: null,
      attributes: { badge: null },
    });
  });

  it("survives any text of a name", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), (displayName) => {
        const event = { ...events["user.created"], user: { id: "u", displayName, status: "ACTIVE" as const } };
        expect(JSON.parse(spliceSequence(1n, renderBodyTail(event))).data.user.displayName).toBe(displayName);
      }),
    );
  });
});

describe("the content hash", () => {
  const draft = events["user.created"] as EventDraft;

  it("is the same for another order of keys", () => {
    const reversed = Object.fromEntries(Object.entries(draft).reverse()) as unknown as EventDraft;
    expect(hashContent(reversed)).toEqual(hashContent(draft));
  });

  it("differs when anything that was sent differs, a nanosecond included", () => {
    const changes: Partial<EventDraft>[] = [
      { reason: "other" },
      { occurTime: { seconds: time.seconds, nanos: time.nanos - 1 } },
      { type: "user.reactivated" },
      { changed: ["locale"] },
      { tenantId: "other" },
    ];
    const hashes = changes.map((change) => hashContent({ ...draft, ...change }).toString("hex"));
    const { occurTime: _, ...withoutTime } = draft;
    const all = [...hashes, hashContent(draft).toString("hex"), hashContent(withoutTime).toString("hex")];
    expect(new Set(all).size).toBe(all.length);
  });
});
