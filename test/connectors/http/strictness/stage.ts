import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

import { Postern } from '../../../support/postern.ts';
import { canary } from '../../../support/servers.ts';
import { type Pace, until } from '../../../support/session.ts';

/** The secret that Postern adds to requests as a bearer token. */
export const token = canary.openbaoUserpass;

/** A request as it came in on a connection of the origin, each byte of it as one character. */
export interface Recorded {
  readonly head: string;
  /** With its chunk framing, where it has one. */
  readonly body: string;
}

/**
 * A server that keeps every byte it gets. It takes requests apart in the simplest way there is: whatever Postern lets
 * through has to be understood like that.
 */
export class RecordingOrigin implements AsyncDisposable {
  /** Complete requests, in the order in which they were complete. */
  readonly requests: Recorded[] = [];
  /** All bytes of each connection. */
  readonly connections: { bytes: string }[] = [];
  /** What is answered: the bytes of a response, or nothing yet. */
  respond: (request: Recorded, socket: Socket) => string | undefined = () => plain;
  readonly #server: Server;
  /** Open connections, the oldest first. */
  readonly sockets = new Set<Socket>();

  private constructor(server: Server) {
    this.#server = server;
    server.on('connection', (socket) => this.#serve(socket));
  }

  static async start(): Promise<RecordingOrigin> {
    const server = createServer();
    const origin = new RecordingOrigin(server);
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return origin;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Forgets what it got, and answers as it does by itself. */
  reset(): void {
    this.requests.length = 0;
    this.connections.length = 0;
    this.respond = () => plain;
    for (const socket of this.sockets) socket.destroy();
  }

  #serve(socket: Socket): void {
    this.sockets.add(socket);
    socket.once('close', () => this.sockets.delete(socket));
    socket.on('error', () => {});
    const connection = { bytes: '' };
    this.connections.push(connection);
    let rest = '';
    socket.setEncoding('latin1').on('data', (text: string) => {
      connection.bytes += text;
      rest += text;
      for (let request = firstRequest(rest); request; request = firstRequest(rest)) {
        rest = rest.slice(request.head.length + request.body.length);
        this.requests.push(request);
        const response = this.respond(request, socket);
        if (response !== undefined) socket.write(response, 'latin1');
      }
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, 'close');
  }
}

const plain = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';

function firstRequest(text: string): Recorded | undefined {
  const end = text.indexOf('\r\n\r\n');
  if (end < 0) return undefined;
  const head = text.slice(0, end + 4);
  const behind = text.slice(end + 4);
  const length = /\r\ncontent-length: *(\d+)\r\n/i.exec(head);
  if (length) {
    const body = behind.slice(0, Number(length[1]));
    return body.length === Number(length[1]) ? { head, body } : undefined;
  }
  if (!/\r\ntransfer-encoding:/i.test(head)) return { head, body: '' };
  const last = /^(?:[0-9a-f]+\r\n[^]*?\r\n)*?0+\r\n\r\n/i.exec(behind);
  return last ? { head, body: last[0] } : undefined;
}

/** The program with one service in front of a recording origin. */
export class Stage implements AsyncDisposable {
  readonly origin: RecordingOrigin;
  readonly postern: Postern;
  readonly port: number;

  private constructor(origin: RecordingOrigin, postern: Postern) {
    this.origin = origin;
    this.postern = postern;
    this.port = postern.port('api');
  }

  /** `prefix`: the path of the base URL; all else are settings of the service. */
  static async start({ prefix = '', ...config }: Readonly<Record<string, unknown>> = {}): Promise<Stage> {
    const origin = await RecordingOrigin.start();
    const service = {
      connector: 'http',
      listenOn: 'tcp://127.0.0.1:0',
      credentials: { token: { from: 'env', get: 'TOKEN' } },
      config: {
        upstream: `http://127.0.0.1:${origin.port}${String(prefix)}`,
        allowPlainHttp: true,
        authenticate: { bearer: 'token' },
        ...config,
      },
    };
    const yaml = JSON.stringify({ version: 2, services: { api: service } });
    return new Stage(origin, await Postern.start(yaml, { env: { TOKEN: token } }));
  }

  /** A connection to Postern as a client. */
  async connect(): Promise<Wire> {
    return await Wire.connect(this.port);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.postern.stop();
    await this.origin[Symbol.asyncDispose]();
  }
}

/** A client that sends what it is told to, and has all that came back as text with a character for each byte. */
export class Wire implements Disposable {
  readonly socket: Socket;
  received = '';
  ended = false;

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.setNoDelay(true);
    socket.setEncoding('latin1').on('data', (text: string) => (this.received += text));
    socket.on('error', () => {});
    for (const event of ['end', 'close']) socket.on(event, () => (this.ended = true));
  }

  static async connect(port: number): Promise<Wire> {
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
    await once(socket, 'connect');
    return new Wire(socket);
  }

  async send(text: string, pace: Pace = 'as they come'): Promise<void> {
    const bytes = Buffer.from(text, 'latin1');
    if (pace === 'as they come') {
      this.socket.write(bytes);
      return;
    }
    for (const byte of bytes) {
      if (this.ended) return;
      this.socket.write(Uint8Array.of(byte));
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** The statuses of the responses so far, in their order. */
  get statuses(): number[] {
    return [...this.received.matchAll(/(?:^|(?<=[^]))HTTP\/1\.1 (\d{3}) /g)].map((match) => Number(match[1]));
  }

  /** Waits for so many final responses, or for the end of the connection. */
  async responses(count: number): Promise<void> {
    await until(
      `${count} responses`,
      () => this.ended || this.statuses.filter((status) => status >= 200).length >= count,
    );
  }

  async end(): Promise<void> {
    await until('the end of the connection', () => this.ended);
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

/** What became of the bytes of one case: the answers, and the requests that the origin got in full. */
export interface Fate {
  readonly statuses: readonly number[];
  readonly closed: boolean;
  readonly requests: readonly Recorded[];
  readonly received: string;
}

const MARKER = 'GET /marker HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n';

/**
 * Sends a case and, behind it on the same connection, one more request that ends it. When the two sides of Postern agree
 * about where the case ends, the origin gets the case and the marker, or neither.
 */
export async function fateOf(stage: Stage, text: string, pace: Pace): Promise<Fate> {
  stage.origin.reset();
  using client = await stage.connect();
  await client.send(text, pace);
  // A byte at a time, the end of a head that is never complete cannot be seen.
  await client.send(MARKER);
  await client.end();
  return {
    statuses: client.statuses,
    closed: client.ended,
    requests: [...stage.origin.requests],
    received: client.received,
  };
}
