import type { Fault } from "./errors.ts";

const TENANT_ID_PATTERN = /^[A-Za-z0-9_-]{1,64}$/;

/** Whether the text has more than `limit` Unicode code points, without counting what is short anyway. */
export function codePointsExceed(text: string, limit: number): boolean {
  if (text.length <= limit) return false;
  if (text.length > limit * 2) return true;
  let count = 0;
  for (const _ of text) count += 1;
  return count > limit;
}

export function checkText(text: string, limit: number, path: string, faults: Fault[]): void {
  if (codePointsExceed(text, limit)) faults.push({ path, description: `must have at most ${limit} characters` });
  else if (!text.isWellFormed()) faults.push({ path, description: "has half of a surrogate pair in it" });
}

/** For what is stored, or looked up, as text of its own: Postgres has no U+0000. (In a body it is escaped, and welcome.) */
export function checkStorableText(text: string, limit: number, path: string, faults: Fault[]): void {
  checkText(text, limit, path, faults);
  if (text.includes("\0")) faults.push({ path, description: "must not hold U+0000" });
}

export function checkTenantId(tenantId: string, path: string, faults: Fault[]): void {
  if (!TENANT_ID_PATTERN.test(tenantId)) {
    faults.push({ path, description: "must be 1–64 of A-Za-z0-9_-" });
  }
}
