import { openPost } from "./post.ts";

export type PostLoopRequest = {
  readonly url: string;
  readonly body: string;
  readonly atOnce: number;
  readonly requests: number;
};

process.on("message", async ({ url, body, atOnce, requests }: PostLoopRequest) => {
  const { post, close } = openPost(url, atOnce);
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
