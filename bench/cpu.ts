import { readdir, readFile } from "node:fs/promises";

/** The kernel counts in hundredths of a second on every platform that Node runs on. */
const MS_PER_TICK = 10;

type Times = { readonly parent: number; readonly ownMs: number; readonly endedChildrenMs: number };

/** CPU that a process has used, all its threads included. */
export async function cpuMs(pid: number): Promise<number> {
  return (await readTimes(pid))?.ownMs ?? 0;
}

/** CPU of a process and its children, the ended ones included. */
export async function cpuMsOfChildren(parent: number): Promise<number> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name)).map(Number);
  const times = await Promise.all(pids.map(readTimes));
  const children = times.filter((time) => time?.parent === parent);
  const own = times[pids.indexOf(parent)];
  return children.reduce((sum, time) => sum + (time?.ownMs ?? 0), (own?.ownMs ?? 0) + (own?.endedChildrenMs ?? 0));
}

/** Fields 4 and 14–17 of /proc/<pid>/stat (man proc_pid_stat), counted from behind the name, which may hold anything. */
async function readTimes(pid: number): Promise<Times | undefined> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  if (text === undefined) return undefined;
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const ms = (field: number) => Number(fields[field - 3]) * MS_PER_TICK;
  return { parent: Number(fields[1]), ownMs: ms(14) + ms(15), endedChildrenMs: ms(16) + ms(17) };
}
