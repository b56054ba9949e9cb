import { stripVTControlCharacters, styleText } from "node:util";
import { type DescMessage, type MessageShape, toJsonString } from "@bufbuild/protobuf";
import Table from "cli-table3";

type Style = Parameters<typeof styleText>[0];

/** What the user sees: tables and sentences for a person, or one JSON object a line (`--json`) for a program. */
export class Output {
  readonly isJson: boolean;

  constructor(isJson: boolean) {
    this.isJson = isJson;
  }

  /** A sentence for a person; nothing under `--json`. */
  say(line: string): void {
    if (!this.isJson) process.stdout.write(`${line}\n`);
  }

  /** Beside the result, which may be piped on. */
  note(line: string): void {
    process.stderr.write(`${line}\n`);
  }

  json(value: unknown): void {
    this.#line(JSON.stringify(value));
  }

  message<Schema extends DescMessage>(schema: Schema, message: MessageShape<Schema>): void {
    this.#line(toJsonString(schema, message));
  }

  /** The same JSON, with those characters escaped that JSON lets pass and a terminal would obey or hide. */
  #line(json: string): void {
    const escaped = json.replace(DECEIVING, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
    process.stdout.write(`${escaped}\n`);
  }

  /** Rows under a head; `none` instead where there are none. */
  table(head: readonly string[], rows: readonly (readonly string[])[], none: string): void {
    if (rows.length === 0) {
      this.say(none);
      return;
    }
    const table = new Table({
      head: [...head],
      chars: BARE,
      style: { head: [], border: [], compact: true, "padding-left": 0 },
    });
    for (const row of rows) table.push(row.map(harmless));
    process.stdout.write(`${trimmed(table.toString())}\n`);
  }

  /** Names and values; what is empty is left out. */
  fields(fields: Readonly<Record<string, string>>): void {
    const width = Math.max(...Object.keys(fields).map((name) => name.length));
    for (const [name, value] of Object.entries(fields)) {
      if (value !== "") process.stdout.write(`${name.padEnd(width)}  ${harmless(value)}\n`);
    }
  }
}

/** Colours only where a terminal shows them, and where nobody said NO_COLOR. */
export function styled(style: Style, text: string): string {
  return styleText(style, text, { stream: process.stdout, validateStream: true });
}

/** On one line, without what a terminal would obey or show in another order than it is: the text may come from anybody. */
export function harmless(text: string): string {
  return stripVTControlCharacters(text.replace(/[\r\n\t]+/g, " ")).replace(DECEIVING, "\uFFFD");
}

/** Control characters, and those that turn the direction of what follows. */
const DECEIVING = /[\p{Cc}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;

const BARE = Object.fromEntries(
  ["top", "top-mid", "top-left", "top-right", "bottom", "bottom-mid", "bottom-left", "bottom-right", "left", "left-mid"]
    .concat(["mid", "mid-mid", "right", "right-mid"])
    .map((place) => [place, ""])
    .concat([["middle", " "]]),
);

function trimmed(text: string): string {
  return text.replaceAll(/ +$/gm, "");
}
