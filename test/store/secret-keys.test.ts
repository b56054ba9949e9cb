import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { Webhook } from "standardwebhooks";
import { describe, expect, it } from "vitest";
import { openSecretBox, parseKeyring, SecretKeyError } from "../../src/core/encryption.ts";
import type { Secret } from "../../src/core/secret.ts";
import { appendEvents } from "../../src/store/outbox/append.ts";
import { checkSecretKeys, resealSecrets } from "../../src/store/secret-keys.ts";
import { TEST_SECRET_KEYS, type TestDatabase, useDatabase } from "../support/database.ts";
import { addSubscription, draftEvent, newTenant, toRow } from "../support/fixtures.ts";
import { startLoop } from "../support/loop.ts";
import { openReceiver, type Received } from "../support/receiver.ts";

const db = useDatabase();

const KEY_1 = TEST_SECRET_KEYS;
const KEY_2 = `k2:${Buffer.alloc(32, 22).toString("base64")}`;
const KEY_3 = `k3:${Buffer.alloc(32, 33).toString("base64")}`;
const boxOf = (...keys: string[]) => openSecretBox(parseKeyring(keys.join()), randomBytes);
/** The file's database, as a process with these keys sees it. */
const under = (...keys: string[]): TestDatabase => ({ ...db, box: boxOf(...keys) });

type Hook = { readonly path: string; readonly secret: string; readonly header: string; readonly lane: number };

/** A subscription with a secret header, which its receiver knows by its path. */
async function addHook(on: TestDatabase, tenant: string, receiverUrl: string, n: number): Promise<Hook> {
  const header = `canary-${randomBytes(12).toString("hex")}`;
  const path = `/hook/${n}`;
  const { secret, lane } = await addSubscription(on, tenant, {
    url: new URL(path, receiverUrl).href,
    headers: { "x-receiver-key": header },
  });
  return { path, secret, header, lane };
}

async function publish(tenant: string, count: number) {
  const events = Array.from({ length: count }, () => draftEvent(tenant));
  await appendEvents(db.server.hot, events.map(toRow), { maxPendingMs: 7 * 86_400_000 });
}

function verify(hooks: readonly Hook[], { path, headers, body }: Received) {
  const hook = hooks.find((one) => one.path === path) as Hook;
  expect(headers["x-receiver-key"]).toBe(hook.header);
  new Webhook(hook.secret).verify(body, headers as Record<string, string>);
}

/** Every row of every table as text; bytes show as hex. */
async function dumpEverything(): Promise<string> {
  const tables = await db.admin`
    SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1`;
  let dump = "";
  for (const { name } of tables) {
    const rows = await db.admin.unsafe(`SELECT t::text AS row FROM ${name} AS t`);
    dump += rows.map(({ row }) => `${name}: ${row}\n`).join("");
  }
  return dump;
}

/** A secret as it is, and as it would look in hex, in base64, and in a bytea. */
function spellingsOf(secret: string): string[] {
  const bytes = [Buffer.from(secret), Buffer.from(secret.replace(/^whsec_/, ""), "base64")];
  return [
    secret,
    secret.replace(/^whsec_/, ""),
    ...bytes.flatMap((raw) => [raw.toString("hex"), raw.toString("base64").replace(/.?=*$/, "")]),
  ];
}

async function expectNoSecretIn(hooks: readonly Hook[]) {
  const dump = (await dumpEverything()).toLowerCase();
  for (const { path, secret, header } of hooks) {
    expect(dump).toContain(path);
    const spellings = [...spellingsOf(secret), ...spellingsOf(header).slice(0, 4)];
    for (const spelling of spellings) expect(dump).not.toContain(spelling.toLowerCase());
  }
}

async function resealAll(
  box: ReturnType<typeof boxOf>,
  batch: number,
  between: () => Promise<unknown> = async () => 0,
) {
  let changed = -1;
  while (changed !== 0) {
    changed = await resealSecrets(db.server.hot, box, batch);
    await between();
  }
}

/** Which keys what is stored needs. */
async function usedKeys(): Promise<string[]> {
  const rows = await db.admin`
    SELECT DISTINCT key_id FROM (
      SELECT key_id FROM nuncio.signing_secrets
      UNION ALL SELECT headers_key_id FROM nuncio.webhook_subscriptions WHERE headers_key_id IS NOT NULL
    ) AS x ORDER BY key_id`;
  return rows.map((row) => row.key_id);
}

