import type { ContactPoint, Profile } from "./user-event.ts";

// Invented people whose names, addresses and empty fields are what real directories hold. The same seed always gives the
// same people, so a demo that finds something finds it again.

type Name = { readonly displayName: string; readonly name?: NonNullable<Profile["name"]>; readonly locale?: string };

/** Each is here because some system somewhere breaks on it. */
const NAMES: readonly Name[] = [
  // The same letters twice: composed, and with combining marks. Equal to the eye, not to a byte.
  { displayName: "Zoë Ångström", name: { givenName: "Zoë", familyName: "Ångström" }, locale: "sv-SE" },
  {
    displayName: "Zoe\u0308 A\u030angstro\u0308m",
    name: { givenName: "Zoe\u0308", familyName: "A\u030angstro\u0308m" },
  },
  { displayName: "Nguyễn Thị Minh Khai", name: { givenName: "Minh Khai", familyName: "Nguyễn Thị" }, locale: "vi-VN" },
  { displayName: "محمد بن سلمان (Mohammed)", name: { givenName: "محمد", familyName: "بن سلمان" }, locale: "ar-SA" },
  { displayName: "שָׁלוֹם עֲלֵיכֶם", name: { givenName: "שָׁלוֹם", familyName: "עֲלֵיכֶם" }, locale: "he-IL" },
  {
    displayName: "山田 太郎",
    name: { formatted: "山田 太郎", familyName: "山田", givenName: "太郎" },
    locale: "ja-JP",
  },
  // The first character lies outside the Basic Multilingual Plane: two UTF-16 units, four bytes.
  { displayName: "𠮷野家 🍜", name: { familyName: "𠮷野家" }, locale: "ja-JP" },
  { displayName: "김민준", name: { givenName: "민준", familyName: "김" }, locale: "ko-KR" },
  // Code points joined into one sign, a flag, a skin tone.
  { displayName: "👩‍👩‍👧‍👦 Familie 🇨🇭 Müller 👋🏽", name: { familyName: "Müller" }, locale: "de-CH" },
  { displayName: "สมชาย ใจดี", locale: "th-TH" },
  { displayName: "क्षत्रिय राजपूत", locale: "hi-IN" },
  { displayName: "İbrahim ı Şahin ß ﬁ", locale: "tr-TR" },
  { displayName: "Robert \"Bobby\"); DROP TABLE users;-- \\ 'O’Brien'", name: { familyName: "O’Brien" } },
  { displayName: "<script>alert(1)</script> & Söhne", locale: "de-DE" },
  // Line separators that JSON allows and JavaScript once did not, a byte order mark, a tab, an override of direction.
  { displayName: "\ufeffLine\u2028Separator\u2029\tTab \u202egnirts" },
  { displayName: "Z̷̡̢a̸͇͝l̴̰̇g̵̖̋o̶̙͐" },
  { displayName: "" },
  { displayName: "María-José Carreño Quiñones", name: { givenName: "María-José", familyName: "Carreño Quiñones" } },
  { displayName: "X Æ A-12", name: { givenName: "X" } },
  { displayName: "Nul\u0000l", name: { givenName: "true", familyName: "Null" } },
];

const DOMAINS = ["example.com", "example.org", "mail.example.net", "bücher.example", "xn--bcher-kva.example"] as const;

/** The contract's limits, filled to the last character; emoji make it four bytes each. */
const LONGEST: Profile = {
  externalId: "x".repeat(256),
  userName: `${"u".repeat(243)}+tag@example`,
  displayName: "🦜".repeat(1024),
  name: { formatted: "é".repeat(1024), givenName: "名".repeat(256), familyName: "ß".repeat(256) },
  emails: Array.from({ length: 50 }, (_, i) => ({
    value: `${String(i).padStart(2, "0")}${"a".repeat(306)}@example.com`,
    type: "work",
    primary: i === 49,
    verified: i % 2 === 0,
  })),
  groupIds: Array.from({ length: 1000 }, (_, i) => `group-${i}`),
};

/** `count` different people. Every 20th fills every limit; its neighbour has nothing but an address. */
export function inventPeople(count: number, seed: number): Profile[] {
  const random = seededRandom(seed);
  return Array.from({ length: count }, (_, i) => {
    if (i % 20 === 13) return LONGEST;
    if (i % 20 === 14) return { emails: [address(`only-an-address-${i}`, random)] };
    return inventPerson(i, random);
  });
}

function inventPerson(i: number, random: () => number): Profile {
  const { displayName, name, locale } = pick(NAMES, i);
  const handle = `person${i}`;
  return {
    displayName,
    userName: handle,
    emails: inventEmails(handle, random),
    ...(name === undefined ? {} : { name }),
    ...(locale === undefined ? {} : { locale }),
    ...(random() < 0.5 ? { externalId: `scim-${Math.floor(random() * 1e9)}` } : {}),
    ...(random() < 0.3
      ? { phoneNumbers: [{ value: "+41 44 668 18 00", type: "work", primary: true, verified: false }] }
      : {}),
    ...(random() < 0.3 ? { timezone: "America/Argentina/Buenos_Aires" } : {}),
    ...(random() < 0.3 ? { roleIds: ["admin", "rôle: ☕"], groupIds: ["everyone"] } : {}),
    // An employee number that is set and empty: not the same as one that is unset.
    ...(random() < 0.4
      ? { organization: { department: "R&D <東京>", employeeNumber: random() < 0.5 ? "" : "007" } }
      : {}),
  };
}

/** One to four, of which the first is primary; plus-addresses, quoted local parts, international domains. */
function inventEmails(handle: string, random: () => number): ContactPoint[] {
  const locals = [handle, `${handle}+newsletter+2026`, `"${handle} the second"`, `${handle.toUpperCase()}.ünïcode`];
  const count = 1 + Math.floor(random() * locals.length);
  return locals.slice(0, count).map((local, i) => ({ ...address(local, random), primary: i === 0 }));
}

function address(local: string, random: () => number): ContactPoint {
  const value = `${local}@${pick(DOMAINS, Math.floor(random() * DOMAINS.length))}`;
  return { value, primary: true, verified: random() < 0.7, ...(random() < 0.5 ? { type: "home" } : {}) };
}

function pick<T>(list: readonly T[], i: number): T {
  return list[i % list.length] as T;
}

/** Mulberry32: small, and the same everywhere. */
function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
