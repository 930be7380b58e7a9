/** Plug-ins by name, each with what imports its code: a start pays for what its configuration names. */
export type Table<Plugin> = Readonly<Record<string, () => Promise<Plugin>>>;

/** Those plug-ins that are among `names`, in the order of the table; without names, all of them. */
export async function loadFrom<Plugin>(
  table: Table<Plugin>,
  names?: ReadonlySet<string>,
): Promise<Readonly<Record<string, Plugin>>> {
  const wanted = Object.entries(table).filter(([name]) => names === undefined || names.has(name));
  return Object.fromEntries(
    await Promise.all(wanted.map(async ([name, load]) => [name, await load()] as const)),
  );
}

/** Loads one plug-in. Names come from files and tables have a prototype: undefined where the table has no such entry. */
export async function loadOne<Plugin>(table: Table<Plugin>, name: string): Promise<Plugin | undefined> {
  return Object.hasOwn(table, name) ? await table[name]?.() : undefined;
}
