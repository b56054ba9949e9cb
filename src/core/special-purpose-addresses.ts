/** Four bytes of an IPv4 address, network order. */
type Ipv4Bytes = readonly number[];

const ISATAP_MARK = [0x00, 0x5e, 0xfe].join();

/**
 * A block no public receiver lives in. `ipv4Inside` marks a transition form: it gives the IPv4 addresses that an address
 * of the block stands for, or undefined when the address is not well formed, which leaves it an address of the block.
 */
export type SpecialPurposeBlock = {
  readonly cidr: string;
  readonly name: string;
  readonly source: string;
  readonly ipv4Inside?: (bytes: readonly number[]) => readonly Ipv4Bytes[] | undefined;
};

/**
 * Every row of the IANA IPv4 and IPv6 Special-Purpose Address Registries (as of 2025-10-09), and what the registries
 * leave out but a public sender must never dial. The most specific block that holds an address speaks for it.
 *
 * Rows which the registries call globally reachable are here too: anycast services for devices (PCP, TURN, AMT, SRP),
 * sinks for stray DNS queries (AS112) and identifiers (ORCHIDv2, DRIP) are no webhook receivers, and the nearest
 * instance of an anycast service may stand in our own network.
 *
 * Cloud metadata needs no rows of its own: 169.254.169.254, 169.254.170.2 and fe80::a9fe:a9fe are link local,
 * fd00:ec2::254 and fd20:ce::254 unique local, 100.100.100.200 shared, 192.0.0.192 in 192.0.0.0/24. Azure's WireServer
 * alone has a public address and therefore a row.
 */
