/** The tables of one section of docs/performance.md, as a run found them. */
export interface Recorded {
  readonly section: string;
  readonly text: string;
}

/** Puts each text between the markers of its section, `<!-- bench:NAME -->` and `<!-- bench:end -->`. */
export function record(page: string, sections: readonly Recorded[]): string {
  return sections.reduce((text, { section, text: tables }) => {
    const opening = `<!-- bench:${section} -->\n`;
    const from = text.indexOf(opening);
    const to = text.indexOf('<!-- bench:end -->', from);
    if (from < 0 || to < 0) throw new Error(`the page has no markers for ${section}`);
    return `${text.slice(0, from + opening.length)}\n${tables.trim()}\n\n${text.slice(to)}`;
  }, page);
}
