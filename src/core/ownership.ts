/**
 * Which of the workers owns a lane: the one with the highest mix of the two (rendezvous hashing). Everybody who knows the
 * same workers names the same one, each gets an even part, and when one comes or goes only its part moves.
 *
 * Undefined if there is none. The lanes of a worker that has died are spread over all the others.
 */
export function ownerOf(lane: number, workers: readonly string[]): string | undefined {
  let owner: string | undefined;
  let best = -1;
  for (const worker of workers) {
    const weight = mix(lane, worker);
    if (weight > best || (weight === best && worker < (owner ?? ""))) {
      owner = worker;
      best = weight;
    }
  }
  return owner;
}

/** 32 bits that depend on every bit of both (FNV-1a, then the finalizer of MurmurHash3). */
function mix(lane: number, worker: string): number {
  let bits = 0x811c9dc5 ^ lane;
  for (let i = 0; i < worker.length; i += 1) bits = Math.imul(bits ^ worker.charCodeAt(i), 0x01000193);
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return (bits ^ (bits >>> 16)) >>> 0;
}
