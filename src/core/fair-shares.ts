/** How to read a lane. */
export type LaneView<Lane> = {
  /** How many may begin right now, by everything that limits the lane itself; 0 for none. */
  readonly room: (lane: Lane) => number;
  /** Whether it gave all that it was asked for the last time. */
  readonly hasMore: (lane: Lane) => boolean;
  /** Whether it has succeeded lately. */
  readonly isProven: (lane: Lane) => boolean;
};

/** A tenant with its lanes, those that were not picked for longest first. */
export type TenantDemand<Lane> = {
  readonly inFlight: number;
  readonly lanes: ReadonlyMap<unknown, Lane>;
};

export type Slots = {
  readonly total: number;
  readonly free: number;
  /** How many are taken by lanes that have not succeeded lately. */
  readonly unproven: number;
};

export type Share<Lane> = { readonly lane: Lane; readonly quota: number };

/**
 * A lane that has more than it was asked for gives at least this many the next time: its lock, its look-up and its descent
 * into the index then serve several rows. Measured with 100 lanes: 40 µs of Postgres' CPU per delivery where one or two
 * rows a time took 59, and a fifth more deliveries.
 */
const HANDFUL = 8;
/** What has not lately succeeded gets at most this part of the slots, all of it together. */
const UNPROVEN_PART = 0.25;
/** A tenant that has this part of the slots, and so many at least, comes after all that have less. */
const NOISY_PART = 0.1;
const NOISY_LEAST = 30;
/** One claim names no more lanes than this: each takes a place in Postgres' table of locks until the claim commits. */
export const MOST_LANES = 1_000;

export function isNoisy(inFlight: number, { total }: Pick<Slots, "total">): boolean {
  return inFlight >= NOISY_LEAST && inFlight > total * NOISY_PART;
}

/** How many slots of all those that have not lately succeeded may have together. */
export function unprovenSlots(total: number): number {
  return Math.max(1, Math.floor(total * UNPROVEN_PART));
}

/**
 * Deals the free slots out: first to tenants, those that were not picked for longest first and quiet ones before noisy
 * ones, then among each one's lanes. An even share each, but a handful at least for a lane with more to give, so that who
 * has a backlog takes turns and who was quiet waits behind nobody's backlog.
 */
export function shareSlots<Lane>(
  tenants: readonly TenantDemand<Lane>[],
  slots: Slots,
  view: LaneView<Lane>,
): Share<Lane>[] {
  const shares: Share<Lane>[] = [];
  let left = slots.free;
  let unprovenLeft = unprovenSlots(slots.total) - slots.unproven;
  const roomOf = (lane: Lane) => {
    const room = view.room(lane);
    return room > 0 && !view.isProven(lane) ? Math.min(room, unprovenLeft) : room;
  };

  for (const noisy of [false, true]) {
    const turn = tenants.filter((tenant) => isNoisy(tenant.inFlight, slots) === noisy && wants(tenant, roomOf));
    for (const [i, tenant] of turn.entries()) {
      let part = Math.ceil(left / (turn.length - i));
      const ready = firstReady(tenant, roomOf, part);
      for (const [j, lane] of ready.entries()) {
        const even = Math.max(view.hasMore(lane) ? HANDFUL : 1, Math.ceil(part / (ready.length - j)));
        const quota = Math.min(roomOf(lane), left, even);
        if (quota <= 0) continue;
        shares.push({ lane, quota });
        left -= quota;
        part -= quota;
        if (!view.isProven(lane)) unprovenLeft -= quota;
        if (left === 0 || shares.length === MOST_LANES) return shares;
        if (part <= 0) break;
      }
    }
  }
  return shares;
}

/** As many of the tenant's lanes as its part can serve. */
function firstReady<Lane>({ lanes }: TenantDemand<Lane>, roomOf: (lane: Lane) => number, part: number): Lane[] {
  const ready: Lane[] = [];
  for (const lane of lanes.values()) {
    if (roomOf(lane) > 0 && ready.push(lane) >= part) break;
  }
  return ready;
}

function wants<Lane>({ lanes }: TenantDemand<Lane>, roomOf: (lane: Lane) => number): boolean {
  for (const lane of lanes.values()) if (roomOf(lane) > 0) return true;
  return false;
}