/** `src/reencrypt-secrets.ts` as a process of its own. */
function runReencrypt(url: Secret, keys: string | undefined): Promise<{ code: number | null; output: string }> {
  const node = new URL("../../node_modules/.bin/node", import.meta.url).pathname;
  const entrypoint = new URL("../../src/reencrypt-secrets.ts", import.meta.url).pathname;
  const { PATH = "" } = process.env;
  const env = { PATH, NUNCIO_DATABASE_URL: url.reveal(), ...(keys !== undefined && { NUNCIO_SECRET_KEYS: keys }) };
  return new Promise((resolve) => {
    const child = spawn(node, [entrypoint], { env, stdio: ["ignore", "pipe", "inherit"] });
    let output = "";
    child.stdout.on("data", (text) => {
      output += text;
    });
    child.once("close", (code) => resolve({ code, output }));
  });
}

describe("re-encryption to a new key", () => {
  it("[B32] happens under load, without a delivery that fails, and lets the old key go", async () => {
    const tenant = newTenant();
    const receiver = await openReceiver();
    const hooks: Hook[] = [];
    for (let n = 0; n < 20; n++) hooks.push(await addHook(under(KEY_1), tenant, receiver.url, n));
    await expectNoSecretIn(hooks);
    const ring = boxOf(KEY_2, KEY_1);
    const loop = startLoop(under(KEY_2, KEY_1), { maxInFlight: 4 });

    let published = 0;
    let busy = true;
    let nudge: () => void = () => undefined;
    const load = (async () => {
      while (busy) {
        // A new revision makes the worker open the secrets again, in whatever state they are.
        await db.admin`UPDATE nuncio.webhook_subscriptions SET revision = revision + 1`;
        await publish(tenant, 1);
        published += hooks.length;
        nudge();
        await receiver.until(() => receiver.received.length >= published);
      }
    })();
    const nextRound = () =>
      new Promise<void>((resolve) => {
        nudge = resolve;
      });
    await resealAll(ring, 3, nextRound);
    busy = false;
    await load;
    await receiver.until(() => receiver.received.length === published);
    await loop.stop();

    expect(published).toBeGreaterThan(hooks.length * 10);
    for (const received of receiver.received) verify(hooks, received);
    expect(loop.events.filter(({ kind }) => kind === "failed")).toEqual([]);
    expect(await usedKeys()).toEqual(["k2"]);
    await expectNoSecretIn(hooks);

    await checkSecretKeys(db.worker.hot, boxOf(KEY_2));
    const refused = checkSecretKeys(db.worker.hot, boxOf(KEY_1));
    await expect(refused).rejects.toThrow(SecretKeyError);
    await expect(refused).rejects.toThrow('no key "k2"');

    const after = startLoop(under(KEY_2));
    const before = receiver.received.length;
    await publish(tenant, 2);
    await receiver.until(() => receiver.received.length === before + 2 * hooks.length);
    for (const received of receiver.received.slice(before)) verify(hooks, received);
    await after.stop();
  });

  it("finds what a server with the old first key still seals meanwhile", async () => {
    const tenant = newTenant();
    const late: Hook[] = [];
    await resealAll(boxOf(KEY_2, KEY_1), 1, async () => {
      if (late.length < 5) late.push(await addHook(under(KEY_1), tenant, "http://127.0.0.1:9/", 100 + late.length));
    });
    // The first round found nothing and ended before the one that was added then; one more run takes it.
    await resealAll(boxOf(KEY_2, KEY_1), 1);
    expect(late.length).toBeGreaterThan(0);
    expect(await usedKeys()).toEqual(["k2"]);
    await checkSecretKeys(db.server.hot, boxOf(KEY_2));
  });

  it("does not put back a secret that was replaced while it ran", async () => {
    const tenant = newTenant();
    const { lane } = await addHook(under(KEY_1), tenant, "http://127.0.0.1:9/", 200);
    const replaced = Buffer.from("what another transaction has stored meanwhile");
    // Holds the row that the re-encryption has read already; its update waits, and then sees other bytes.
    const running = await db.admin.begin(async (tx) => {
      await tx`UPDATE nuncio.signing_secrets SET ciphertext = ${replaced} WHERE subscription_key = ${lane}`;
      const resealing = resealSecrets(db.server.hot, boxOf(KEY_2, KEY_1), 100);
      const isBlocked = async () =>
        (await db.admin`SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%signing_secrets%'`)
          .length;
      await expect.poll(isBlocked, { timeout: 10_000, interval: 10 }).toBeGreaterThan(0);
      return { resealing };
    });
    await running.resealing;
    const [row] =
      await db.admin`SELECT key_id, ciphertext FROM nuncio.signing_secrets WHERE subscription_key = ${lane}`;
    expect(row).toEqual({ key_id: "k1", ciphertext: replaced });
    await db.admin`DELETE FROM nuncio.signing_secrets WHERE subscription_key = ${lane}`;
  });

  it("reaches the secrets of deleted subscriptions, which would need the old key for ever", async () => {
    const { lane } = await addHook(under(KEY_1), newTenant(), "http://127.0.0.1:9/", 300);
    await db.admin`UPDATE nuncio.webhook_subscriptions SET deleted_at = now() WHERE subscription_key = ${lane}`;
    await resealAll(boxOf(KEY_2, KEY_1), 100);
    expect(await usedKeys()).toEqual(["k2"]);
  });

  it("changes nothing when a key is missing, and names it", async () => {
    await addHook(under(KEY_1), newTenant(), "http://127.0.0.1:9/", 400);
    const dump = () => db.admin`SELECT key_id, ciphertext FROM nuncio.signing_secrets ORDER BY secret_key`;
    const before = [...(await dump())];
    await expect(resealSecrets(db.server.hot, boxOf(KEY_3), 100)).rejects.toThrow(SecretKeyError);
    expect([...(await dump())]).toEqual(before);
    await resealAll(boxOf(KEY_2, KEY_1), 100);
  });
});

