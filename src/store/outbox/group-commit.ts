import { ResourceExhaustedError, UnavailableError } from "../../core/errors.ts";
import { isTransient } from "../database.ts";
import { type AppendResult, type AppendRow, whatIsDue } from "./append.ts";

export type GroupCommitOptions = {
  /** Stores rows in one transaction: `appendEvents` on a pool with at least `writers` connections. */
  readonly append: (rows: readonly AppendRow[]) => Promise<AppendResult[]>;
  /** Called after a commit with the lanes that have something due now, if any, and since when. */
  readonly onCommitted: (lanes: readonly number[], sinceMs: number) => void;
  readonly nowMs: () => number;
  readonly writers: number;
  /** Rows after which a group takes no further call. One call is never split: its events keep their order. */
  readonly groupRows: number;
  readonly maxQueuedRows: number;
  readonly maxQueuedBytes: number;
  /** How long a call waits for its commit before it is answered UNAVAILABLE. */
  readonly timeoutMs: number;
};

type Call = {
  readonly rows: readonly AppendRow[];
  readonly bytes: number;
  readonly resolve: (results: AppendResult[]) => void;
  readonly reject: (error: unknown) => void;
};

const BUSY_RETRY_AFTER_MS = 250;
/** Readiness: a server whose commits take longer than this, or fail for so long, serves nobody. */
const STALL_MS = 5_000;
const FORGET_FAILURE_MS = 10_000;
const UNAVAILABLE_RETRY_AFTER_MS = 1_000;

/**
 * Lets concurrent publishes share a commit: while a transaction is on its way, calls gather for the next one; when none
 * is, a call goes at once. A call resolves after its commit, so what it resolves with is durable; one that rejects as
 * UNAVAILABLE may have been stored, and is told apart by asking again with the same ids.
 */
