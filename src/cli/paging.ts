import { InvalidArgumentError } from "commander";
import type { Output } from "./output.ts";

/** What a List RPC takes and gives, whatever it lists. */
type PageRequest = { readonly pageSize: number; readonly pageToken: string };
type Page<Item> = { readonly items: readonly Item[]; readonly nextPageToken: string };

const LARGEST_PAGE = 1_000;

/** Up to `limit` items, page by page, and whether there are more. A page may be empty and not the last. */
export async function pagesOf<Item>(
  limit: number,
  list: (page: PageRequest) => Promise<Page<Item>>,
): Promise<{ items: Item[]; hasMore: boolean }> {
  const items: Item[] = [];
  let pageToken = "";
  do {
    const page = await list({ pageSize: Math.min(limit - items.length, LARGEST_PAGE), pageToken });
    items.push(...page.items);
    pageToken = page.nextPageToken;
  } while (pageToken !== "" && items.length < limit);
  return { items, hasMore: pageToken !== "" };
}

/** On standard error, under `--json` too: a script must not take a part for all. */
export function noteMore(out: Output, limit: number, hasMore: boolean): void {
  if (hasMore) out.note(`Only the newest ${limit}: --limit shows more.`);
}

export function parseLimit(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new InvalidArgumentError("Expected a whole number from 1 on.");
  return Number(text);
}
