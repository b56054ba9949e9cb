import { type Handler, openHandler } from "./handler.ts";

export type PostLoopRequest = {
  readonly url: string;
  readonly body: string;
  readonly atOnce: number;
  readonly requests: number;
  readonly handler: Handler;
};

process.on("message", async ({ url, body, atOnce, requests, handler }: PostLoopRequest) => {
  const { post, close } = openHandler(handler, url, atOnce);
  const bytes = Buffer.from(body);
  let left = requests;
  const loop = async () => {
    while (left-- > 0) await post(bytes);
  };
  await Promise.all(Array.from({ length: atOnce }, loop));
  await close();
  process.send?.("done");
});
process.send?.("ready");
