// The one formula between our names and the numbers that stand for them in the proto and in the database: the place in an
// append-only list, plus one, since 0 is every proto enum's UNSPECIFIED.

export function toCode<Name extends string>(names: readonly Name[], name: Name): number {
  return names.indexOf(name) + 1;
}

/** Throws for a number that stands for nothing: only newer code can have written it. */
export function fromCode<Name extends string>(names: readonly Name[], code: number): Name {
  const name = names[code - 1];
  if (name === undefined) throw new Error(`${code} is none of the codes of ${names.join(", ")}`);
  return name;
}
