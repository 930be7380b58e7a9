import assert from 'node:assert/strict';

import { cstring, fieldsOf, message, type Received, readUntil, startup } from '../support/fake-postgres.ts';
import { Peer } from '../support/session.ts';

/** A client that says exactly what a test wants said: parameters, versions and moments that no driver offers. */
export class Wire implements Disposable {
  readonly peer: Peer;
  /** Everything up to and with ReadyForQuery, or the error. */
  readonly greeting: readonly Received[];

  private constructor(peer: Peer, greeting: readonly Received[]) {
    this.peer = peer;
    this.greeting = greeting;
  }

  /** Connects and sends the parameters, in this order; waits until it is served or refused. */
  static async open(
    port: number,
    parameters: readonly (readonly [string, string])[],
    version = 0x0003_0000,
  ): Promise<Wire> {
    const peer = await Peer.connect(port);
    peer.send(startup(parameters, version));
    return new Wire(peer, await readUntil(peer, 'ZE'));
  }

  /** The fields of the refusal; undefined when it was served. */
  get refusal(): Record<string, string> | undefined {
    const last = this.greeting.at(-1);
    return last?.type === 'E' ? fieldsOf(last.body) : undefined;
  }

  /** Process id and key, as the client was given them. */
  get key(): { readonly pid: number; readonly key: Buffer } {
    const body = this.greeting.find(({ type }) => type === 'K')?.body ?? assert.fail('no key was given');
    return { pid: body.readInt32BE(), key: body.subarray(4) };
  }

  /** Starts a query and does not wait for its answer. */
  start(query: string): void {
    this.peer.send(message('Q', cstring(query)));
  }

  /** The columns of all rows, as text, or the SQLSTATE of the error. */
  async answer(): Promise<readonly (string | null)[][] | string> {
    const messages = await readUntil(this.peer, 'Z');
    const error = messages.find(({ type }) => type === 'E');
    if (error) return fieldsOf(error.body)['C'] ?? '';
    return messages.filter(({ type }) => type === 'D').map(({ body }) => columnsOf(body));
  }

  async ask(query: string): Promise<readonly (string | null)[][] | string> {
    this.start(query);
    return await this.answer();
  }

  [Symbol.dispose](): void {
    if (!this.peer.ended) this.peer.send(message('X'));
    this.peer.end();
  }
}

/** The values of a DataRow. */
function columnsOf(row: Buffer): (string | null)[] {
  const columns: (string | null)[] = [];
  for (let at = 2; at < row.length; ) {
    const length = row.readInt32BE(at);
    at += 4;
    columns.push(length < 0 ? null : row.toString('utf8', at, at + length));
    at += Math.max(0, length);
  }
  return columns;
}
