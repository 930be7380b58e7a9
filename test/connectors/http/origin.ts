import { FakePostgres, type ServerEnd } from '../../support/fake-postgres.ts';
import { type Pace, type Peer, Served, type ServedOptions } from '../../support/session.ts';

/** One request as a server got it. */
export interface Received {
  /** With the empty line. */
  readonly head: string;
  /** As it came, with its framing. */
  readonly body: string;
}

export const secret = 'canary-of-the-engine-tests';

/** A server with a script for each connection, and everything that it got. */
export class Origin implements AsyncDisposable {
  readonly received: Received[] = [];
  readonly #server: FakePostgres;

  private constructor(server: FakePostgres) {
    this.#server = server;
  }

  /** `answer` is asked for each request and says bytes, or talks to the connection itself. */
  static async start(
    answer: (
      request: Received,
      server: ServerEnd,
      number: number,
    ) => string | Promise<string | undefined> | undefined,
    pace?: Pace,
  ): Promise<Origin> {
    const itself: { origin?: Origin } = {};
    const server = await FakePostgres.start(async (end) => {
      for (;;) {
        const request = await readRequest(end);
        itself.origin?.received.push(request);
        const said = await answer(request, end, itself.origin?.received.length ?? 0);
        if (said !== undefined) end.send(Buffer.from(said, 'latin1'));
      }
    }, pace);
    itself.origin = new Origin(server);
    return itself.origin;
  }

  get port(): number {
    return this.#server.port;
  }
  get connections(): number {
    return this.#server.connections;
  }
  get open(): number {
    return this.#server.open;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server[Symbol.asyncDispose]();
  }
}

/** A service in front of it, with a bearer token. */
export async function inFrontOf(
  origin: { readonly port: number },
  settings: Readonly<Record<string, unknown>> = {},
  options: Partial<ServedOptions> = {},
): Promise<Served> {
  return await Served.open({
    connector: 'http',
    credentials: { password: secret },
    settings: {
      upstream: `http://127.0.0.1:${origin.port}`,
      authenticate: { bearer: 'password' },
      allowPlainHttp: true,
      ...settings,
    },
    ...options,
  });
}

/** A whole message from a peer: its head, and its body by whatever framing the head says. */
export async function readRequest(peer: Peer): Promise<Received> {
  const head = await readHead(peer);
  return { head, body: await readBody(peer, head) };
}

export async function readHead(peer: Peer): Promise<string> {
  let head = '';
  while (!head.endsWith('\r\n\r\n')) head += (await peer.read(1)).toString('latin1');
  return head;
}

async function readBody(peer: Peer, head: string): Promise<string> {
  const [, length] = /\r\nContent-Length: (\d+)\r\n/i.exec(head) ?? [];
  if (length !== undefined) return (await peer.read(Number(length))).toString('latin1');
  if (!/\r\nTransfer-Encoding: chunked\r\n/i.test(head)) return '';
  let body = '';
  while (!/(^|\r\n)0\r\n\r\n$/.test(body)) body += (await peer.read(1)).toString('latin1');
  return body;
}

/** The next response that a client gets. */
export async function readResponse(peer: Peer, bodyless = false): Promise<Received> {
  const head = await readHead(peer);
  return { head, body: bodyless ? '' : await readBody(peer, head) };
}

export function get(path = '/', ...fields: readonly string[]): Buffer {
  return request('GET', path, ...fields);
}

export function request(method: string, path: string, ...fields: readonly string[]): Buffer {
  return Buffer.from(
    [`${method} ${path} HTTP/1.1`, 'Host: localhost', ...fields, '', ''].join('\r\n'),
    'latin1',
  );
}

export function ok(body: string, ...fields: readonly string[]): string {
  return ['HTTP/1.1 200 OK', `Content-Length: ${body.length}`, ...fields, '', body].join('\r\n');
}