export class GroupCommit {
  readonly #options: GroupCommitOptions;
  #queue: Call[] = [];
  #queuedRows = 0;
  #queuedBytes = 0;
  #writing = 0;
  #scheduled = false;
  /** Since when calls wait, or fail for want of Postgres, without a commit; undefined while all is well. */
  #stuckSinceMs: number | undefined;
  #failedAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: GroupCommitOptions) {
    this.#options = options;
  }

  /** Events that wait for a commit, those of one that is on its way not counted. */
  get queuedRows(): number {
    return this.#queuedRows;
  }

  /** What keeps publishes from being answered, for readiness; empty when nothing does. */
  findStalls(): string[] {
    const isWaiting = this.#writing > 0 || this.#queue.length > 0;
    // Where nobody asks any more nobody can succeed either: what failed a while ago says nothing.
    if (!isWaiting && this.#options.nowMs() - this.#failedAtMs > FORGET_FAILURE_MS) return [];
    const stuckMs = this.#options.nowMs() - (this.#stuckSinceMs ?? Number.POSITIVE_INFINITY);
    return stuckMs > STALL_MS
      ? [`publishes wait, and no commit has succeeded for ${Math.round(stuckMs / 1_000)} s`]
      : [];
  }

  /** The results in the order of the rows. Rows with the same (tenant, id) are one event: the first one counts. */
  publish(rows: readonly AppendRow[]): Promise<AppendResult[]> {
    const bytes = rows.reduce((sum, row) => sum + row.bodyTail.length, 0);
    const { maxQueuedRows, maxQueuedBytes, timeoutMs } = this.#options;
    if (this.#queuedRows + rows.length > maxQueuedRows || this.#queuedBytes + bytes > maxQueuedBytes) {
      const message = "too many events are waiting for a commit; try again";
      throw new ResourceExhaustedError("SERVER_BUSY", message, { retryAfterMs: BUSY_RETRY_AFTER_MS });
    }
    const hasForgotten = this.#writing === 0 && this.#options.nowMs() - this.#failedAtMs > FORGET_FAILURE_MS;
    if (this.#queue.length === 0 && hasForgotten) this.#stuckSinceMs = undefined;
    this.#stuckSinceMs ??= this.#options.nowMs();
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(unavailable(undefined)), timeoutMs);
      const settle =
        <T>(end: (value: T) => void) =>
        (value: T) => {
          clearTimeout(timer);
          end(value);
        };
      this.#queue.push({ rows, bytes, resolve: settle(resolve), reject: settle(reject) });
      this.#queuedRows += rows.length;
      this.#queuedBytes += bytes;
      this.#schedule();
    });
  }

  /** Not at once, but after whatever else this turn of the event loop brings: that may join. */
  #schedule(): void {
    if (this.#scheduled || this.#writing >= this.#options.writers || this.#queue.length === 0) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      void this.#writeNext();
    });
  }

  async #writeNext(): Promise<void> {
    const group = this.#takeGroup();
    if (group.length === 0) return;
    this.#writing += 1;
    this.#schedule();
    await this.#write(group);
    this.#writing -= 1;
    this.#schedule();
  }

  /** Calls from the front of the queue, as many as fit; one that shares an event with the group waits for the next. */
  #takeGroup(): Call[] {
    const group: Call[] = [];
    const sharing: Call[] = [];
    const taken = new Set<string>();
    let rows = 0;
    let seen = 0;
    for (const call of this.#queue) {
      if (rows > 0 && rows + call.rows.length > this.#options.groupRows) break;
      seen += 1;
      const keys = call.rows.map(keyOf);
      const shares = keys.some((key) => taken.has(key));
      for (const key of keys) taken.add(key);
      if (shares) {
        sharing.push(call);
        continue;
      }
      group.push(call);
      rows += call.rows.length;
      this.#queuedRows -= call.rows.length;
      this.#queuedBytes -= call.bytes;
    }
    this.#queue = [...sharing, ...this.#queue.slice(seen)];
    return group;
  }

  async #write(group: readonly Call[]): Promise<void> {
    const firsts = group.map((call) => withoutRepetitions(call.rows));
    try {
      const results = await this.#options.append(firsts.flat());
      this.#stuckSinceMs = this.#queue.length > 0 ? this.#options.nowMs() : undefined;
      const due = whatIsDue(results);
      if (due) this.#options.onCommitted(due.lanes, due.sinceMs);
      let next = 0;
      for (const [i, call] of group.entries()) {
        const count = firsts[i]?.length ?? 0;
        call.resolve(spread(call.rows, results.slice(next, next + count)));
        next += count;
      }
    } catch (error) {
      await this.#fail(group, error);
    }
  }

  /** Trouble with Postgres fails the group; a row that Postgres refuses fails its own call only. */
  async #fail(group: readonly Call[], error: unknown): Promise<void> {
    if (isTransient(error)) {
      this.#failedAtMs = this.#options.nowMs();
      for (const call of group) call.reject(unavailable(error));
    } else if (group.length === 1) {
      // Postgres answers; it is this row that it refuses.
      this.#stuckSinceMs = undefined;
      group[0]?.reject(error);
    } else {
      const half = Math.ceil(group.length / 2);
      await this.#write(group.slice(0, half));
      await this.#write(group.slice(half));
    }
  }
}

function keyOf(row: AppendRow): string {
  return `${row.tenantId}/${row.eventId}`;
}

/** The rows of a call without repetitions of a (tenant, id). */
function withoutRepetitions(rows: readonly AppendRow[]): readonly AppendRow[] {
  if (rows.length === 1) return rows;
  const firsts = new Map<string, AppendRow>();
  for (const row of rows) if (!firsts.has(keyOf(row))) firsts.set(keyOf(row), row);
  return [...firsts.values()];
}

/**
 * Results of the rows without repetitions → results of all. A repetition of the same content is a duplicate of the first
 * (or a conflict like it), other content under the same id is a conflict whatever became of the first.
 */
function spread(rows: readonly AppendRow[], results: readonly AppendResult[]): AppendResult[] {
  if (rows.length === results.length) return [...results];
  const firsts = new Map<string, { contentHash: Buffer; repetition: AppendResult }>();
  let next = 0;
  return rows.map((row) => {
    const first = firsts.get(keyOf(row));
    if (first === undefined) {
      const result = results[next++] as AppendResult;
      const repetition: AppendResult = result.kind === "appended" ? { kind: "duplicate" } : result;
      firsts.set(keyOf(row), { contentHash: row.contentHash, repetition });
      return result;
    }
    return first.contentHash.equals(row.contentHash) ? first.repetition : { kind: "conflict" };
  });
}

function unavailable(cause: unknown): UnavailableError {
  return new UnavailableError("STORE_UNAVAILABLE", "the event could not be stored now; try again with the same id", {
    cause,
    retryAfterMs: UNAVAILABLE_RETRY_AFTER_MS,
  });
}
