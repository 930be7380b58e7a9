import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { setImmediate as immediate, setTimeout as sleep } from 'node:timers/promises';
import { createServer as createTlsServer } from 'node:tls';
import { gzipSync } from 'node:zlib';

/** What a hostile store does with a connection once it has read a request. */
export type Mischief = (socket: Socket, request: Buffer, store: HostileStore) => void | Promise<void>;

/** A FAKE of a secret store that means harm, or is something else altogether. */
export interface HostileStore {
  readonly url: string;
  /** All that it was sent. */
  readonly heard: () => string;
  /** Bytes that it could send, those in the buffers of the system included. */
  readonly sent: () => number;
  readonly open: () => number;
  readonly stop: () => Promise<void>;
}

/** Starts one. `politely` says what to answer in earnest, such as a login before the secret. */
export async function hostileStore(
  mischief: Mischief,
  options: {
    readonly politely?: ((line: string) => string | undefined) | undefined;
    readonly tls?: { readonly cert: string; readonly key: string } | undefined;
  } = {},
): Promise<HostileStore> {
  const sockets = new Set<Socket>();
  const heard: Buffer[] = [];
  let sent = 0;
  const serve = (socket: Socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => {
      sent += socket.bytesWritten;
      sockets.delete(socket);
    });
    let request = Buffer.alloc(0);
    socket.on('data', (chunk: Buffer) => {
      heard.push(chunk);
      request = Buffer.concat([request, chunk]);
      const text = request.toString('latin1');
      const head = text.indexOf('\r\n\r\n');
      const length = Number(/^content-length: (\d+)/im.exec(text)?.[1] ?? 0);
      if (head < 0 || request.length < head + 4 + length) return;
      const whole = request;
      request = Buffer.alloc(0);
      const answer = options.politely?.(text.slice(0, text.indexOf('\r\n')));
      if (answer === undefined) void mischief(socket, whole, store);
      else socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${Buffer.byteLength(answer)}\r\n\r\n${answer}`);
    });
  };
  const server: Server = options.tls ? createTlsServer(options.tls, serve) : createServer(serve);
  server.on('tlsClientError', () => undefined);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const store: HostileStore = {
    url: `${options.tls ? 'https' : 'http'}://127.0.0.1:${port}`,
    heard: () => Buffer.concat(heard).toString('latin1'),
    sent: () => [...sockets].reduce((sum, { bytesWritten }) => sum + bytesWritten, sent),
    open: () => sockets.size,
    stop: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
  return store;
}

/** Sends what `next` makes, as fast as it is taken, until the other side has had enough. */
async function pump(socket: Socket, next: () => Buffer | string): Promise<void> {
  while (!socket.destroyed) {
    if (!socket.write(next()))
      await Promise.race([once(socket, 'drain'), once(socket, 'close')]).catch(() => undefined);
    // Whoever is asked shares this thread with whoever asks.
    await immediate();
  }
}

const ok = (body: Buffer | string, more = '') =>
  Buffer.concat([
    Buffer.from(
      `HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n${more}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n`,
    ),
    Buffer.from(body),
  ]);
const status = (line: string, body: string, more = '') =>
  `HTTP/1.1 ${line}\r\nContent-Type: application/json\r\n${more}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;

/** The header fields of a request, and its body, as text for a line or a JSON string. */
function echoed(request: Buffer): string {
  return request
    .toString('latin1')
    .replaceAll(/[^\x20-\x7e]+/g, ' ')
    .replaceAll(/["\\]/g, '');
}

/** 64 KiB that unpack to 64 MiB. */
const bomb = gzipSync(Buffer.alloc(64 * 1024 * 1024));
const block = Buffer.alloc(64 * 1024, 'x');
const fields = (count: number) => `{${'"":1,'.repeat(count)}"":1}`;

/** Each ends every question with a failure: there is no secret in any of these. */
export const mischiefs: Readonly<Record<string, Mischief>> = {
  'answers with ten gigabytes': async (socket) => {
    socket.write('HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n');
    await pump(socket, () => block);
  },
  'never ends its answer': async (socket) => {
    socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n');
    await pump(socket, () => `10000\r\n${block.toString('latin1')}\r\n`);
  },
  'never ends its head': async (socket) => {
    socket.write('HTTP/1.1 200 OK\r\n');
    await pump(socket, () => `X-More: ${'y'.repeat(1000)}\r\n`);
  },
  'never ends its status line': async (socket) => {
    socket.write('HTTP/1.1 200 ');
    await pump(socket, () => block);
  },
  'never comes to the point': async (socket) => {
    await pump(socket, () => 'HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n'.repeat(100));
  },
  'never ends its trailer': async (socket) => {
    socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n');
    await pump(socket, () => `X-More: ${'y'.repeat(1000)}\r\n`);
  },
  'never ends a chunk extension': async (socket) => {
    socket.write('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;');
    await pump(socket, () => block);
  },
  'drips a byte at a time': async (socket) => {
    for (const byte of ok('{"a":1}')) {
      if (socket.destroyed) return;
      socket.write(Buffer.of(byte));
      await sleep(200, undefined, { ref: false });
    }
  },
  'says nothing': () => undefined,
  'has a million fields': (socket) => void socket.end(ok(fields(1_000_000))),
  'has as many fields as go into an answer': (socket) => void socket.end(ok(fields(45_000))),
  'nests without end': (socket) => void socket.end(ok('['.repeat(250_000))),
  'nests objects without end': (socket) => void socket.end(ok('{"a":'.repeat(50_000))),
  'ends before what it announced': (socket) =>
    void socket.end('HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"a":1}'),
  'says more than it announced': (socket, request) =>
    void socket.end(`${status('200 OK', '{}')}${echoed(request)}`),
  'contradicts itself about its length': (socket) =>
    void socket.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}'),
  'announces a negative length': (socket) =>
    void socket.end('HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}'),
  'compresses a bomb': (socket) => void socket.end(ok(bomb, 'Content-Encoding: gzip\r\n')),
  'sends what is no HTTP, with the request in it': (socket, request) =>
    void socket.end(echoed(request).repeat(3)),
  'sends bytes of all kinds': (socket) =>
    void socket.end(Buffer.from(Array.from({ length: 4096 }, (_, i) => (i * 167) % 256))),
  'repeats the request in its status line': (socket, request) =>
    void socket.end(status(`400 ${echoed(request)}`, '{}')),
  'repeats the request in header fields': (socket, request) =>
    void socket.end(
      status('401 No', '{}', `WWW-Authenticate: ${echoed(request)}\r\nX-Error: ${echoed(request)}\r\n`),
    ),
  'repeats the request in a broken header': (socket, request) =>
    void socket.end(`HTTP/1.1 200 OK\r\n${echoed(request)}\0: x\r\n\r\n`),
  'repeats the request in the words of a refusal': (socket, request) => {
    const said = echoed(request);
    const every = {
      errors: [said],
      error: said,
      error_description: said,
      message: said,
      Message: said,
      __type: said,
      kind: 'Status',
      reason: said,
    };
    socket.end(status('400 Bad Request', JSON.stringify(every)));
  },
  'repeats the request in a nested refusal': (socket, request) => {
    const said = echoed(request);
    socket.end(
      status(
        '403 Forbidden',
        JSON.stringify({ error: { code: said, status: said, message: said, innererror: { code: said } } }),
      ),
    );
  },
  'repeats the request in JSON that is broken': (socket, request) =>
    void socket.end(ok(`{"${echoed(request)}`)),
  'gives values of the wrong kind': (socket) =>
    void socket.end(
      ok(
        '{"data":{"data":[]},"auth":7,"access_token":{},"token":[],"SecretString":1,"Parameter":[],"payload":"x","value":{},"Credentials":0}',
      ),
    ),
  'redirects to itself for ever': (socket, _, { url }) =>
    void socket.write(status('301 Moved', '{}', `Location: ${url}/again\r\n`)),
  'redirects to itself with the request': (socket, _, { url }) =>
    void socket.write(status('307 Moved', '{}', `Location: ${url}/v1/again\r\n`)),
  'resets the connection': (socket) => void socket.resetAndDestroy(),
  'closes without a word': (socket) => void socket.end(),
  'switches to another protocol': (socket) =>
    void socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n{}'),
  'is of another version': (socket) => void socket.end('HTTP/9.9 200 OK\r\n\r\n{}'),
};
