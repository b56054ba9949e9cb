import { isIP } from "node:net";
import ipaddr from "ipaddr.js";
import { isatapIpv4Inside, SPECIAL_PURPOSE_BLOCKS } from "./special-purpose-addresses.ts";

/** What an operator lets through beyond https to public addresses. */
export type AddressPolicy = { allowHttp: boolean; allowedCidrs: readonly AllowedCidr[] };
export type AllowedCidr = { readonly network: Address; readonly prefix: number };

export type Verdict = { kind: "allowed" } | { kind: "refused"; reason: string };
export type TargetVerdict = { kind: "allowed"; url: URL } | { kind: "refused"; reason: string };

type Address = ipaddr.IPv4 | ipaddr.IPv6;

/** Counted as given and again once percent-encoded, since that is what we send. */
const MAX_URL_CHARACTERS = 2048;
const TOO_LONG = "the URL is longer than 2,048 characters";

/** What WHATWG parsers strip, replace or cannot show: white space, control, format and half characters, backslashes. */
const UNSEEN_OR_REWRITTEN = /[\p{Z}\p{Cc}\p{Cf}\p{Cs}\\]/u;

/**
 * Top-level names that by their RFC never come from the DNS: whatever answers for one is not the receiver it names.
 * RFC 6761, 6762, 7686, 9476. Not here, because they merely resolve and the answer is judged when connecting: `.test`,
 * `.example`, `.internal`, `.home.arpa` and single-label hosts, which private DNS may hold beside an allowed block.
 */
const NAMES_OUTSIDE_THE_DNS: ReadonlySet<string> = new Set(["invalid", "local", "onion", "alt"]);

const ALLOWED: Verdict = { kind: "allowed" };

const MOST_SPECIFIC_FIRST = SPECIAL_PURPOSE_BLOCKS.map((block) => ({ ...block, ...parseBlock(block.cidr) })).toSorted(
  (a, b) => b.prefix - a.prefix,
);

/** The blocks of a comma-separated list such as `127.0.0.0/8, ::1/128`; throws at the first part that is not one. */
export function parseAllowedCidrs(text: string): AllowedCidr[] {
  if (text.trim() === "") return [];
  return text.split(",").map((part) => parseAllowedCidr(part.trim()));
}

/**
 * Whether a request may go to this address, a literal as a resolver returns it. A transition address is judged by the
 * IPv4 addresses inside it. NAT64 under an operator's own prefix and 6rd look like any other public address; a network
 * that has them must filter behind its translator.
 */
export function judgeAddress(address: string, policy: AddressPolicy): Verdict {
  if (address.includes("%")) return refused("the address has a zone id");
  const parsed = parseAddress(address);
  if (parsed === undefined) return refused("the address is neither IPv4 nor IPv6");
  return parsed.kind() === "ipv4" ? judgeAsItStands(parsed, policy) : judgeWithInside(parsed, policy);
}

/** Whether a request may go to any address of a DNS answer: one refused address refuses them all. */
export function judgeAnswer(addresses: readonly string[], policy: AddressPolicy): Verdict {
  if (addresses.length === 0) return refused("no addresses");
  for (const address of addresses) {
    const verdict = judgeAddress(address, policy);
    if (verdict.kind === "refused") return verdict;
  }
  return ALLOWED;
}

/** `judgeAnswer` for one policy, which judges each answer once however many requests share it. */
export function createAnswerJudge(policy: AddressPolicy): (addresses: readonly string[]) => Verdict {
  const verdicts = new WeakMap<readonly string[], Verdict>();
  return (addresses) => {
    let verdict = verdicts.get(addresses);
    if (verdict === undefined) {
      verdict = judgeAnswer(addresses, policy);
      verdicts.set(addresses, verdict);
    }
    return verdict;
  };
}

/**
 * Whether a subscription may have this URL. Allowed is not yet safe: a name says nothing of its addresses, so they are
 * judged, every time, when connecting. A reason never repeats the URL, which may carry a token.
 */
export function judgeTargetUrl(url: string, policy: AddressPolicy): TargetVerdict {
  const fault = faultInSpelling(url, policy);
  if (fault !== undefined) return refused(fault);

  const parsed = URL.parse(url);
  if (parsed === null) return refused("the host or the port is not valid");
  if (parsed.href.length > MAX_URL_CHARACTERS) return refused(TOO_LONG);
  if (!isAllowedPort(parsed, policy)) {
    return refused(`the port must be ${policy.allowHttp ? "80, " : ""}443 or from 1024 to 65535`);
  }

  const verdict = judgeHost(parsed, policy);
  return verdict.kind === "refused" ? verdict : { kind: "allowed", url: parsed };
}

/** The host to resolve or dial: in lower case as WHATWG leaves it, without brackets, without the dot of the root. */
export function hostOf(url: URL): string {
  return url.hostname.replace(/^\[|\]$/g, "").replace(/\.$/, "");
}

function refused(reason: string): Extract<Verdict, { kind: "refused" }> {
  return { kind: "refused", reason };
}

