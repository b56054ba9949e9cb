import { type AddressInfo, createServer } from "node:net";

/** The port if one can listen on it now (0: any that is free), else undefined. */
export async function freePort(host: string, port: number): Promise<number | undefined> {
  const server = createServer();
  const { promise, resolve } = Promise.withResolvers<number | undefined>();
  server.once("error", () => resolve(undefined));
  server.listen(port, host, () => {
    const { port: bound } = server.address() as AddressInfo;
    server.close(() => resolve(bound));
  });
  return promise;
}

/** Any port that is free now. */
export async function anyFreePort(host: string): Promise<number> {
  const port = await freePort(host, 0);
  if (port === undefined) throw new Error(`${host} has no free port left.`);
  return port;
}