describe("checkSecretKeys", () => {
  it("[B32] refuses a key with the right id and other bytes, and names the id alone", async () => {
    const wrong = Buffer.alloc(32, 99).toString("base64");
    const refused = checkSecretKeys(db.worker.hot, boxOf(`k2:${wrong}`));
    await expect(refused).rejects.toThrow(SecretKeyError);
    await expect(refused).rejects.toThrow(/^key "k2" of NUNCIO_SECRET_KEYS does not decrypt a stored secret$/);
  });
});

describe("src/reencrypt-secrets.ts", () => {
  it("[B32] seals everything under the first key, says how many it did, and finds nothing to do the next time", async () => {
    const hook = await addHook(under(KEY_1), newTenant(), "http://127.0.0.1:9/", 500);
    const [counted] = await db.admin`
      SELECT (SELECT count(*) FROM nuncio.signing_secrets)
        + (SELECT count(*) FROM nuncio.webhook_subscriptions WHERE headers_key_id IS NOT NULL) AS sealed`;
    const sealed = Number(counted?.sealed);
    expect(sealed).toBeGreaterThan(40);

    const keys = [KEY_3, KEY_2, KEY_1].join();
    const first = await runReencrypt(db.url, keys);
    expect(first.code).toBe(0);
    expect(JSON.parse(first.output)).toMatchObject({ msg: "secrets.resealed", resealed: sealed, keyId: "k3" });
    expect(await usedKeys()).toEqual(["k3"]);
    await checkSecretKeys(db.server.hot, boxOf(KEY_3));
    await expectNoSecretIn([hook]);

    const second = await runReencrypt(db.url, keys);
    expect(JSON.parse(second.output)).toMatchObject({ msg: "secrets.resealed", resealed: 0 });
    expect(second.code).toBe(0);
  });

  it("ends with a fault that names the missing key, and shows none", async () => {
    const { code, output } = await runReencrypt(db.url, KEY_1);
    expect(code).not.toBe(0);
    expect(output).toContain('no key \\"k3\\"');
    expect(output).not.toContain(KEY_1.slice(3));
    expect(await usedKeys()).toEqual(["k3"]);
  });

  it.each([undefined, "", "k1:short"])("ends with 78 for keys that are none: %j", async (keys) => {
    const { code, output } = await runReencrypt(db.url, keys);
    expect(code).toBe(78);
    expect(output).toContain("NUNCIO_SECRET_KEYS");
    expect(output).not.toContain("short");
  });
});
