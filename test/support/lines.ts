/** What a process prints, kept line by line and waited for. */
export type Lines<Line> = {
  readonly all: Line[];
  add(line: Line): void;
  /** The first line that passes, printed already or yet to come; rejects as `end` says if the process ends before. */
  first(passes: (line: Line) => boolean): Promise<Line>;
};

/** `ended` resolves to why there will be no more lines. */
export function keepLines<Line>(ended: Promise<() => string>): Lines<Line> {
  const all: Line[] = [];
  const waiting = new Set<() => void>();
  return {
    all,
    add(line) {
      all.push(line);
      for (const check of waiting) check();
    },
    first(passes) {
      return new Promise((resolve, reject) => {
        const check = () => {
          const found = all.find(passes);
          if (found === undefined) return;
          waiting.delete(check);
          resolve(found);
        };
        waiting.add(check);
        check();
        void ended.then((why) => reject(new Error(why())));
      });
    },
  };
}
