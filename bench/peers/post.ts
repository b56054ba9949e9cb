import { type Dispatcher, Pool } from "undici";

export type Post = { post(body: Buffer): Promise<void>; close(): Promise<void> };

/** The least that undici does for a POST: `dispatch` with a handler, no stream, no signal. It fails on anything but 200. */
export function openPost(url: string, connections: number): Post {
  const { origin, pathname } = new URL(url);
  const pool = new Pool(origin, { connections, pipelining: 1 });
  const headers = ["content-type", "application/json"];
  return {
    post: (body) =>
      new Promise((resolve, reject) => {
        pool.dispatch({ path: pathname, method: "POST", headers, body }, new Answer(resolve, reject));
      }),
    close: () => pool.close(),
  };
}

class Answer implements Dispatcher.DispatchHandler {
  readonly #resolve: () => void;
  readonly #reject: (error: Error) => void;
  #status = 0;

  constructor(resolve: () => void, reject: (error: Error) => void) {
    this.#resolve = resolve;
    this.#reject = reject;
  }

  onRequestStart(): void {}

  onResponseStart(_controller: Dispatcher.DispatchController, status: number): void {
    this.#status = status;
  }

  onResponseData(): void {}

  onResponseEnd(): void {
    if (this.#status === 200) this.#resolve();
    else this.#reject(new Error(`the receiver answered ${this.#status}`));
  }

  onResponseError(_controller: Dispatcher.DispatchController | null, error: Error): void {
    this.#reject(error);
  }
}
