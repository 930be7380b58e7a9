import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import type { Crew, Member } from './crew.ts';

const program = fileURLToPath(new URL('../bin/postern', import.meta.url));

export type LogLine = Readonly<Record<string, unknown>>;

/** Postern as a user runs it: its own process, with a configuration file. */
export class Postern {
  readonly #crew: Crew;
  readonly #member: Member;

  private constructor(crew: Crew, member: Member) {
    this.#crew = crew;
    this.#member = member;
  }

  static async start(crew: Crew, folder: string, configuration: string): Promise<Postern> {
    const path = join(folder, 'postern.yaml');
    await writeFile(path, configuration);
    const member = crew.start({ command: program, args: ['run', '-f', path], cwd: folder });
    const postern = new Postern(crew, member);
    await postern.logged('Postern', (line) => line['msg'] === 'ready');
    return postern;
  }

  get lines(): LogLine[] {
    return this.#member.stdout
      .split('\n')
      .filter((line) => line.startsWith('{') && line.endsWith('}'))
      .map((line) => JSON.parse(line) as LogLine);
  }

  /** Waits for a line of its log. */
  async logged(what: string, wanted: (line: LogLine) => boolean): Promise<LogLine> {
    return await this.#crew.until(what, this.#member, () => this.lines.find(wanted));
  }
}
