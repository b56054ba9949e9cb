import { spawn } from "node:child_process";
import { on, once } from "node:events";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { createInterface } from "node:readline";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type ProcessEnd, restartDelayMs, type SupervisedProcess, superviseProcess } from "../../src/supervisor.ts";

const supervisorModule = new URL("../../src/supervisor.ts", import.meta.url).href;

// A stand-in connects to `meeting` and writes its pid: arriving and leaving are then events to wait for. When the
// meeting ends, so does every stand-in, also one that a failed test forgot.
const arrive = `const meeting = require("node:net").connect(process.env.MEETING);
  meeting.on("close", () => process.exit(9)).write(process.pid + "\\n");`;

let meeting: Server;
let arrivals: AsyncIterator<Guest>;
let sockets: Socket[];
let supervised: SupervisedProcess | undefined;

interface Guest {
  pid: number;
  left: Promise<unknown>;
}

beforeEach(async () => {
  meeting = createServer().listen(0, "127.0.0.1");
  await once(meeting, "listening");
  arrivals = guestsOf(meeting);
  sockets = [];
});

afterEach(async () => {
  await supervised?.stop("SIGKILL", 0);
  supervised = undefined;
  for (const socket of sockets) socket.destroy();
  meeting.close();
});

describe("a supervised process", () => {
  it("is started again when it dies", async () => {
    supervise(`${arrive} setInterval(() => {}, 1000);`);
    const first = await nextGuest();
    process.kill(first.pid, "SIGKILL");
    const second = await nextGuest();

    expect(second.pid).not.toBe(first.pid);
    expect(supervised?.pid()).toBe(second.pid);
  });

  it("waits longer with each death in a row", async () => {
    const delays: number[] = [];
    const third = Promise.withResolvers<void>();
    supervise("process.exit(1)", {
      restartDelayMs: (deathsInARow) => {
        delays.push(deathsInARow);
        if (delays.length === 3) third.resolve();
        return 0;
      },
    });
    await third.promise;

    expect(delays).toEqual([1, 2, 3]);
    expect([1, 2, 3, 4, 5, 6, 7, 40].map(restartDelayMs)).toEqual([0, 250, 500, 1000, 2000, 4000, 5000, 5000]);
  });

  it("tells each death with the last lines that the process wrote", async () => {
    const death = Promise.withResolvers<ProcessEnd>();
    supervise('process.stdout.write("one\\n"); process.stderr.write("no newline at the end"); process.exitCode = 3', {
      onDeath: death.resolve,
    });

    expect(await death.promise).toMatchObject({ name: "stand-in", code: 3, signal: null, deathsInARow: 1 });
    expect((await death.promise).lastLines.toSorted()).toEqual(["no newline at the end", "one"]);
  });

  it("ends by itself on SIGTERM and stays ended", async () => {
    const log = supervise(`${arrive} process.on("SIGTERM", () => { console.log("drained"); process.exit(0); });`);
    const guest = await nextGuest();
    await supervised?.stop("SIGTERM", 10_000);

    await guest.left;
    expect(log).toEqual(["stand-in | drained"]);
    expect(supervised?.pid()).toBeUndefined();
  });

  it("is killed when it has not ended within the limit", async () => {
    const log = supervise(`process.on("SIGTERM", () => {}); ${arrive} setInterval(() => {}, 1000);`);
    const guest = await nextGuest();
    await supervised?.stop("SIGTERM", 50);

    await guest.left;
    expect(log).toEqual(["stand-in | still runs 50 ms after SIGTERM; it is killed"]);
  });

  it("is not started again after a stop between a death and the restart", async () => {
    const death = Promise.withResolvers<ProcessEnd>();
    const log = supervise("process.exit(1)", { onDeath: death.resolve, restartDelayMs: () => 60_000 });
    await death.promise;
    await supervised?.stop("SIGTERM", 10_000);

    expect(supervised?.pid()).toBeUndefined();
    expect(log).toEqual(["stand-in | ended with exit 1; starts again in 60000 ms"]);
  });

  it("is not started again after exit 78, which is reported", async () => {
    const fatal = Promise.withResolvers<ProcessEnd>();
    supervise('console.log("NUNCIO_LISTEN is not an address"); process.exit(78)', {
      onDeath: () => fatal.reject(new Error("was to be started again")),
      onFatal: fatal.resolve,
    });

    expect(await fatal.promise).toMatchObject({ code: 78, lastLines: ["NUNCIO_LISTEN is not an address"] });
    expect(supervised?.pid()).toBeUndefined();
    await supervised?.stop("SIGTERM", 10_000);
  });

  it("does not survive a supervisor that is killed", async () => {
    const child = `import(${JSON.stringify(supervisorModule)}).then(({ exitWithParent }) => {
      exitWithParent(() => process.exit(0)); ${arrive} setInterval(() => {}, 1000); });`;
    const parent = `import(${JSON.stringify(supervisorModule)}).then(({ superviseProcess }) => superviseProcess({
      name: "child", command: process.execPath, args: ["-e", ${JSON.stringify(child)}], env: process.env,
      log: () => {}, onFatal: () => {} }));`;
    const supervisor = spawn(process.execPath, ["-e", parent], { env: environment(), stdio: "ignore" });
    const guest = await nextGuest();
    supervisor.kill("SIGKILL");

    await guest.left;
  });
});

describe("exitWithParent", () => {
  it("does not keep a process alive that has nothing left to do", async () => {
    const child = spawn(
      process.execPath,
      ["-e", `import(${JSON.stringify(supervisorModule)}).then(({ exitWithParent }) => exitWithParent(() => {}))`],
      { env: { ...environment(), NUNCIO_EXIT_WITH_PARENT: "1" }, stdio: ["pipe", "ignore", "inherit"] },
    );

    expect(await once(child, "exit")).toEqual([0, null]);
  });
});

function supervise(script: string, options: Partial<Parameters<typeof superviseProcess>[0]> = {}): string[] {
  const log: string[] = [];
  supervised = superviseProcess({
    name: "stand-in",
    command: process.execPath,
    args: ["-e", script],
    env: environment(),
    log: (line) => log.push(line),
    onFatal: () => undefined,
    ...options,
  });
  return log;
}

function environment(): NodeJS.ProcessEnv {
  const { port } = meeting.address() as AddressInfo;
  return { PATH: process.env.PATH, MEETING: String(port) };
}

async function nextGuest(): Promise<Guest> {
  return (await arrivals.next()).value;
}

async function* guestsOf(server: Server): AsyncGenerator<Guest> {
  for await (const [socket] of on(server, "connection") as AsyncIterable<[Socket]>) {
    sockets.push(socket);
    const left = once(socket, "close");
    socket.on("error", () => undefined);
    const [pid] = await once(createInterface({ input: socket }), "line");
    yield { pid: Number(pid), left };
  }
}
