import { afterAll } from "vitest";

const steps: (() => unknown)[] = [];

/** Runs when the test file is done, last in first out. (An `afterAll` that is called inside a test never runs.) */
export function cleanUp(step: () => unknown): void {
  steps.push(step);
}

afterAll(async () => {
  for (const step of steps.reverse()) await step();
});
