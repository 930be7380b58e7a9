import { styleText } from 'node:util';

const WIDTH = 80;
const INDENT = 4;

type Style = Parameters<typeof styleText>[0];

/** What the demo says, readable on a terminal of 80 columns; in colour only where that is wanted. */
export class Screen {
  readonly #colour = process.stdout.isTTY && !process.env['NO_COLOR'] && process.env['TERM'] !== 'dumb';
  #steps = 0;

  heading(text: string): void {
    this.#print(this.#styled('bold', text));
  }

  /** The next numbered step. */
  step(title: string): void {
    this.#steps += 1;
    this.#print(`\n${this.#styled(['bold', 'cyan'], `${this.#steps}. ${title}`)}`);
  }

  /** A sentence or more, broken into lines. */
  say(text: string): void {
    for (const line of broken(text.split(/\s+/), WIDTH - INDENT)) this.#print(indented(line));
  }

  /** Something to be read or pasted as it is. */
  show(text: string): void {
    for (const line of text.trimEnd().split('\n')) this.#print(indented(this.#styled('green', line)));
  }

  /** Names and values, one a line, cut where they are too long. */
  table(rows: readonly (readonly [string, string])[]): void {
    const left = Math.max(...rows.map(([name]) => name.length));
    for (const [name, value] of rows) {
      const room = WIDTH - INDENT - left - 2;
      const shown = value.length > room ? `${value.slice(0, room - 3)}...` : value;
      this.#print(indented(`${this.#styled('dim', name.padEnd(left))}  ${shown}`));
    }
  }

  /** One line of Postern's log: the words, then its facts. */
  logLine(time: string, message: string, facts: readonly (readonly [string, string])[]): void {
    this.#print(indented(`${this.#styled('dim', time)} ${this.#styled('bold', message)}`));
    const words = facts.map(([name, value]) => `${name}=${value}`);
    for (const line of broken(words, WIDTH - INDENT - 2)) this.#print(indented(`  ${line}`));
  }

  good(text: string): void {
    for (const line of broken(text.split(/\s+/), WIDTH - INDENT))
      this.#print(indented(this.#styled('bold', line)));
  }

  /** Why it stopped. */
  trouble(text: string): void {
    process.stderr.write(`${broken(text.split(/\s+/), WIDTH).join('\n')}\n`);
  }

  #print(line: string): void {
    process.stdout.write(`${line}\n`);
  }

  #styled(style: Style, text: string): string {
    return this.#colour ? styleText(style, text, { validateStream: false }) : text;
  }
}

const indented = (line: string) => `${' '.repeat(INDENT)}${line}`;

/** Fills lines with words; a word that is longer than a line stays whole, so that it can be pasted. */
function broken(words: readonly string[], width: number): string[] {
  const lines: string[] = [];
  for (const word of words) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= width)
      lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}
