import { randomUUID } from "node:crypto";
import postgres, { type Sql } from "postgres";
import type { Secret } from "../core/secret.ts";
import { ARRAY_TYPES } from "../store/driver-options.ts";
import { DUE_CHANNEL, type Due, parseDuePayload } from "../store/outbox/wake-up.ts";
import { TEST_CHANNEL } from "../store/subscription-tests.ts";
import { pause } from "./pause.ts";

export type ListenOptions = {
  readonly url: Secret;
  readonly role: string;
  /** Something may have come due. */
  readonly onDue: (due: Due) => void;
  /** Wake-ups may have been missed, since nobody listened for a while. */
  readonly onGap?: () => void;
  /** Somebody may have asked for a test of a subscription. */
  readonly onTest?: () => void;
  /** The connection was found silent or broken, and is replaced. */
  readonly onLost: (reason: unknown) => void;
  readonly heartbeatMs?: number;
  readonly silenceMs?: number;
};

const HEARTBEAT_MS = 10_000;
const SILENCE_MS = 5_000;
const RECONNECT_MS = 1_000;

/**
 * Listens for wake-ups on a connection of its own, for as long as it is not closed. A heartbeat that it sends to itself
 * finds a connection that has gone silent, which neither TCP nor the driver would notice for minutes. A wake-up is a hint
 * only: whatever is missed here, the poll finds.
 */
export function listenForDue(options: ListenOptions): { close(): Promise<void> } {
  const closing = new AbortController();
  let mayHaveMissed = false;
  const onListening = () => {
    if (mayHaveMissed) {
      options.onGap?.();
      options.onDue({ lanes: undefined });
      options.onTest?.();
    }
    // Whenever we come here again.
    mayHaveMissed = true;
  };
  const running = (async () => {
    while (!closing.signal.aborted) {
      try {
        await listenOnce(options, onListening, closing.signal);
      } catch (error) {
        if (closing.signal.aborted) return;
        mayHaveMissed = true;
        options.onLost(error);
        await pause(RECONNECT_MS, closing.signal);
      }
    }
  })();
  return {
    close: () => {
      closing.abort();
      return running;
    },
  };
}

/**
 * Listens until the connection fails a heartbeat, which it throws, or until the signal. `onListening`: from here on nothing is
 * missed; the driver may come to that several times, since it replaces a connection that is closed by itself.
 */
async function listenOnce(options: ListenOptions, onListening: () => void, signal: AbortSignal): Promise<void> {
  const { heartbeatMs = HEARTBEAT_MS, silenceMs = SILENCE_MS } = options;
  const sql = postgres(options.url.reveal(), {
    max: 1,
    ...ARRAY_TYPES,
    connect_timeout: 5,
    onnotice: () => undefined,
    connection: { application_name: `${options.role}_listener`, role: options.role },
  });
  try {
    const heartbeat = `nuncio_heartbeat_${randomUUID().replaceAll("-", "")}`;
    let heard: () => void = () => undefined;
    await within(
      silenceMs,
      sql.listen(TEST_CHANNEL, () => options.onTest?.()),
    );
    await within(
      silenceMs,
      sql.listen(DUE_CHANNEL, (payload) => options.onDue(parseDuePayload(payload)), onListening),
    );
    await within(
      silenceMs,
      sql.listen(heartbeat, () => heard()),
    );
    while (!signal.aborted) {
      const echo = new Promise<void>((resolve) => {
        heard = resolve;
      });
      await within(silenceMs, Promise.all([sendHeartbeat(sql, heartbeat), echo]));
      await pause(heartbeatMs, signal);
    }
  } finally {
    await sql.end({ timeout: 1 });
  }
}

const sendHeartbeat = (sql: Sql, channel: string) => sql`SELECT pg_notify(${channel}, '')`;

async function within<T>(limitMs: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const silence = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`the listener heard nothing for ${limitMs} ms`)), limitMs);
  });
  try {
    return await Promise.race([work, silence]);
  } finally {
    clearTimeout(timer);
    work.catch(() => undefined);
  }
}
