import { Resolver } from "node:dns/promises";
import { isIP } from "node:net";

/** All addresses of a host; rejects when there are none to be had. Ends by itself: an attempt does not wait for it. */
export type Resolve = (host: string) => Promise<readonly string[]>;

/**
 * Asks the name servers of the system, A and AAAA at once. Not `getaddrinfo`: its four threads are shared by the whole
 * process, so one tenant's dead name server would hold up everybody's. Hence /etc/hosts and search domains do not count;
 * `localhost` is answered here (RFC 6761).
 */
export function createResolver(timeoutMs: number): Resolve {
  const resolver = new Resolver({ timeout: Math.max(1, Math.ceil(timeoutMs / TRIES / 2)), tries: TRIES });
  return async (host) => {
    if (isIP(host) !== 0) return [host];
    if (host === "localhost" || host.endsWith(".localhost")) return ["127.0.0.1"];
    const answers = await Promise.allSettled([resolver.resolve4(host), resolver.resolve6(host)]);
    const addresses = answers.flatMap((answer) => (answer.status === "fulfilled" ? answer.value : []));
    const failures = answers.filter((answer) => answer.status === "rejected").map((answer) => answer.reason);
    if (addresses.length === 0) throw failures[0];
    return addresses;
  };
}

const TRIES = 2;

type Answer = { readonly addresses: Promise<readonly string[]>; readonly askedAtMs: number };

/**
 * Shares one answer among the requests of a second, so that a busy host is asked once a second and a verdict on its
 * addresses is never older than that. Failures are not kept.
 */
export function shareAnswers(resolve: Resolve, nowMs: () => number, keepMs = 1000): Resolve {
  const answers = new Map<string, Answer>();
  return (host) => {
    const now = nowMs();
    const kept = answers.get(host);
    if (kept && now - kept.askedAtMs < keepMs) return kept.addresses;
    if (answers.size >= MAX_ANSWERS)
      for (const [name, { askedAtMs }] of answers) {
        if (now - askedAtMs >= keepMs) answers.delete(name);
      }
    const answer = { addresses: resolve(host), askedAtMs: now };
    answers.set(host, answer);
    answer.addresses.catch(() => {
      if (answers.get(host) === answer) answers.delete(host);
    });
    return answer.addresses;
  };
}

/** Expired answers are thrown out when there are more than this; live ones are as many as the hosts of one second. */
const MAX_ANSWERS = 1000;
