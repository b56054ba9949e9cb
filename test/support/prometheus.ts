import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, vi } from "vitest";
import { anyFreePort } from "../../src/free-port.ts";
import { cleanUp } from "./clean-up.ts";

/** Whether this machine has a Prometheus (Debian: `apt-get install prometheus`). */
export const HAS_PROMETHEUS = spawnSync("prometheus", ["--version"]).status === 0;

export type Prometheus = {
  /** Names of the alerts that fire right now. */
  firing(): Promise<Set<string>>;
  /** Whether it has a value of this metric by now. */
  knows(metric: string): Promise<boolean>;
};

/** A Prometheus of its own that scrapes these addresses each second and judges these rules as often. */
export async function startPrometheus(targets: readonly string[], rules: string): Promise<Prometheus> {
  const directory = await mkdtemp(join(tmpdir(), "nuncio-prometheus-"));
  cleanUp(() => rm(directory, { recursive: true, force: true }));
  await writeFile(join(directory, "rules.yml"), rules);
  await writeFile(
    join(directory, "prometheus.yml"),
    `global: { scrape_interval: 1s, evaluation_interval: 1s }
rule_files: [rules.yml]
scrape_configs:
  - job_name: nuncio
    static_configs: [{ targets: ${JSON.stringify(targets)} }]
`,
  );
  const address = `127.0.0.1:${await anyFreePort("127.0.0.1")}`;
  const child = spawn(
    "prometheus",
    [
      `--config.file=${join(directory, "prometheus.yml")}`,
      `--storage.tsdb.path=${join(directory, "data")}`,
      `--web.listen-address=${address}`,
      "--log.level=error",
    ],
    { stdio: ["ignore", "inherit", "inherit"] },
  );
  const ended = once(child, "exit");
  cleanUp(async () => {
    child.kill("SIGTERM");
    await ended;
  });
  await vi.waitFor(async () => expect((await fetch(`http://${address}/-/ready`)).status).toBe(200), {
    timeout: 20_000,
  });
  return {
    async knows(metric) {
      const response = await fetch(`http://${address}/api/v1/query?query=${metric}`);
      const { data } = (await response.json()) as { data: { result: unknown[] } };
      return data.result.length > 0;
    },
    async firing() {
      const response = await fetch(`http://${address}/api/v1/alerts`);
      const { data } = (await response.json()) as {
        data: { alerts: { state: string; labels: { alertname: string } }[] };
      };
      return new Set(data.alerts.filter(({ state }) => state === "firing").map(({ labels }) => labels.alertname));
    },
  };
}
