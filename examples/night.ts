import { create } from "@bufbuild/protobuf";
import { DurationSchema } from "@bufbuild/protobuf/wkt";
import { ErasureState } from "../gen/nuncio/v1/event_service_pb.ts";
import { RedriveState } from "../gen/nuncio/v1/redrive_pb.ts";
import { SubscriptionState } from "../gen/nuncio/v1/webhook_subscription_pb.ts";
import type { Nuncio } from "../src/cli/client.ts";
import type { Inbox } from "./receiver.ts";
import { say } from "./report.ts";

// What befalls subscriptions while people live their lives, and what an operator does about it in the morning.

/** The subscriptions that something happens to. */
export type Cast = {
  /** Paused in the middle of everything. */
  readonly paused: Actor;
  /** Gets a new signing secret under traffic. */
  readonly rotated: Actor;
  /** Its receiver has gone, for good as far as anybody can tell. */
  readonly dead: Actor;
};

export type Actor = { readonly name: string; readonly tenantId: string; readonly id: string; readonly inbox: Inbox };

type Step = { readonly from: number; readonly take: () => Promise<void> };

/** Waits for the answer to be yes; false if that takes too long. */
type Until = (ask: () => Promise<boolean>) => Promise<boolean>;

/** For a second after a rotation requests may begin that carry the old signature alone. */
const TAKE_OVER_MS = 1_500;
const GRACE = create(DurationSchema, { seconds: 3_600n });

/** Takes each step once its part of the lives is over, one after the other. */
export class Night {
  readonly #nuncio: Nuncio;
  readonly #cast: Cast;
  readonly #steps: Step[];
  #taken: Promise<void> = Promise.resolve();

  constructor(nuncio: Nuncio, cast: Cast) {
    this.#nuncio = nuncio;
    this.#cast = cast;
    cast.dead.inbox.isGone = true;
    this.#steps = [
      { from: 0.25, take: () => this.#pause() },
      { from: 0.5, take: () => this.#rotate() },
      { from: 0.75, take: () => this.#resume(cast.paused) },
    ];
  }

  /** That part of the lives is over, from 0 to 1. */
  reached(part: number): void {
    for (let next = this.#steps[0]; next !== undefined && part >= next.from; next = this.#steps[0]) {
      this.#steps.shift();
      const { take } = next;
      this.#taken = this.#taken.then(take);
      // Whoever waits for the end hears of it.
      this.#taken.catch(() => undefined);
    }
  }

  /** Resolves when every step was taken; rejects if one failed. */
  async end(): Promise<void> {
    this.reached(1);
    await this.#taken;
  }

  async #pause(): Promise<void> {
    const { name, tenantId, id } = this.#cast.paused;
    await this.#nuncio.subscriptions.pauseWebhookSubscription({ tenantId, id });
    say(`  ── ${name} is paused: what matches it waits`);
  }

  async #resume({ name, tenantId, id }: Actor): Promise<void> {
    await this.#nuncio.subscriptions.resumeWebhookSubscription({ tenantId, id });
    say(`  ── ${name} is resumed`);
  }

  /** The receiver takes the new secret over later than Nuncio: for the grace period both sign. */
  async #rotate(): Promise<void> {
    const { name, tenantId, id, inbox } = this.#cast.rotated;
    const { signingSecret } = await this.#nuncio.subscriptions.rotateWebhookSubscriptionSecret({
      tenantId,
      id,
      gracePeriod: GRACE,
    });
    say(`  ── ${name} gets a new signing secret; its receiver goes on with the old one for a moment`);
    setTimeout(() => {
      inbox.takeSecret(signingSecret);
      say(`  ── the receiver of ${name} verifies with the new secret from here on`);
    }, TAKE_OVER_MS).unref();
  }

  /** The receiver is repaired, and gets everything that it has missed. */
  async repair(until: Until): Promise<void> {
    const { dead } = this.#cast;
    const { name, tenantId, id, inbox } = dead;
    const { subscriptions, deliveries } = this.#nuncio;
    const isDisabled = await until(async () => {
      const { webhookSubscription } = await subscriptions.getWebhookSubscription({ tenantId, id });
      return webhookSubscription?.state === SubscriptionState.DISABLED;
    });
    if (!isDisabled) throw new Error(`${name} answers 410 and is not disabled`);
    say(
      `The receiver of ${name} has answered 410 (gone): Nuncio has disabled it, as gone. It is repaired, and resumed:`,
    );
    inbox.isGone = false;
    await this.#resume(dead);
    const { redrive } = await deliveries.createRedrive({ tenantId, redrive: { subscriptionId: id } });
    let job = redrive;
    const isDone = await until(async () => {
      job = (await deliveries.getRedrive({ tenantId, id: job?.id ?? "" })).redrive;
      return job?.state === RedriveState.SUCCEEDED;
    });
    if (!isDone) throw new Error(`the redrive of ${name} does not end`);
    say(`  ── redrive: ${job?.scannedCount} events looked at, ${job?.redrivenCount} made pending that it had missed`);
  }

  /** Nothing of a person stays but ids, types, order and times. */
  async erase(tenantId: string, userId: string, until: Until): Promise<void> {
    const { events } = this.#nuncio;
    let { erasure } = await events.eraseUser({ tenantId, userId });
    const isDone = await until(async () => {
      erasure = (await events.getErasure({ tenantId, id: erasure?.id ?? "" })).erasure;
      return erasure?.state === ErasureState.SUCCEEDED;
    });
    if (!isDone) throw new Error(`the erasure of ${userId} does not end`);
    const kept = (await events.listEvents({ tenantId, userId, pageSize: 100 })).events;
    const telling = kept.filter(
      ({ user, previous, reason }) =>
        user?.displayName !== undefined || user?.emails.length !== 0 || previous !== undefined || reason !== undefined,
    );
    if (telling.length > 0) throw new Error(`${telling.length} events still tell something about ${userId}`);
    say(`${userId} of ${tenantId} is erased: ${erasure?.erasedCount} events have kept ids, types, order and times.`);
  }
}
