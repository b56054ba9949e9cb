import { median } from "./bench.ts";

/** A drawing for `docs/benchmarks.md`, in figures alone. */
export type Plot = {
  /** Of its file, without ending. */
  readonly name: string;
  readonly title: string;
} & (
  | { readonly kind: "bars"; readonly unit: string; readonly bars: readonly Bar[] }
  | { readonly kind: "lines"; readonly x: string; readonly y: string; readonly lines: readonly Line[] }
);

/** One contestant: the bar is the median of its rounds, and each round a dot. */
export type Bar = { readonly label: string; readonly rounds: readonly number[]; readonly isOurs: boolean };
export type Line = { readonly label: string; readonly points: readonly (readonly [x: number, y: number])[] };

const WIDTH = 760;
const INK = "#57606a";
const OURS = "#0969da";
const OTHERS = "#8c959f";
const COLOURS = [OURS, "#bc4c00", "#1a7f37", OTHERS];

export function toSvg(plot: Plot): string {
  return plot.kind === "bars" ? drawBars(plot) : drawLines(plot);
}

function drawBars({ title, unit, bars }: Plot & { kind: "bars" }): string {
  const [left, top, step] = [250, 44, 26];
  const most = Math.max(...bars.flatMap(({ rounds }) => rounds));
  const at = (value: number) => left + (value / most) * (WIDTH - left - 110);
  const rows = bars.map(({ label, rounds, isOurs }, i) => {
    const y = top + i * step;
    const middle = median(rounds);
    const dots = rounds.map((value) => `<circle cx="${px(at(value))}" cy="${y + 8}" r="2.5" fill="${INK}"/>`);
    return [
      text(left - 8, y + 12, label, "end"),
      `<rect x="${left}" y="${y}" width="${px(at(middle) - left)}" height="16" fill="${isOurs ? OURS : OTHERS}"/>`,
      ...dots,
      text(at(Math.max(...rounds)) + 8, y + 12, `${Math.round(middle).toLocaleString("en-US")}${unit}`, "start"),
    ].join("");
  });
  return frame(title, top + bars.length * step + 8, rows.join(""));
}

function drawLines({ title, x, y, lines }: Plot & { kind: "lines" }): string {
  const [left, top, right, height] = [70, 44, 20, 220];
  const points = lines.flatMap((line) => line.points);
  const mostX = Math.max(...points.map(([value]) => value));
  const mostY = Math.max(...points.map(([, value]) => value)) * 1.05;
  const atX = (value: number) => left + (value / mostX) * (WIDTH - left - right);
  const atY = (value: number) => top + height - (value / mostY) * height;
  const ticks = [0, 0.25, 0.5, 0.75, 1].flatMap((part) => [
    `<line x1="${left}" x2="${WIDTH - right}" y1="${px(atY(part * mostY))}" y2="${px(atY(part * mostY))}" stroke="${INK}" stroke-opacity="0.2"/>`,
    text(left - 8, atY(part * mostY) + 4, label(part * mostY), "end"),
    text(atX(part * mostX), top + height + 18, label(part * mostX), "middle"),
  ]);
  const drawn = lines.map(({ points: line }, i) => {
    const path = line.map(([a, b]) => `${px(atX(a))},${px(atY(b))}`).join(" ");
    return `<polyline points="${path}" fill="none" stroke="${COLOURS[i % COLOURS.length]}" stroke-width="2"/>`;
  });
  const names = lines.map((line, i) => {
    const place = left + i * 220;
    const colour = COLOURS[i % COLOURS.length];
    return `<rect x="${place}" y="${top + height + 46}" width="12" height="12" fill="${colour}"/>${text(place + 18, top + height + 56, line.label, "start")}`;
  });
  const axes = [text(left, top - 8, y, "start"), text(WIDTH - right, top + height + 34, x, "end")];
  return frame(title, top + height + 70, [...ticks, ...drawn, ...names, ...axes].join(""));
}

function frame(title: string, height: number, content: string): string {
  const heading = `<text x="12" y="22" font-size="15" font-weight="600" fill="${INK}">${escapeXml(title)}</text>`;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" font-family="system-ui, sans-serif" role="img" aria-label="${escapeXml(title)}">${heading}${content}</svg>\n`;
}

function text(x: number, y: number, content: string, anchor: "start" | "middle" | "end"): string {
  return `<text x="${px(x)}" y="${px(y)}" font-size="12" fill="${INK}" text-anchor="${anchor}">${escapeXml(content)}</text>`;
}

function label(value: number): string {
  return value >= 10 ? Math.round(value).toLocaleString("en-US") : value.toFixed(1);
}

function px(value: number): string {
  return value.toFixed(1);
}

function escapeXml(content: string): string {
  return content.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");
}
