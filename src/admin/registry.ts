/** The ways in which metrics are written: Prometheus' text format 0.0.4, and OpenMetrics 1.0. */
export type Format = 'prometheus' | 'openmetrics';

/** What to answer as the type of each. */
export const contentTypes: Readonly<Record<Format, string>> = {
  prometheus: 'text/plain; version=0.0.4; charset=utf-8',
  openmetrics: 'application/openmetrics-text; version=1.0.0; charset=utf-8',
};

/** What a metric is: its name (of a counter it ends in `_total`), a sentence, the names of its labels. */
export interface Definition<Label extends string> {
  readonly name: string;
  readonly help: string;
  readonly labels?: readonly Label[];
}

export type Labels<Label extends string> = Readonly<Record<Label, string>>;

/** One sample: the values of the labels in their order, and a number or what a histogram has counted. */
export interface Point {
  readonly labels: readonly string[];
  readonly value: number | Distribution;
}

/** What a histogram has seen of one set of labels. `counts` has one more than there are bounds, and is not cumulative. */
export interface Distribution {
  readonly counts: readonly number[];
  readonly sum: number;
}

/** A metric with all its samples, for whoever writes it down. */
export interface Family {
  readonly name: string;
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly help: string;
  readonly labels: readonly string[];
  /** Upper bounds of a histogram's buckets, without infinity. */
  readonly bounds: readonly number[];
  points(): Iterable<Point>;
}

/** A number that only grows. */
export interface Counter<Label extends string> {
  inc(labels: Labels<Label>, by?: number): void;
}

/** A number of this moment. */
export interface Gauge<Label extends string> {
  inc(labels: Labels<Label>, by?: number): void;
  set(labels: Labels<Label>, value: number): void;
}

/** Counts values by their size. */
export interface Histogram<Label extends string> {
  observe(labels: Labels<Label>, value: number): void;
}

/** Where the numbers of a metric come from that is looked up when it is asked for; equal labels are added up. */
export type Read<Label extends string> = () => Iterable<readonly [labels: Labels<Label>, value: number]>;

/** The metrics of the process. Sets of labels are kept for ever, so labels come from the configuration and from closed lists. */
export class Registry {
  readonly #families = new Map<string, Family>();

  /** Every metric, also one without a sample, in the order of definition. */
  get families(): Iterable<Family> {
    return this.#families.values();
  }

  counter<Label extends string = never>(definition: Definition<Label>): Counter<Label> {
    return this.#numbers('counter', definition);
  }

  gauge<Label extends string = never>(definition: Definition<Label>): Gauge<Label> {
    return this.#numbers('gauge', definition);
  }

  /** A counter or gauge that costs nothing until it is asked for. */
  lookup<Label extends string = never>(
    type: 'counter' | 'gauge',
    definition: Definition<Label>,
    read: Read<Label>,
  ): void {
    const { labels = [] } = definition;
    this.#add(type, definition, [], () => {
      const series = new Map<string, { labels: readonly string[]; value: number }>();
      for (const [values, value] of read()) add(series, labels, values, value);
      return series.values();
    });
  }

  histogram<Label extends string = never>(
    definition: Definition<Label>,
    bounds: readonly number[],
  ): Histogram<Label> {
    const { labels = [] } = definition;
    const series = new Map<string, { labels: readonly string[]; value: { counts: number[]; sum: number } }>();
    const of = (values: Labels<Label>) => {
      const key = keyOf(labels, values);
      let found = series.get(key);
      if (!found) {
        found = {
          labels: labels.map((label) => values[label]),
          value: { counts: Array.from({ length: bounds.length + 1 }, () => 0), sum: 0 },
        };
        series.set(key, found);
      }
      return found.value;
    };
    if (labels.length === 0) of({} as Labels<Label>);
    this.#add('histogram', definition, bounds, () => series.values());
    return {
      observe: (values, value) => {
        const distribution = of(values);
        const at = bounds.findIndex((bound) => value <= bound);
        const bucket = at === -1 ? bounds.length : at;
        distribution.counts[bucket] = (distribution.counts[bucket] ?? 0) + 1;
        distribution.sum += value;
      },
    };
  }

  /** All metrics as text. */
  text(format: Format): string {
    const lines: string[] = [];
    for (const family of this.#families.values()) write(family, format, lines);
    if (format === 'openmetrics') lines.push('# EOF');
    return `${lines.join('\n')}\n`;
  }

  #numbers<Label extends string>(
    type: 'counter' | 'gauge',
    definition: Definition<Label>,
  ): Counter<Label> & Gauge<Label> {
    const { labels = [] } = definition;
    const series = new Map<string, { labels: readonly string[]; value: number }>();
    // What can have one sample only has it from the beginning: an increase from nothing is not seen.
    if (labels.length === 0) series.set('', { labels: [], value: 0 });
    this.#add(type, definition, [], () => series.values());
    return {
      inc: (values, by = 1) => add(series, labels, values, by),
      set: (values, value) => {
        series.set(keyOf(labels, values), { labels: labels.map((label) => values[label]), value });
      },
    };
  }

  #add<Label extends string>(
    type: Family['type'],
    { name, help, labels = [] }: Definition<Label>,
    bounds: readonly number[],
    points: () => Iterable<Point>,
  ): void {
    if (this.#families.has(name)) throw new Error(`there are two metrics ${name}`);
    this.#families.set(name, { name, type, help, labels, bounds, points });
  }
}

