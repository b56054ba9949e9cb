import { existsSync } from "node:fs";
import { chmod, mkdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { makeReachable, OUTSIDE, OWN_POSTGRES_HINT, shortHash } from "./outside.ts";
import { type Account, run, runOrThrow } from "./programs.ts";

const UNPRIVILEGED_ACCOUNTS = ["postgres", "_postgres", "nobody"];

/** Data that exists stays where it is and belongs to whom it belongs; new data goes beside the project's other state. */
export async function chooseHome(
  directory: string,
  password: string,
  log: (line: string) => void,
): Promise<{ home: string; account: Account }> {
  const inside = join(directory, "postgres");
  if (process.getuid?.() !== 0) {
    await chmod(directory, 0o700);
    await mkdir(inside, { recursive: true, mode: 0o700 });
    return { home: inside, account: undefined };
  }
  // The password is part of the name: who removes `directory` to begin anew gets new data here too.
  const outside = join(OUTSIDE, shortHash(`${directory}\0${password}`));
  const existing = [inside, outside].find(isInitialised);
  const account = (await ownerOf(existing)) ?? (await unprivilegedAccount());
  // Not ours alone to enter: the account passes through on its way to `inside`. The files in it stay 0600.
  await chmod(directory, 0o711);

  const home = existing ?? ((await canEnter(account, directory)) ? inside : outside);
  if (home === outside) {
    await makeReachable(OUTSIDE);
    log(`Postgres runs as ${account.name}, who cannot enter ${directory}: its data is in ${outside}`);
  }
  await mkdir(home, { recursive: true, mode: 0o700 });
  if ((await stat(home)).uid !== account.uid) await runOrThrow("chown", ["-R", `${account.uid}:${account.gid}`, home]);
  if (!(await canEnter(account, home))) {
    throw new Error(
      `The data of Postgres is in ${home}, and the account it runs as (${account.name}) can no longer enter it: ` +
        `give the folders above it o+x. ${OWN_POSTGRES_HINT}`,
    );
  }
  return { home, account };
}

export function isInitialised(home: string): boolean {
  return existsSync(join(home, "data", "PG_VERSION"));
}

/** Root is no owner: that is a copy which root made, and it is handed to the account. */
async function ownerOf(home: string | undefined): Promise<Account> {
  if (home === undefined) return undefined;
  const { uid, gid } = await stat(home);
  if (uid === 0) return undefined;
  const { output } = await run("id", ["-un", String(uid)]);
  return { uid, gid, name: output.trim() };
}

/** An account that the machine has already; creating one is not ours to do. */
async function unprivilegedAccount(): Promise<NonNullable<Account>> {
  for (const name of UNPRIVILEGED_ACCOUNTS) {
    const [uid, gid] = await Promise.all([run("id", ["-u", name]), run("id", ["-g", name])]);
    if (uid.code === 0 && gid.code === 0) return { uid: Number(uid.output), gid: Number(gid.output), name };
  }
  throw new Error(
    `Postgres does not run as root, and this machine has none of the accounts ${UNPRIVILEGED_ACCOUNTS.join(", ")}: ` +
      `run as another user. ${OWN_POSTGRES_HINT}`,
  );
}

async function canEnter(account: Account, directory: string): Promise<boolean> {
  return (await run("/bin/sh", ["-c", 'cd "$0"', directory], { account, cwd: "/" })).code === 0;
}