function judgeWithInside(address: Address, policy: AddressPolicy): Verdict {
  const bytes = address.toByteArray();
  const block = blockOf(address);
  const carried = block?.ipv4Inside?.(bytes);
  const refusal = [
    ...(carried ?? []).map((ipv4) => judgeInside(ipv4, `${block?.name}`, policy)),
    ...isatapIpv4Inside(bytes).map((ipv4) => judgeInside(ipv4, "ISATAP", policy)),
  ].find((verdict) => verdict.kind === "refused");
  if (refusal !== undefined) return refusal;

  // An ISATAP id is no claim about the prefix in front of it: under fd00::/8 it would open our own network.
  return carried === undefined ? judgeAsItStands(address, policy) : ALLOWED;
}

function judgeInside(ipv4: readonly number[], form: string, policy: AddressPolicy): Verdict {
  return judgeAsItStands(new ipaddr.IPv4([...ipv4]), policy, `the IPv4 address inside this ${form} address`);
}

function judgeAsItStands(address: Address, policy: AddressPolicy, called = "the address"): Verdict {
  if (policy.allowedCidrs.some((allowed) => contains(allowed, address))) return ALLOWED;
  const block = blockOf(address);
  return block === undefined ? ALLOWED : refused(`${called} is in ${block.cidr} (${block.name})`);
}

function blockOf(address: Address) {
  return MOST_SPECIFIC_FIRST.find((block) => contains(block, address));
}

function contains({ network, prefix }: AllowedCidr, address: Address): boolean {
  return network.kind() === address.kind() && address.match(network, prefix);
}

/** `node:net` and `ipaddr.js` must agree that it is one: the latter alone also takes `127.1` and `::ffff:0177.0.0.1`. */
function parseAddress(text: string): Address | undefined {
  if (isIP(text) === 0) return undefined;
  const unambiguous = text.includes(":") ? withoutDots(text) : text;
  return ipaddr.isValid(unambiguous) ? ipaddr.parse(unambiguous) : undefined;
}

/** ipaddr.js 2.5.0 reads `::a.b.c.d` as `::ffff:a.b.c.d`, which is another address; in hex there is one reading only. */
function withoutDots(ipv6: string): string {
  const group = (high: string, low: string) => (Number(high) * 256 + Number(low)).toString(16);
  return ipv6.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, a, b, c, d) => `${group(a, b)}:${group(c, d)}`);
}

function parseAllowedCidr(text: string): AllowedCidr {
  const allowed = parseBlock(text);
  const form = blockOf(allowed.network);
  if (form?.ipv4Inside !== undefined && allowed.prefix >= form.prefix) {
    throw new Error(`"${text}" holds ${form.name} addresses: expected the block of the IPv4 addresses inside them`);
  }
  return allowed;
}

function parseBlock(text: string): AllowedCidr {
  const [, literal = "", prefixText = ""] = /^([^/%]+)\/(0|[1-9]\d{0,2})$/.exec(text) ?? [];
  const address = parseAddress(literal);
  const prefix = Number(prefixText);
  if (address === undefined || prefix > address.toByteArray().length * 8) {
    throw new Error(`"${text}" is not a block of addresses: expected a form such as 10.0.0.0/8 or fd00::/8`);
  }
  const network = networkOf(address, prefix);
  if (network.toString() !== address.toString()) {
    throw new Error(`"${text}" has bits set below its prefix: expected "${network}/${prefix}"`);
  }
  return { network, prefix };
}

function networkOf(address: Address, prefix: number): Address {
  const family = address.kind() === "ipv4" ? ipaddr.IPv4 : ipaddr.IPv6;
  const mask = family.subnetMaskFromPrefixLength(prefix).toByteArray();
  return ipaddr.fromByteArray(address.toByteArray().map((byte, index) => byte & (mask[index] ?? 0)));
}

/**
 * What is wrong with the text before WHATWG smooths it over: it would supply missing slashes and drop an empty `@` or
 * `#`, and then we would store one URL and speak to another.
 */
function faultInSpelling(url: string, { allowHttp }: AddressPolicy): string | undefined {
  if (url.length > MAX_URL_CHARACTERS) return TOO_LONG;
  if (UNSEEN_OR_REWRITTEN.test(url)) return "the URL has white space, an invisible character or a backslash in it";
  const [start, authority = ""] = (allowHttp ? /^https?:\/\/([^/?#]*)/i : /^https:\/\/([^/?#]*)/i).exec(url) ?? [];
  if (start === undefined) return `the URL must begin with https://${allowHttp ? " or http://" : ""}`;
  if (authority === "") return "the URL has no host";
  if (authority.includes("@")) return "the URL has user info in it";
  if (url.includes("#")) return "the URL has a fragment";
  return undefined;
}

function isAllowedPort(url: URL, { allowHttp }: AddressPolicy): boolean {
  const port = Number(url.port || (url.protocol === "https:" ? 443 : 80));
  return port === 443 || port >= 1024 || (allowHttp && port === 80);
}

function judgeHost(url: URL, policy: AddressPolicy): Verdict {
  const host = hostOf(url);
  if (isIP(host) !== 0) return judgeAddress(host, policy);

  const labels = host.split(".");
  if (labels.includes("")) return refused("the host has an empty label");
  const topLevel = labels.at(-1) ?? "";
  if (topLevel === "localhost") {
    const loopback = judgeAddress("127.0.0.1", policy);
    return loopback.kind === "allowed" ? loopback : refused("the host is this machine itself");
  }
  if (NAMES_OUTSIDE_THE_DNS.has(topLevel)) return refused(`names under .${topLevel} are not in the public DNS`);
  return ALLOWED;
}