/** Which format an Accept header asks for: OpenMetrics where it is named and liked no less than plain text. */
export function formatFor(accept: string | undefined): Format {
  const liking = (type: string) =>
    Math.max(
      0,
      ...(accept ?? '').split(',').flatMap((range) => {
        const [name = '', ...parameters] = range.split(';').map((part) => part.trim().toLowerCase());
        // A version that is not ours: whoever asks for it as well names one without, or the other format.
        if (name !== type || parameters.some((each) => /^version=(?!1\.0\.0$|0\.0\.4$)/.test(each)))
          return [];
        const quality = parameters.find((each) => each.startsWith('q='));
        return [quality === undefined ? 1 : Number(quality.slice(2)) || 0];
      }),
    );
  const openmetrics = liking('application/openmetrics-text');
  return openmetrics > 0 && openmetrics >= liking('text/plain') ? 'openmetrics' : 'prometheus';
}

/** NUL is in no name of a configuration. */
function keyOf<Label extends string>(names: readonly Label[], values: Labels<Label>): string {
  if (names.length === 1 && names[0] !== undefined) return values[names[0]];
  return names.map((name) => values[name]).join('\0');
}

function add<Label extends string>(
  series: Map<string, { labels: readonly string[]; value: number }>,
  names: readonly Label[],
  values: Labels<Label>,
  by: number,
): void {
  const key = keyOf(names, values);
  const found = series.get(key);
  if (found) found.value += by;
  else series.set(key, { labels: names.map((name) => values[name]), value: by });
}

// ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

const units = ['seconds', 'bytes'];

function write(family: Family, format: Format, lines: string[]): void {
  const { name, type, help, labels, bounds } = family;
  // A counter is called by its family there, and its sample by the name with `_total`.
  const title = format === 'openmetrics' && type === 'counter' ? name.replace(/_total$/, '') : name;
  lines.push(`# HELP ${title} ${escapeHelp(help, format)}`, `# TYPE ${title} ${type}`);
  const unit = units.find((each) => title.endsWith(`_${each}`));
  if (format === 'openmetrics' && unit !== undefined) lines.push(`# UNIT ${title} ${unit}`);
  for (const { labels: values, value } of family.points()) {
    const pairs = labels.map((label, i) => `${label}="${escapeValue(values[i] ?? '')}"`);
    if (typeof value === 'number') {
      lines.push(`${name}${braces(pairs)} ${numberText(value)}`);
      continue;
    }
    let below = 0;
    for (const [i, count] of value.counts.entries()) {
      below += count;
      const bound = bounds[i] ?? Number.POSITIVE_INFINITY;
      lines.push(`${name}_bucket${braces([...pairs, `le="${boundText(bound, format)}"`])} ${below}`);
    }
    lines.push(`${name}_sum${braces(pairs)} ${numberText(value.sum)}`);
    lines.push(`${name}_count${braces(pairs)} ${below}`);
  }
}

function braces(pairs: readonly string[]): string {
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`;
}

function numberText(value: number): string {
  if (Number.isFinite(value)) return String(value);
  if (Number.isNaN(value)) return 'NaN';
  return value > 0 ? '+Inf' : '-Inf';
}

/** OpenMetrics has bounds as floats: `1.0`. */
function boundText(bound: number, format: Format): string {
  return format === 'openmetrics' && Number.isInteger(bound) ? `${bound}.0` : numberText(bound);
}

function escapeHelp(text: string, format: Format): string {
  const escaped = text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n');
  return format === 'openmetrics' ? escaped.replaceAll('"', '\\"') : escaped;
}

function escapeValue(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n').replaceAll('"', '\\"');
}
