/** What a List RPC takes and gives, whatever it lists. */
type PageRequest = { readonly pageSize: number; readonly pageToken: string };
type Page<Item> = { readonly items: readonly Item[]; readonly nextPageToken: string };

const LARGEST_PAGE = 1_000;

/** Up to `limit` items, page by page. A page may be empty and not the last. */
export async function pagesOf<Item>(limit: number, list: (page: PageRequest) => Promise<Page<Item>>): Promise<Item[]> {
  const all: Item[] = [];
  let pageToken = "";
  do {
    const page = await list({ pageSize: Math.min(limit - all.length, LARGEST_PAGE), pageToken });
    all.push(...page.items);
    pageToken = page.nextPageToken;
  } while (pageToken !== "" && all.length < limit);
  return all;
}
