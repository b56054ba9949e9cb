import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  type AddressPolicy,
  hostOf,
  judgeAddress,
  judgeAnswer,
  judgeTargetUrl,
  parseAllowedCidrs,
} from "../../src/core/address-policy.ts";
import { SPECIAL_PURPOSE_BLOCKS } from "../../src/core/special-purpose-addresses.ts";

const PUBLIC_ONLY: AddressPolicy = { allowHttp: false, allowedCidrs: [] };
const HTTP_TOO: AddressPolicy = { allowHttp: true, allowedCidrs: [] };
const LOOPBACK_TOO = allowing("127.0.0.0/8, ::1/128");

function allowing(cidrs: string): AddressPolicy {
  return { allowHttp: false, allowedCidrs: parseAllowedCidrs(cidrs) };
}

function reasonOf(verdict: { kind: "allowed" } | { kind: "refused"; reason: string }): string | undefined {
  return verdict.kind === "refused" ? verdict.reason : undefined;
}

/**
 * Written from the registries, apart from the table in `src`: first, one inside that no more specific block holds, last,
 * and the public neighbours on either side, where there are any.
 */
const BLOCKS: [cidr: string, name: string, first: string, inside: string, last: string, neighbours: string[]][] = [
  ["0.0.0.0/8", "This network", "0.0.0.0", "0.1.2.3", "0.255.255.255", ["1.0.0.0"]],
  ["0.0.0.0/32", "This host on this network", "0.0.0.0", "0.0.0.0", "0.0.0.0", []],
  ["10.0.0.0/8", "Private-Use", "10.0.0.0", "10.1.2.3", "10.255.255.255", ["9.255.255.255", "11.0.0.0"]],
  [
    "100.64.0.0/10",
    "Shared Address Space",
    "100.64.0.0",
    "100.100.100.200",
    "100.127.255.255",
    ["100.63.255.255", "100.128.0.0"],
  ],
  ["127.0.0.0/8", "Loopback", "127.0.0.0", "127.0.0.1", "127.255.255.255", ["126.255.255.255", "128.0.0.0"]],
  [
    "169.254.0.0/16",
    "Link Local",
    "169.254.0.0",
    "169.254.169.254",
    "169.254.255.255",
    ["169.253.255.255", "169.255.0.0"],
  ],
  ["172.16.0.0/12", "Private-Use", "172.16.0.0", "172.20.1.1", "172.31.255.255", ["172.15.255.255", "172.32.0.0"]],
  [
    "192.0.0.0/24",
    "IETF Protocol Assignments",
    "192.0.0.0",
    "192.0.0.192",
    "192.0.0.255",
    ["191.255.255.255", "192.0.1.0"],
  ],
  ["192.0.0.0/29", "IPv4 Service Continuity Prefix", "192.0.0.0", "192.0.0.3", "192.0.0.7", []],
  ["192.0.0.8/32", "IPv4 dummy address", "192.0.0.8", "192.0.0.8", "192.0.0.8", []],
  ["192.0.0.9/32", "Port Control Protocol Anycast", "192.0.0.9", "192.0.0.9", "192.0.0.9", []],
  ["192.0.0.10/32", "Traversal Using Relays around NAT Anycast", "192.0.0.10", "192.0.0.10", "192.0.0.10", []],
  ["192.0.0.170/32", "NAT64/DNS64 Discovery", "192.0.0.170", "192.0.0.170", "192.0.0.170", []],
  ["192.0.0.171/32", "NAT64/DNS64 Discovery", "192.0.0.171", "192.0.0.171", "192.0.0.171", []],
  ["192.0.2.0/24", "Documentation (TEST-NET-1)", "192.0.2.0", "192.0.2.7", "192.0.2.255", ["192.0.1.255", "192.0.3.0"]],
  ["192.31.196.0/24", "AS112-v4", "192.31.196.0", "192.31.196.1", "192.31.196.255", ["192.31.195.255", "192.31.197.0"]],
  ["192.52.193.0/24", "AMT", "192.52.193.0", "192.52.193.1", "192.52.193.255", ["192.52.192.255", "192.52.194.0"]],
  [
    "192.88.99.0/24",
    "Deprecated (6to4 Relay Anycast)",
    "192.88.99.0",
    "192.88.99.1",
    "192.88.99.255",
    ["192.88.98.255", "192.88.100.0"],
  ],
  ["192.88.99.2/32", "6a44-relay anycast address", "192.88.99.2", "192.88.99.2", "192.88.99.2", []],
  [
    "192.168.0.0/16",
    "Private-Use",
    "192.168.0.0",
    "192.168.1.1",
    "192.168.255.255",
    ["192.167.255.255", "192.169.0.0"],
  ],
  [
    "192.175.48.0/24",
    "Direct Delegation AS112 Service",
    "192.175.48.0",
    "192.175.48.6",
    "192.175.48.255",
    ["192.175.47.255", "192.175.49.0"],
  ],
  ["198.18.0.0/15", "Benchmarking", "198.18.0.0", "198.18.3.4", "198.19.255.255", ["198.17.255.255", "198.20.0.0"]],
  [
    "198.51.100.0/24",
    "Documentation (TEST-NET-2)",
    "198.51.100.0",
    "198.51.100.9",
    "198.51.100.255",
    ["198.51.99.255", "198.51.101.0"],
  ],
  [
    "203.0.113.0/24",
    "Documentation (TEST-NET-3)",
    "203.0.113.0",
    "203.0.113.5",
    "203.0.113.255",
    ["203.0.112.255", "203.0.114.0"],
  ],
  ["240.0.0.0/4", "Reserved", "240.0.0.0", "250.1.2.3", "255.255.255.254", []],
  ["255.255.255.255/32", "Limited Broadcast", "255.255.255.255", "255.255.255.255", "255.255.255.255", []],
  [
    "168.63.129.16/32",
    "Azure WireServer",
    "168.63.129.16",
    "168.63.129.16",
    "168.63.129.16",
    ["168.63.129.15", "168.63.129.17"],
  ],
  ["224.0.0.0/4", "Multicast", "224.0.0.0", "239.255.255.250", "239.255.255.255", ["223.255.255.255"]],

  ["::1/128", "Loopback Address", "::1", "::1", "::1", []],
  ["::/128", "Unspecified Address", "::", "::", "::", []],
  ["100::/64", "Discard-Only Address Block", "100::", "100::1", "100::ffff:ffff:ffff:ffff", []],
  ["100:0:0:1::/64", "Dummy IPv6 Prefix", "100:0:0:1::", "100:0:0:1::1", "100::1:ffff:ffff:ffff:ffff", []],
  [
    "2001::/23",
    "IETF Protocol Assignments",
    "2001::",
    "2001:100::1",
    "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
    ["2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"],
  ],
  ["2001:1::1/128", "Port Control Protocol Anycast", "2001:1::1", "2001:1::1", "2001:1::1", []],
  ["2001:1::2/128", "Traversal Using Relays around NAT Anycast", "2001:1::2", "2001:1::2", "2001:1::2", []],
  ["2001:1::3/128", "DNS-SD Service Registration Protocol Anycast", "2001:1::3", "2001:1::3", "2001:1::3", []],
  ["2001:2::/48", "Benchmarking", "2001:2::", "2001:2::1", "2001:2:0:ffff:ffff:ffff:ffff:ffff", []],
  ["2001:3::/32", "AMT", "2001:3::", "2001:3::1", "2001:3:ffff:ffff:ffff:ffff:ffff:ffff", []],
  ["2001:4:112::/48", "AS112-v6", "2001:4:112::", "2001:4:112::1", "2001:4:112:ffff:ffff:ffff:ffff:ffff", []],
  [
    "2001:10::/28",
    "Deprecated (previously ORCHID)",
    "2001:10::",
    "2001:10::1",
    "2001:1f:ffff:ffff:ffff:ffff:ffff:ffff",
    [],
  ],
  ["2001:20::/28", "ORCHIDv2", "2001:20::", "2001:20::1", "2001:2f:ffff:ffff:ffff:ffff:ffff:ffff", []],
  [
    "2001:30::/28",
    "Drone Remote ID Protocol Entity Tags",
    "2001:30::",
    "2001:30::1",
    "2001:3f:ffff:ffff:ffff:ffff:ffff:ffff",
    [],
  ],
  [
    "2001:db8::/32",
    "Documentation",
    "2001:db8::",
    "2001:db8::1",
    "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    ["2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"],
  ],
  [
    "2620:4f:8000::/48",
    "Direct Delegation AS112 Service",
    "2620:4f:8000::",
    "2620:4f:8000::6",
    "2620:4f:8000:ffff:ffff:ffff:ffff:ffff",
    ["2620:4f:7fff:ffff:ffff:ffff:ffff:ffff", "2620:4f:8001::"],
  ],
  [
    "3fff::/20",
    "Documentation",
    "3fff::",
    "3fff:123::1",
    "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
    ["3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"],
  ],
  ["5f00::/16", "Segment Routing (SRv6) SIDs", "5f00::", "5f00::1", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", []],
  ["fc00::/7", "Unique-Local", "fc00::", "fd00:ec2::254", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", []],
  ["fe80::/10", "Link-Local Unicast", "fe80::", "fe80::a9fe:a9fe", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", []],
  ["fec0::/10", "Site-Local Unicast", "fec0::", "fec0::1", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", []],
  ["ff00::/8", "Multicast", "ff00::", "ff0e::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", []],
  ["::/3", "outside Global Unicast", "::", "200::1", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ["2000::", "2000::1"]],
  [
    "4000::/2",
    "outside Global Unicast",
    "4000::",
    "5eff::1",
    "7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ["3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
  ],
  ["8000::/1", "outside Global Unicast", "8000::", "fe00::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", []],
];

const TRANSITION_CIDRS = [
  "::ffff:0:0/96",
  "::ffff:0:0:0/96",
  "::/96",
  "64:ff9b::/96",
  "64:ff9b:1::/48",
  "2001::/32",
  "2002::/16",
];

type Ipv4 = readonly [number, number, number, number];

const hex = (byte: number) => byte.toString(16).padStart(2, "0");
const dotted = (ipv4: Ipv4) => ipv4.join(".");
const high = ([a, b]: Ipv4) => `${hex(a)}${hex(b)}`;
const low = ([, , c, d]: Ipv4) => `${hex(c)}${hex(d)}`;
const inverted = ([a, b, c, d]: Ipv4): Ipv4 => [a ^ 255, b ^ 255, c ^ 255, d ^ 255];

/** Every way to carry one IPv4 address; `rest` fills what the form leaves open. */
const FORMS: { form: string; carry: (ipv4: Ipv4, rest: string) => string }[] = [
  { form: "IPv4-mapped", carry: (ip) => `::ffff:${dotted(ip)}` },
  { form: "IPv4-mapped", carry: (ip) => `0:0:0:0:0:FFFF:${high(ip)}:${low(ip)}` },
  { form: "IPv4-compatible", carry: (ip) => `::${dotted(ip)}` },
  { form: "IPv4-compatible", carry: (ip) => `::${high(ip)}:${low(ip)}` },
  { form: "IPv4-translated", carry: (ip) => `::ffff:0:${dotted(ip)}` },
  { form: "NAT64", carry: (ip) => `64:ff9b::${dotted(ip)}` },
  { form: "NAT64", carry: (ip) => `64:ff9b::${high(ip)}:${low(ip)}` },
  {
    form: "local-use NAT64",
    carry: (ip) => `64:ff9b:1:${high(ip)}:${hex(ip[2])}:${hex(ip[3])}00::`,
  },
  { form: "6to4", carry: (ip, rest) => `2002:${high(ip)}:${low(ip)}:1:${rest}` },
  { form: "Teredo", carry: (ip) => `2001:0:${high(ip)}:${low(ip)}:8000:63bf:f7f7:f7f7` },
  { form: "Teredo", carry: (ip) => `2001:0:808:808:8000:63bf:${high(inverted(ip))}:${low(inverted(ip))}` },
  { form: "ISATAP", carry: (ip) => `2600:1f18:1:2:0:5efe:${dotted(ip)}` },
  { form: "ISATAP", carry: (ip) => `2a00:1450:4001:81b:200:5efe:${high(ip)}:${low(ip)}` },
  { form: "ISATAP", carry: (ip) => `2002:808:808:1:0:5efe:${high(ip)}:${low(ip)}` },
];

const byte = fc.nat({ max: 255 });
const anyIpv4: fc.Arbitrary<Ipv4> = fc.oneof(
  fc.tuple(byte, byte, byte, byte),
  fc
    .tuple(
      fc.constantFrom(...BLOCKS.flatMap(([, , ...addresses]) => addresses.flat()).filter((a) => a.includes("."))),
      fc.integer({ min: -1, max: 1 }),
    )
    .map(([address, step]) => fromNumber(toNumber(address) + step)),
);

function toNumber(ipv4: string): number {
  return ipv4.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
}

function fromNumber(number: number): Ipv4 {
  return [(number >>> 24) & 255, (number >>> 16) & 255, (number >>> 8) & 255, number & 255];
}

/** `::0.0.0.0` and `::0.0.0.1` are no IPv4-compatible addresses but `::` and `::1`, which have rows of their own. */
function isUnspecifiedOrLoopbackAsIpv6([a, b, c, d]: Ipv4): boolean {
  return a === 0 && b === 0 && c === 0 && d <= 1;
}

describe("special-purpose addresses", () => {
  it("[B34] has a line in this table for every row of the data", () => {
    const tested = [...BLOCKS.map(([cidr]) => cidr), ...TRANSITION_CIDRS];
    expect(SPECIAL_PURPOSE_BLOCKS.map(({ cidr }) => cidr).toSorted()).toEqual(tested.toSorted());
  });

  it.each(BLOCKS)("[B34] refuses %s (%s) from its first to its last address", (_cidr, _name, first, inside, last) => {
    for (const address of [first, inside, last]) {
      expect([address, judgeAddress(address, PUBLIC_ONLY).kind]).toEqual([address, "refused"]);
    }
  });

  it.each(BLOCKS)("[B34] names %s (%s) when refusing an address in it", (cidr, name, _first, inside) => {
    expect(judgeAddress(inside, PUBLIC_ONLY)).toEqual({
      kind: "refused",
      reason: `the address is in ${cidr} (${name})`,
    });
  });

  it.each(BLOCKS.flatMap(([cidr, , , , , neighbours]) => neighbours.map((address) => [address, cidr])))(
    "[B34] allows %s, the public neighbour of %s",
    (address) => {
      expect(judgeAddress(address, PUBLIC_ONLY)).toEqual({ kind: "allowed" });
    },
  );

  it.each(["1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "2A00:1450:4001:81B::200E"])(
    "[B34] allows the public address %s",
    (address) => {
      expect(judgeAddress(address, PUBLIC_ONLY)).toEqual({ kind: "allowed" });
    },
  );

  it.each([
    ["fe80::1%eth0", "the address has a zone id"],
    ["2606:4700:4700::1111%1", "the address has a zone id"],
    ["::ffff:8.8.8.8%lo", "the address has a zone id"],
    ["", "the address is neither IPv4 nor IPv6"],
    ["localhost", "the address is neither IPv4 nor IPv6"],
    ["127.1", "the address is neither IPv4 nor IPv6"],
    ["134744072", "the address is neither IPv4 nor IPv6"],
    ["08.8.8.8", "the address is neither IPv4 nor IPv6"],
    ["0x8.8.8.8", "the address is neither IPv4 nor IPv6"],
    ["8.8.8.8 ", "the address is neither IPv4 nor IPv6"],
    ["8.8.8.8.", "the address is neither IPv4 nor IPv6"],
    ["[2606:4700:4700::1111]", "the address is neither IPv4 nor IPv6"],
    ["::ffff:010.8.8.8", "the address is neither IPv4 nor IPv6"],
    ["1:2:3:4:5:6:7:8:9", "the address is neither IPv4 nor IPv6"],
  ])("[B34] refuses %j, which no resolver may answer", (address, reason) => {
    expect(judgeAddress(address, PUBLIC_ONLY)).toEqual({ kind: "refused", reason });
  });

  it("[B34] gives every spelling of an IPv6 address one verdict, the one of WHATWG's spelling", () => {
    const group = fc.oneof(fc.constant(0), fc.nat({ max: 0xffff }), fc.constantFrom(0xffff, 0x64, 0xff9b, 0x5efe, 1));
    const dottedTail = (groups: string[], [a = 0, b = 0]: number[]) =>
      [...groups.slice(0, 6), `${a >> 8}.${a & 255}.${b >> 8}.${b & 255}`].join(":");
    fc.assert(
      fc.property(fc.array(group, { minLength: 8, maxLength: 8 }), (groups) => {
        const texts = groups.map((value) => value.toString(16));
        const canonical = new URL(`https://[${texts.join(":")}]/`).hostname.slice(1, -1);
        const verdict = judgeAddress(canonical, PUBLIC_ONLY);
        for (const spelling of [
          texts.join(":"),
          texts.map((text) => text.padStart(4, "0").toUpperCase()).join(":"),
          dottedTail(texts, groups.slice(6)),
          ...(texts.slice(0, 6).every((text) => text === "0") ? [`::${dottedTail([], groups.slice(6))}`] : []),
        ]) {
          expect([spelling, judgeAddress(spelling, PUBLIC_ONLY)]).toEqual([spelling, verdict]);
        }
      }),
      { numRuns: 1000 },
    );
  });
});

describe("transition addresses", () => {
  it.each(FORMS)("[B35] judges an $form address as the IPv4 address inside it", ({ form, carry }) => {
    fc.assert(
      fc.property(anyIpv4, anyIpv4, fc.integer({ min: 8, max: 32 }), (ipv4, elsewhere, prefix) => {
        fc.pre(form !== "IPv4-compatible" || !isUnspecifiedOrLoopbackAsIpv6(ipv4));
        const network = fromNumber(toNumber(dotted(elsewhere)) & (-1 << (32 - prefix)));
        const policies = [PUBLIC_ONLY, LOOPBACK_TOO, allowing(`${dotted(network)}/${prefix}`)];
        for (const policy of policies) {
          const inside = judgeAddress(dotted(ipv4), policy);
          const expected = reasonOf(inside)?.replace("the address", `the IPv4 address inside this ${form} address`);
          expect(reasonOf(judgeAddress(carry(ipv4, "a:b:c:d"), policy))).toBe(expected);
        }
      }),
      { numRuns: 500 },
    );
  });

  it("[B35] allows a Teredo address only when both its server and its client are allowed", () => {
    fc.assert(
      fc.property(anyIpv4, anyIpv4, (server, client) => {
        const hidden = inverted(client);
        const teredo = `2001:0:${high(server)}:${low(server)}:0:ffff:${high(hidden)}:${low(hidden)}`;
        const both = judgeAnswer([dotted(server), dotted(client)], PUBLIC_ONLY);
        expect(judgeAddress(teredo, PUBLIC_ONLY).kind).toBe(both.kind);
      }),
    );
  });

  it.each(["fd00:1:2:3:0:5efe:8.8.8.8", "fe80::200:5efe:808:808", "2001:db8::5efe:808:808", "::5efe:808:808"])(
    "[B35] refuses %s: a public address in an ISATAP id does not open a refused prefix",
    (address) => {
      expect(judgeAddress(address, PUBLIC_ONLY).kind).toBe("refused");
    },
  );

  it.each(["64:ff9b:1:808:108:800::", "64:ff9b:1:808:8:800::1", "64:ff9b:1::8.8.8.8", "64:ff9b:1:808:8:801::"])(
    "[B35] refuses %s, local-use NAT64 behind a prefix of unknown length",
    (address) => {
      expect(reasonOf(judgeAddress(address, PUBLIC_ONLY))).toBe("the address is in 64:ff9b:1::/48 (local-use NAT64)");
    },
  );

  it("[B35] judges ::ffff:127.0.0.1 as 127.0.0.1 also where loopback is allowed", () => {
    expect(judgeAddress("::ffff:127.0.0.1", LOOPBACK_TOO).kind).toBe("allowed");
    expect(judgeAddress("::ffff:127.0.0.1", allowing("::1/128")).kind).toBe("refused");
    expect(judgeAddress("::ffff:127.0.0.1", allowing("::/0")).kind).toBe("refused");
  });

  it("[B35] takes :: and ::1 for the addresses they are, not for IPv4-compatible ones", () => {
    expect(judgeAddress("::1", allowing("::1/128")).kind).toBe("allowed");
    expect(judgeAddress("::0.0.0.1", allowing("::1/128")).kind).toBe("allowed");
    expect(judgeAddress("::1", allowing("0.0.0.0/8")).kind).toBe("refused");
    expect(judgeAddress("::", allowing("0.0.0.0/8")).kind).toBe("refused");
  });
});

describe("DNS answers", () => {
  it.each([
    [["8.8.8.8"], undefined],
    [["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"], undefined],
    [[], "no addresses"],
    [["127.0.0.1"], "the address is in 127.0.0.0/8 (Loopback)"],
    [["10.0.0.1", "8.8.8.8"], "the address is in 10.0.0.0/8 (Private-Use)"],
    [["8.8.8.8", "10.0.0.1"], "the address is in 10.0.0.0/8 (Private-Use)"],
    [["8.8.8.8", "fd00::1", "1.1.1.1"], "the address is in fc00::/7 (Unique-Local)"],
    [["8.8.8.8", "::ffff:10.0.0.1"], "the IPv4 address inside this IPv4-mapped address is in 10.0.0.0/8 (Private-Use)"],
    [["8.8.8.8", "nonsense"], "the address is neither IPv4 nor IPv6"],
  ])("[B36] judges the answer %j as a whole", (addresses, reason) => {
    expect(reasonOf(judgeAnswer(addresses, PUBLIC_ONLY))).toBe(reason);
  });

  it("[B36] refuses an answer exactly when it is empty or one of its addresses is refused", () => {
    fc.assert(
      fc.property(fc.array(anyIpv4.map(dotted), { maxLength: 5 }), (addresses) => {
        const refused = addresses.some((address) => judgeAddress(address, PUBLIC_ONLY).kind === "refused");
        expect(judgeAnswer(addresses, PUBLIC_ONLY).kind === "refused").toBe(refused || addresses.length === 0);
      }),
    );
  });
});

describe("target URLs", () => {
  it.each([
    ["decimal", "2130706433", "127.0.0.0/8"],
    ["decimal", "2852039166", "169.254.0.0/16"],
    ["zero", "0", "0.0.0.0/32"],
    ["octal", "0177.0.0.1", "127.0.0.0/8"],
    ["octal in one", "017700000001", "127.0.0.0/8"],
    ["hexadecimal", "0x7f.0x0.0x0.0x1", "127.0.0.0/8"],
    ["hexadecimal in one", "0xA9FEA9FE", "169.254.0.0/16"],
    ["short", "127.1", "127.0.0.0/8"],
    ["short", "10.1", "10.0.0.0/8"],
    ["short of three", "192.168.257", "192.168.0.0/16"],
    ["mixed", "0x7f.0.1", "127.0.0.0/8"],
    ["mixed", "0xa9.0376.169.254", "169.254.0.0/16"],
    ["plain", "127.0.0.1", "127.0.0.0/8"],
    ["trailing dot", "127.0.0.1.", "127.0.0.0/8"],
    ["trailing dot, hexadecimal", "0x7f000001.", "127.0.0.0/8"],
    ["percent-encoded", "%31%32%37.0.0.1", "127.0.0.0/8"],
    ["full-width digits", "１２７.0.0.1", "127.0.0.0/8"],
    ["ideographic full stops", "127。0。0。1", "127.0.0.0/8"],
    ["circled digits", "①②⑦.⓪.⓪.①", "127.0.0.0/8"],
    ["loopback", "[::1]", "::1/128"],
    ["loopback, long", "[0:0:0:0:0:0:0:1]", "::1/128"],
    ["loopback, dotted", "[::0.0.0.1]", "::1/128"],
    ["unspecified", "[::]", "::/128"],
    ["unique local", "[FD00:EC2::254]", "fc00::/7"],
    ["mapped", "[::ffff:127.0.0.1]", "127.0.0.0/8"],
    ["mapped, hexadecimal", "[::ffff:7f00:1]", "127.0.0.0/8"],
    ["compatible", "[::127.0.0.1]", "127.0.0.0/8"],
    ["translated", "[::ffff:0:127.0.0.1]", "127.0.0.0/8"],
    ["NAT64", "[64:ff9b::169.254.169.254]", "169.254.0.0/16"],
    ["local-use NAT64", "[64:ff9b:1:a9fe:a9:fe00::]", "169.254.0.0/16"],
    ["6to4", "[2002:7f00:1::1]", "127.0.0.0/8"],
    ["Teredo server", "[2001:0:7f00:1::f7f7:f7f7]", "127.0.0.0/8"],
    ["Teredo client", "[2001:0:808:808::80ff:fffe]", "127.0.0.0/8"],
    ["ISATAP", "[2600::5efe:10.0.0.1]", "10.0.0.0/8"],
    ["ISATAP, global", "[2600::200:5efe:a00:1]", "10.0.0.0/8"],
  ])("[B34] refuses a literal address however it is spelt: %s, %s", (_spelling, host, cidr) => {
    expect(reasonOf(judgeTargetUrl(`https://${host}/hook`, PUBLIC_ONLY))).toContain(` is in ${cidr} (`);
    expect(reasonOf(judgeTargetUrl(`https://${host}:8443`, PUBLIC_ONLY))).toContain(` is in ${cidr} (`);
  });

  it.each([
    ["zone id", "[fe80::1%25eth0]"],
    ["zone id, bare", "[fe80::1%eth0]"],
    ["too large a number", "4294967296"],
    ["too large a byte", "256.0.0.1"],
    ["five parts", "127.0.0.0.1"],
    ["digit outside its base", "089.0.0.1"],
    ["last label a number", "example.1"],
    ["open bracket", "[::1"],
    ["octal inside IPv6", "[::ffff:0177.0.0.1]"],
    ["percent-encoded @", "a%40b"],
    ["percent-encoded slash", "a%2fb"],
  ])("[B34] refuses a host that cannot be read: %s, %s", (_fault, host) => {
    expect(reasonOf(judgeTargetUrl(`https://${host}/`, PUBLIC_ONLY))).toBe("the host or the port is not valid");
  });

  it.each([
    ["https://8.8.8.8/", "8.8.8.8"],
    ["https://[2606:4700:4700::1111]:8443/", "2606:4700:4700::1111"],
    ["https://[::ffff:8.8.8.8]/", "::ffff:808:808"],
    ["https://[64:ff9b::8.8.8.8]/", "64:ff9b::808:808"],
    ["https://Example.COM/", "example.com"],
    ["https://example.com./", "example.com"],
    ["https://bücher.example/", "xn--bcher-kva.example"],
    ["https://receiver/", "receiver"],
    ["https://host.test/", "host.test"],
    ["https://host.internal/", "host.internal"],
    ["https://host.home.arpa/", "host.home.arpa"],
    ["https://notlocalhost/", "notlocalhost"],
    ["https://localhost.example.com/", "localhost.example.com"],
    ["https://onion.example.com/", "onion.example.com"],
    ["https://127.0.0.1.example.com/", "127.0.0.1.example.com"],
  ])("[B34] allows %s, whose host to resolve is %s", (url, host) => {
    const verdict = judgeTargetUrl(url, PUBLIC_ONLY);
    expect(verdict.kind === "allowed" && hostOf(verdict.url)).toBe(host);
  });

  it.each([
    "localhost",
    "LOCALHOST",
    "localhost.",
    "api.localhost",
    "a.b.localhost.",
    "ⓛocalhost",
    "loc%61lhost",
    "ｌocalhost",
  ])("[B34] takes %s for 127.0.0.1", (host) => {
    const url = `https://${host}:8443/`;
    expect(reasonOf(judgeTargetUrl(url, PUBLIC_ONLY))).toBe("the host is this machine itself");
    expect(reasonOf(judgeTargetUrl(url, allowing("10.0.0.0/8, ::1/128")))).toBe("the host is this machine itself");
    expect(judgeTargetUrl(url, LOOPBACK_TOO).kind).toBe("allowed");
  });

  it.each(["invalid", "local", "onion", "alt"])("[B34] refuses names under .%s, which no DNS holds", (name) => {
    const everything = allowing("0.0.0.0/0, ::/0");
    for (const host of [name, `host.${name}`, `a.b.${name.toUpperCase()}.`]) {
      expect(reasonOf(judgeTargetUrl(`https://${host}/`, everything))).toBe(
        `names under .${name} are not in the public DNS`,
      );
    }
  });

  it.each(["https://.", "https://..", "https://a..b", "https://.a", "https://localhost..", "https://127.0.0.1.."])(
    "[B34] refuses %s, whose host has no name or an empty label",
    (url) => {
      expect(judgeTargetUrl(`${url}/`, LOOPBACK_TOO).kind).toBe("refused");
    },
  );

  const TOO_LONG = "the URL is longer than 2,048 characters";
  const UNSEEN = "the URL has white space, an invisible character or a backslash in it";
  const PORT = "the port must be 443 or from 1024 to 65535";
  it.each([
    ["", "the URL must begin with https://"],
    ["example.com/hook", "the URL must begin with https://"],
    ["//example.com/hook", "the URL must begin with https://"],
    ["http://example.com/", "the URL must begin with https://"],
    ["ftp://example.com/", "the URL must begin with https://"],
    ["wss://example.com/", "the URL must begin with https://"],
    ["file:///etc/passwd", "the URL must begin with https://"],
    ["javascript:alert(1)", "the URL must begin with https://"],
    ["https:example.com", "the URL must begin with https://"],
    ["https:/example.com", "the URL must begin with https://"],
    ["https://", "the URL has no host"],
    ["https:///example.com", "the URL has no host"],
    ["https://?a=b", "the URL has no host"],
    ["https://:443/", "the host or the port is not valid"],
    ["https://user:password@example.com/", "the URL has user info in it"],
    ["https://user@example.com/", "the URL has user info in it"],
    ["https://@example.com/", "the URL has user info in it"],
    ["https://:@example.com/", "the URL has user info in it"],
    ["https://example.com@127.0.0.1/", "the URL has user info in it"],
    ["https://example.com/#part", "the URL has a fragment"],
    ["https://example.com/#", "the URL has a fragment"],
    ["https://example.com#@127.0.0.1/", "the URL has a fragment"],
    ["https://example.com:0/", PORT],
    ["https://example.com:22/", PORT],
    ["https://example.com:80/", PORT],
    ["https://example.com:442/", PORT],
    ["https://example.com:444/", PORT],
    ["https://example.com:1023/", PORT],
    ["https://example.com:65536/", "the host or the port is not valid"],
    ["https://example.com:-1/", "the host or the port is not valid"],
    ["https://example.com:x/", "the host or the port is not valid"],
    [" https://example.com/", UNSEEN],
    ["https://example.com/ ", UNSEEN],
    ["https://example.com/a b", UNSEEN],
    ["https://exam\tple.com/", UNSEEN],
    ["ht\ntps://example.com/", UNSEEN],
    ["https://example.com/\r\nx: y", UNSEEN],
    ["https://example.com/\u0000", UNSEEN],
    ["https://example.com/\u007f", UNSEEN],
    ["https://example.com/\u00a0", UNSEEN],
    ["https://example.com/\u202e", UNSEEN],
    ["https://loc\u00adalhost/", UNSEEN],
    ["https://loc\u200balhost/", UNSEEN],
    ["https://example.com/\ud800", UNSEEN],
    ["https:\\\\example.com/", UNSEEN],
    ["https://example.com\\@127.0.0.1/", UNSEEN],
    [`https://example.com/${"a".repeat(2029)}`, TOO_LONG],
    [`https://example.com/${"é".repeat(400)}`, TOO_LONG],
    [`https://example.com/${"a/../".repeat(500)}`, TOO_LONG],
  ])("[B16] refuses %j", (url, reason) => {
    expect(judgeTargetUrl(url, PUBLIC_ONLY)).toEqual({ kind: "refused", reason });
  });

  it.each([
    "https://example.com",
    "HTTPS://example.com/",
    "https://example.com:443/hook",
    "https://example.com:1024/hook",
    "https://example.com:65535/hook",
    "https://example.com/a/b?token=x@y&z=%20%23",
    "https://example.com/@handle",
    "https://example.com/hôtel?q=日本",
    `https://example.com/${"a".repeat(2028)}`,
  ])("[B16] allows %j", (url) => {
    expect(judgeTargetUrl(url, PUBLIC_ONLY)).toEqual({ kind: "allowed", url: new URL(url) });
  });

  it("[B16] allows http and port 80 only where the policy allows http", () => {
    for (const url of ["http://example.com/", "http://example.com:8080/", "https://example.com:80/"]) {
      expect([url, judgeTargetUrl(url, HTTP_TOO).kind]).toEqual([url, "allowed"]);
      expect([url, judgeTargetUrl(url, PUBLIC_ONLY).kind]).toEqual([url, "refused"]);
    }
    expect(reasonOf(judgeTargetUrl("http://example.com:81/", HTTP_TOO))).toBe(
      "the port must be 80, 443 or from 1024 to 65535",
    );
    expect(reasonOf(judgeTargetUrl("ftp://example.com/", HTTP_TOO))).toBe(
      "the URL must begin with https:// or http://",
    );
    expect(judgeTargetUrl("http://127.0.0.1:8080/", HTTP_TOO).kind).toBe("refused");
  });

  it("[B16] repeats nothing of the URL in a reason", () => {
    const canary = "c4n4ry";
    for (const url of [
      `http://${canary}.example/${canary}`,
      `https://${canary}:${canary}@example.com/`,
      `https://127.0.0.1/${canary}?${canary}`,
      `https://${canary}.onion/${canary}`,
      `https://${canary}.localhost/${canary}`,
      `https://example.com:${canary}/`,
      `https://example.com/#${canary}`,
      `${canary}://example.com/ `,
    ]) {
      expect(reasonOf(judgeTargetUrl(url, PUBLIC_ONLY))).not.toMatch(/c4n4ry|^$/);
    }
  });

  it("[B16] never throws, and what it allows is an absolute https URL without user info or fragment", () => {
    const piece = fc.constantFrom(
      "https://",
      "http://",
      "@",
      "#",
      ":",
      "/",
      "\\",
      "[",
      "]",
      "127.1",
      "::1",
      ".",
      "%",
      "a",
    );
    const urls = fc.array(fc.oneof(piece, fc.string({ unit: "binary", maxLength: 3 })), { maxLength: 8 });
    fc.assert(
      fc.property(urls, (pieces) => {
        for (const text of [pieces.join(""), `https://${pieces.join("")}`]) {
          const verdict = judgeTargetUrl(text, PUBLIC_ONLY);
          if (verdict.kind === "refused") continue;
          const { protocol, username, password, hash } = verdict.url;
          expect({ protocol, username, password, hash }).toEqual({
            protocol: "https:",
            username: "",
            password: "",
            hash: "",
          });
          expect(hostOf(verdict.url)).not.toBe("");
        }
      }),
      { numRuns: 2000 },
    );
  });
});

describe("allowed blocks", () => {
  it.each([
    ["", []],
    ["  ", []],
    ["127.0.0.0/8", ["127.0.0.0/8"]],
    [" 127.0.0.0/8 ,::1/128", ["127.0.0.0/8", "::1/128"]],
    ["0.0.0.0/0,::/0", ["0.0.0.0/0", "::/0"]],
    ["10.1.2.3/32,fd00:1::/40", ["10.1.2.3/32", "fd00:1::/40"]],
  ])("reads %j", (text, blocks) => {
    expect(parseAllowedCidrs(text).map(({ network, prefix }) => `${network}/${prefix}`)).toEqual(blocks);
  });

  it.each([
    "10.0.0.0",
    "10.0.0.0/",
    "10.0.0.0/33",
    "10.0.0.0/08",
    "10.0.0.0/-1",
    "10.0.0.0/8/8",
    "10.0/8",
    "010.0.0.0/8",
    "fd00::/129",
    "fe80::%eth0/64",
    "localhost/8",
    "/8",
  ])("names %j as what is not a block", (part) => {
    const expected = `"${part}" is not a block of addresses: expected a form such as 10.0.0.0/8 or fd00::/8`;
    expect(() => parseAllowedCidrs(`127.0.0.0/8,${part}`)).toThrow(expected);
  });

  it("names an empty part of a list", () => {
    expect(() => parseAllowedCidrs("127.0.0.0/8,")).toThrow('"" is not a block of addresses');
  });

  it.each([
    ["10.0.0.1/8", "10.0.0.0/8"],
    ["192.168.1.128/24", "192.168.1.0/24"],
    ["0.0.0.1/0", "0.0.0.0/0"],
    ["fd00::1/64", "fd00::/64"],
    ["::1/127", "::/127"],
  ])("refuses %s, with bits below its prefix, and offers %s", (part, expected) => {
    expect(() => parseAllowedCidrs(part)).toThrow(`"${part}" has bits set below its prefix: expected "${expected}"`);
  });

  it.each(["::ffff:127.0.0.0/104", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002:a00::/24", "2001::/32"])(
    "refuses %s, which could have no effect, since the address inside decides",
    (part) => {
      expect(() => parseAllowedCidrs(part)).toThrow("expected the block of the IPv4 addresses inside them");
    },
  );

  it("opens the block and nothing beside it", () => {
    const policy = allowing("10.1.0.0/16, fd00:1::/32, 169.254.169.254/32");
    for (const address of ["10.1.0.0", "10.1.255.255", "fd00:1::", "fd00:1:ffff::1", "169.254.169.254", "8.8.8.8"]) {
      expect([address, judgeAddress(address, policy).kind]).toEqual([address, "allowed"]);
    }
    for (const address of ["10.0.255.255", "10.2.0.0", "fd00:2::", "fd00::1", "169.254.169.253", "127.0.0.1", "::1"]) {
      expect([address, judgeAddress(address, policy).kind]).toEqual([address, "refused"]);
    }
  });
});
