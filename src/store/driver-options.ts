import { connect, type Socket } from "node:net";
import type postgres from "postgres";

/** A Postgres array of whole numbers or of text as a parameter; text that is one already passes. */
function toArrayLiteral(members: string | readonly (string | number | null)[]): string {
  if (typeof members === "string") return members;
  const texts = members.map((member) => {
    if (member === null) return "NULL";
    return typeof member === "number" ? String(member) : `"${member.replace(/["\\]/g, "\\$&")}"`;
  });
  return `{${texts.join(",")}}`;
}

/** An array of whole numbers as it comes from Postgres, without nulls. */
function parseNumbers(literal: string): number[] {
  return literal === "{}" ? [] : literal.slice(1, -1).split(",").map(Number);
}

const OID = { smallintArray: 1005, integerArray: 1007, textArray: 1009 } as const;

const numbers = (oid: number) => ({ to: oid, from: [oid], serialize: toArrayLiteral, parse: parseNumbers });

/**
 * The array types that we use, told to the driver instead of asked for. Left to itself it asks each new connection, and when
 * that ends before it has answered, it rejects a promise that nobody holds: the process dies (postgres.js 3.4.9,
 * `fetchArrayTypes`). Every client of ours needs this.
 */
export const ARRAY_TYPES: { fetch_types: false; types: Record<string, postgres.PostgresType> } = {
  fetch_types: false,
  types: {
    smallintArray: numbers(OID.smallintArray),
    integerArray: numbers(OID.integerArray),
    // Only ever sent: what comes back as text[] stays text, and Drizzle reads its own.
    textArray: { to: OID.textArray, from: [], serialize: toArrayLiteral, parse: (literal: string) => literal },
  },
};

type Target = { readonly host: readonly string[]; readonly port: readonly number[]; readonly path?: string | false };

/**
 * Lets the driver's connections end when nothing has come on them for `silenceMs`. A server that vanished without a word (a
 * machine that lost power, a firewall that forgot the connection) else keeps its statement waiting for as long as TCP goes
 * on trying, a quarter of an hour: the driver has no time limit of its own. What waits fails as ETIMEDOUT, which is
 * transient; a connection that was merely idle is opened anew when it is needed.
 *
 * What we send ourselves does not count: the driver goes on sending into a connection that answers no more.
 */
export function closingInSilence(silenceMs: number): Record<string, unknown> {
  let tries = 0;
  return {
    socket({ host, port, path }: Target): Socket {
      const turn = tries++ % host.length;
      const socket = path ? connect(path) : connect({ host: host[turn] as string, port: port[turn] as number });
      watch(socket, silenceMs);
      // From here the driver takes the name that TLS sends along.
      return path ? socket : Object.assign(socket, { host: host[turn], port: port[turn] });
    },
  };
}

/** So many looks in a row without an answer are the silence. */
export const LOOKS_PER_SILENCE = 4;

/** How many bytes a connection has got and sent, and since how many looks it is silent. */
export type Listening = {
  readonly bytesRead: number;
  readonly bytesWritten: number;
  readonly isAsked: boolean;
  readonly silentLooks: number;
};

/** The silence begins with the first question that nothing has answered, not with the answer before it. */
export function lookAgain(before: Listening, now: Pick<Socket, "bytesRead" | "bytesWritten">): Listening {
  const { bytesRead, bytesWritten } = now;
  const hasAnswered = bytesRead !== before.bytesRead;
  const isFirstQuestion = !hasAnswered && !before.isAsked && bytesWritten !== before.bytesWritten;
  return {
    bytesRead,
    bytesWritten,
    isAsked: !hasAnswered && (before.isAsked || isFirstQuestion),
    silentLooks: hasAnswered || isFirstQuestion ? 0 : before.silentLooks + 1,
  };
}

function watch(socket: Socket, silenceMs: number): void {
  let listening: Listening = { bytesRead: 0, bytesWritten: 0, isAsked: false, silentLooks: 0 };
  const timer = setInterval(() => {
    listening = lookAgain(listening, socket);
    if (listening.silentLooks < LOOKS_PER_SILENCE) return;
    socket.destroy(Object.assign(new Error(`Postgres was silent for ${silenceMs} ms`), { code: "ETIMEDOUT" }));
  }, silenceMs / LOOKS_PER_SILENCE);
  timer.unref();
  socket.once("close", () => clearInterval(timer));
}
