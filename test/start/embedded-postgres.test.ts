import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdir, mkdtemp, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import postgres from "postgres";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "../../src/embedded-postgres/embedded-postgres.ts";

const module = new URL("../../src/embedded-postgres/embedded-postgres.ts", import.meta.url).href;

let project: string;
let running: EmbeddedPostgres | undefined;

// initdb takes most of the time, so a group of tests shares one cluster; each starts and stops it.
beforeAll(async () => {
  project = await newProject(0o755);
});

afterEach(async () => {
  await running?.stop();
  running = undefined;
});

afterAll(() => rm(project, { recursive: true }));

describe("the embedded Postgres", () => {
  it("starts where an initdb was interrupted, with what the system relies on", async () => {
    const interrupted = join(project, ".nuncio", "postgres", "new-1234");
    await mkdir(interrupted, { recursive: true });

    const { url } = await start();
    const [settings] = await query(
      url,
      (sql) => sql`select current_user as user, current_database() as database,
        current_setting('fsync') as fsync, current_setting('server_encoding') as encoding,
        current_setting('listen_addresses') as listen, current_setting('unix_socket_directories') as sockets`,
    );
    expect(settings).toEqual({
      user: "nuncio",
      database: "nuncio",
      fsync: "on",
      encoding: "UTF8",
      listen: "127.0.0.1",
      sockets: "",
    });
    await expect(stat(interrupted)).rejects.toThrow("ENOENT");
  });

  it("keeps its data and its port across restarts", async () => {
    const first = await start();
    await query(first.url, (sql) => sql`create table restarted as select 42 as answer`);
    await first.stop();
    expect(await first.isRunning()).toBe(false);

    const second = await start();
    expect(second.url).toBe(first.url);
    expect(await query(second.url, (sql) => sql`select answer from restarted`)).toEqual([{ answer: 42 }]);
  });

  it("lets nobody in without the password, which only its owner reads", async () => {
    const wrong = new URL((await start()).url);
    wrong.password = "wrong";

    await expect(query(wrong.href, (sql) => sql`select 1`)).rejects.toThrow(/password authentication failed/);
    expect((await stat(join(project, ".nuncio", "postgres-password"))).mode & 0o777).toBe(0o600);
  });

  it("takes another port when its own is taken", async () => {
    const first = await start();
    await first.stop();
    const other = createServer().listen(Number(new URL(first.url).port), "127.0.0.1");
    await once(other, "listening");

    const second = await start();
    expect(new URL(second.url).port).not.toBe(new URL(first.url).port);
    expect(await query(second.url, (sql) => sql`select 1 as one`)).toEqual([{ one: 1 }]);
    other.close();
  });

  it("outlives a starter that is killed, and is adopted by the next one", async () => {
    const script = `import { startEmbeddedPostgres } from ${JSON.stringify(module)};
      const { url } = await startEmbeddedPostgres({ directory: process.argv[1], log: () => {} });
      console.log(url);
      setInterval(() => {}, 1000);`;
    const starter = spawn(process.execPath, ["--input-type=module", "-e", script, join(project, ".nuncio")], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const [url] = await once(createInterface({ input: starter.stdout }), "line");
    const startedAt = await query(url, (sql) => sql`select pg_postmaster_start_time() as at`);
    starter.kill("SIGKILL");
    await once(starter, "exit");

    const adopted = await start();
    expect(adopted.url).toBe(url);
    expect(await query(adopted.url, (sql) => sql`select pg_postmaster_start_time() as at`)).toEqual(startedAt);
    await adopted.stop();
    expect(await adopted.isRunning()).toBe(false);
  });

  it("starts after a crash, even when the old process id belongs to someone else by now", async () => {
    const crashed = await start();
    await query(crashed.url, (sql) => sql`create table crashed as select 42 as answer`);
    const pidFile = join(crashed.dataDirectory, "postmaster.pid");
    const content = await readFile(pidFile, "utf8");
    const disconnected = Promise.withResolvers<void>();
    const connection = postgres(crashed.url, { max: 1, onclose: () => disconnected.resolve() });
    await connection`select 1`;
    process.kill(Number.parseInt(content, 10), "SIGKILL");
    await disconnected.promise;
    await connection.end({ timeout: 0 });
    await writeFile(pidFile, content.replace(/^\d+/, String(process.pid)));
    expect(await crashed.isRunning()).toBe(false);

    const next = await start();
    expect(await query(next.url, (sql) => sql`select answer from crashed`)).toEqual([{ answer: 42 }]);
  });

  it("says what is missing when the password of existing data is gone", async () => {
    const file = join(project, ".nuncio", "postgres-password");
    await rename(file, `${file}.lost`);
    try {
      await expect(start()).rejects.toThrow(/postgres-password is missing/);
    } finally {
      await rename(`${file}.lost`, file);
    }
  });
});

describe.skipIf(process.getuid?.() !== 0)("as root, in a folder that only root can enter", () => {
  it("keeps its data elsewhere, says so, and finds it again", async () => {
    const secluded = await newProject(0o700);
    const log: string[] = [];
    const first = await start(secluded, log);
    const home = dirname(first.dataDirectory);
    try {
      expect(home).not.toContain(secluded);
      expect(log).toEqual([expect.stringContaining(`its data is in ${home}`)]);
      await query(first.url, (sql) => sql`create table kept as select 42 as answer`);
      await first.stop();

      const second = await start(secluded);
      expect(await query(second.url, (sql) => sql`select answer from kept`)).toEqual([{ answer: 42 }]);
      expect((await stat(home)).uid).not.toBe(0);
      await second.stop();
    } finally {
      await running?.stop();
      await rm(home, { recursive: true });
      await rm(secluded, { recursive: true });
    }
  });
});

async function newProject(mode: number): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "nuncio-"));
  await chmod(directory, mode);
  return directory;
}

async function start(folder = project, log: string[] = []): Promise<EmbeddedPostgres> {
  running = await startEmbeddedPostgres({ directory: join(folder, ".nuncio"), log: (line) => log.push(line) });
  return running;
}

async function query<Row>(url: string, ask: (sql: postgres.Sql) => PromiseLike<Row>): Promise<Row> {
  const sql = postgres(url, { max: 1 });
  try {
    return await ask(sql);
  } finally {
    await sql.end({ timeout: 1 });
  }
}