export const SPECIAL_PURPOSE_BLOCKS: readonly SpecialPurposeBlock[] = [
  // https://www.iana.org/assignments/iana-ipv4-special-registry/
  { cidr: "0.0.0.0/8", name: "This network", source: "RFC 791" },
  { cidr: "0.0.0.0/32", name: "This host on this network", source: "RFC 1122" },
  { cidr: "10.0.0.0/8", name: "Private-Use", source: "RFC 1918" },
  { cidr: "100.64.0.0/10", name: "Shared Address Space", source: "RFC 6598" },
  { cidr: "127.0.0.0/8", name: "Loopback", source: "RFC 1122" },
  { cidr: "169.254.0.0/16", name: "Link Local", source: "RFC 3927" },
  { cidr: "172.16.0.0/12", name: "Private-Use", source: "RFC 1918" },
  { cidr: "192.0.0.0/24", name: "IETF Protocol Assignments", source: "RFC 6890" },
  { cidr: "192.0.0.0/29", name: "IPv4 Service Continuity Prefix", source: "RFC 7335" },
  { cidr: "192.0.0.8/32", name: "IPv4 dummy address", source: "RFC 7600" },
  { cidr: "192.0.0.9/32", name: "Port Control Protocol Anycast", source: "RFC 7723" },
  { cidr: "192.0.0.10/32", name: "Traversal Using Relays around NAT Anycast", source: "RFC 8155" },
  { cidr: "192.0.0.170/32", name: "NAT64/DNS64 Discovery", source: "RFC 8880" },
  { cidr: "192.0.0.171/32", name: "NAT64/DNS64 Discovery", source: "RFC 8880" },
  { cidr: "192.0.2.0/24", name: "Documentation (TEST-NET-1)", source: "RFC 5737" },
  { cidr: "192.31.196.0/24", name: "AS112-v4", source: "RFC 7535" },
  { cidr: "192.52.193.0/24", name: "AMT", source: "RFC 7450" },
  { cidr: "192.88.99.0/24", name: "Deprecated (6to4 Relay Anycast)", source: "RFC 7526" },
  { cidr: "192.88.99.2/32", name: "6a44-relay anycast address", source: "RFC 6751" },
  { cidr: "192.168.0.0/16", name: "Private-Use", source: "RFC 1918" },
  { cidr: "192.175.48.0/24", name: "Direct Delegation AS112 Service", source: "RFC 7534" },
  { cidr: "198.18.0.0/15", name: "Benchmarking", source: "RFC 2544" },
  { cidr: "198.51.100.0/24", name: "Documentation (TEST-NET-2)", source: "RFC 5737" },
  { cidr: "203.0.113.0/24", name: "Documentation (TEST-NET-3)", source: "RFC 5737" },
  { cidr: "240.0.0.0/4", name: "Reserved", source: "RFC 1112" },
  { cidr: "255.255.255.255/32", name: "Limited Broadcast", source: "RFC 8190, RFC 919" },

  // not in that registry
  { cidr: "168.63.129.16/32", name: "Azure WireServer", source: "Microsoft: What is IP address 168.63.129.16?" },
  { cidr: "224.0.0.0/4", name: "Multicast", source: "RFC 5771" },

  // https://www.iana.org/assignments/iana-ipv6-special-registry/
  { cidr: "::1/128", name: "Loopback Address", source: "RFC 4291" },
  { cidr: "::/128", name: "Unspecified Address", source: "RFC 4291" },
  { cidr: "::ffff:0:0/96", name: "IPv4-mapped", source: "RFC 4291", ipv4Inside: lastFourBytes },
  { cidr: "64:ff9b::/96", name: "NAT64", source: "RFC 6052", ipv4Inside: lastFourBytes },
  { cidr: "64:ff9b:1::/48", name: "local-use NAT64", source: "RFC 8215", ipv4Inside: behindPrefixOf48Bits },
  { cidr: "100::/64", name: "Discard-Only Address Block", source: "RFC 6666" },
  { cidr: "100:0:0:1::/64", name: "Dummy IPv6 Prefix", source: "RFC 9780" },
  { cidr: "2001::/23", name: "IETF Protocol Assignments", source: "RFC 2928" },
  { cidr: "2001::/32", name: "Teredo", source: "RFC 4380", ipv4Inside: teredoServerAndClient },
  { cidr: "2001:1::1/128", name: "Port Control Protocol Anycast", source: "RFC 7723" },
  { cidr: "2001:1::2/128", name: "Traversal Using Relays around NAT Anycast", source: "RFC 8155" },
  { cidr: "2001:1::3/128", name: "DNS-SD Service Registration Protocol Anycast", source: "RFC 9665" },
  { cidr: "2001:2::/48", name: "Benchmarking", source: "RFC 5180" },
  { cidr: "2001:3::/32", name: "AMT", source: "RFC 7450" },
  { cidr: "2001:4:112::/48", name: "AS112-v6", source: "RFC 7535" },
  { cidr: "2001:10::/28", name: "Deprecated (previously ORCHID)", source: "RFC 4843" },
  { cidr: "2001:20::/28", name: "ORCHIDv2", source: "RFC 7343" },
  { cidr: "2001:30::/28", name: "Drone Remote ID Protocol Entity Tags", source: "RFC 9374" },
  { cidr: "2001:db8::/32", name: "Documentation", source: "RFC 3849" },
  { cidr: "2002::/16", name: "6to4", source: "RFC 3056", ipv4Inside: (bytes) => [bytes.slice(2, 6)] },
  { cidr: "2620:4f:8000::/48", name: "Direct Delegation AS112 Service", source: "RFC 7534" },
  { cidr: "3fff::/20", name: "Documentation", source: "RFC 9637" },
  { cidr: "5f00::/16", name: "Segment Routing (SRv6) SIDs", source: "RFC 9602" },
  { cidr: "fc00::/7", name: "Unique-Local", source: "RFC 4193" },
  { cidr: "fe80::/10", name: "Link-Local Unicast", source: "RFC 4291" },

  // not in that registry; the last three are all that lies outside 2000::/3, the only space IANA assigns from
  { cidr: "::/96", name: "IPv4-compatible", source: "RFC 4291 (deprecated)", ipv4Inside: lastFourBytes },
  { cidr: "::ffff:0:0:0/96", name: "IPv4-translated", source: "RFC 2765", ipv4Inside: lastFourBytes },
  { cidr: "fec0::/10", name: "Site-Local Unicast", source: "RFC 3879 (deprecated)" },
  { cidr: "ff00::/8", name: "Multicast", source: "RFC 4291" },
  { cidr: "::/3", name: "outside Global Unicast", source: "RFC 4291, IANA IPv6 address space" },
  { cidr: "4000::/2", name: "outside Global Unicast", source: "RFC 4291, IANA IPv6 address space" },
  { cidr: "8000::/1", name: "outside Global Unicast", source: "RFC 4291, IANA IPv6 address space" },
];

/**
 * The IPv4 address in an ISATAP interface id (`0:5efe:a.b.c.d` or `200:5efe:a.b.c.d`), or none. Any IPv6 prefix can
 * carry one, so that no block can list it (RFC 5214, section 6.1).
 */
export function isatapIpv4Inside(bytes: readonly number[]): readonly Ipv4Bytes[] {
  const [first, ...rest] = bytes.slice(8, 12);
  const marked = (first === 0x00 || first === 0x02) && rest.join() === ISATAP_MARK;
  return marked ? [bytes.slice(12)] : [];
}

function lastFourBytes(bytes: readonly number[]): readonly Ipv4Bytes[] {
  return [bytes.slice(12)];
}

/**
 * RFC 6052, section 2.2, a /48: the address lies around byte 8, which is zero, and zeros follow it. Other bytes there
 * mean a longer prefix, which we do not know and so cannot read.
 */
function behindPrefixOf48Bits(bytes: readonly number[]): readonly Ipv4Bytes[] | undefined {
  const wellFormed = bytes[8] === 0 && bytes.slice(11).every((byte) => byte === 0);
  return wellFormed ? [[...bytes.slice(6, 8), ...bytes.slice(9, 11)]] : undefined;
}

/** RFC 4380, section 4: the server's address as it is, the client's with every bit inverted. A packet reaches both. */
function teredoServerAndClient(bytes: readonly number[]): readonly Ipv4Bytes[] {
  return [bytes.slice(4, 8), bytes.slice(12).map((byte) => byte ^ 0xff)];
}
