import { SETTINGS } from "../src/config.ts";

/** The page whose table comes from `src/config.ts`, so that neither can say what the other does not. */
export const SETTINGS_PAGE = "docs/settings.md";

const BEGIN = "<!-- settings: generated from src/config.ts by `npm run generate` -->";
const END = "<!-- /settings -->";

/** The page with its table made anew; throws if the place for it is missing. */
export function withSettingsTable(page: string): string {
  const begin = page.indexOf(BEGIN);
  const end = page.indexOf(END);
  if (begin < 0 || end < begin) throw new Error(`${SETTINGS_PAGE} has no place for the table: ${BEGIN} … ${END}`);
  return `${page.slice(0, begin + BEGIN.length)}\n\n${renderTable()}\n\n${page.slice(end)}`;
}

function renderTable(): string {
  const rows = Object.values(SETTINGS).map(({ name, fallback, usedBy, about }) => {
    const shown = fallback === undefined ? "required" : fallback === "" ? "empty" : `\`${fallback}\``;
    return `| \`${name}\` | ${shown} | ${usedBy.join(", ")} | ${about} |`;
  });
  return ["| Setting | Default | Read by | Meaning |", "|---|---|---|---|", ...rows].join("\n");
}
