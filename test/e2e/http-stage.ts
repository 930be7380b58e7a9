import { createPrivateKey, createPublicKey, generateKeyPairSync } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ConnectionOptions, connect as connectTls, type TLSSocket } from 'node:tls';
import { fileURLToPath } from 'node:url';

import { issueLeaf, issueRoot, readIssuer } from '../../src/connectors/http/certificate.ts';
import { Postern } from '../support/postern.ts';
import { canary, type Leaf } from '../support/servers.ts';

const hostsModule = fileURLToPath(new URL('../support/hosts.ts', import.meta.url));

/** The secret that the services of these tests put into requests. */
export const token = canary.openbaoUserpass;

/** Two authorities: one that stands in for servers towards clients, one that the servers' own certificates come from. */
export class Papers implements AsyncDisposable {
  readonly folder: string;
  /** Of the local authority that clients trust. */
  readonly local: { readonly cert: string; readonly key: string };
  readonly #servers = 'servers';

  private constructor(folder: string) {
    this.folder = folder;
    this.local = { cert: join(folder, 'local.crt'), key: join(folder, 'local.key') };
  }

  static async make(): Promise<Papers> {
    const papers = new Papers(await mkdtemp(join(tmpdir(), 'postern-papers-')));
    for (const name of ['local', papers.#servers]) {
      const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
      await writeFile(
        join(papers.folder, `${name}.key`),
        privateKey.export({ type: 'pkcs8', format: 'pem' }),
      );
      const cert = issueRoot(privateKey, { name: `Test ${name} authority`, days: 2, hosts: [] });
      await writeFile(join(papers.folder, `${name}.crt`), cert);
    }
    return papers;
  }

  /** What Postern trusts towards servers. */
  get serversCa(): string {
    return join(this.folder, `${this.#servers}.crt`);
  }

  /** A certificate and key of a real server. */
  async leaf(host: string): Promise<Leaf> {
    const issuer = readIssuer(
      await readFile(this.serversCa),
      await readFile(join(this.folder, `${this.#servers}.key`)),
    );
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
    const key = String(privateKey.export({ type: 'pkcs8', format: 'pem' }));
    const paths = { cert: join(this.folder, `${host}.crt`), key: join(this.folder, `${host}.key`) };
    await writeFile(paths.cert, issueLeaf(issuer, host, createPublicKey(createPrivateKey(key))).pem);
    await writeFile(paths.key, key);
    return { ...paths, ca: this.serversCa };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** An entry under `services:` of the connector `http`. */
export interface HttpService {
  readonly connector?: string;
  readonly listenOn?: string;
  readonly credentials?: Readonly<Record<string, unknown>>;
  readonly config: Readonly<Record<string, unknown>>;
  readonly limits?: Readonly<Record<string, unknown>>;
  readonly cache?: Readonly<Record<string, unknown>>;
}

/** The text of a configuration; every service has the token as its credential. */
export function httpConfiguration(services: Readonly<Record<string, HttpService>>): string {
  const entries = Object.entries(services).map(([name, service]) => [
    name,
    {
      connector: 'http',
      listenOn: 'tcp://127.0.0.1:0',
      credentials: { token: { from: 'env', get: 'TOKEN' }, ...service.credentials },
      ...service,
      config: { authenticate: { bearer: 'token' }, ...service.config },
    },
  ]);
  return JSON.stringify({ version: 2, services: Object.fromEntries(entries) });
}

/** The program, for which these names have these addresses: `{'api.test': '127.0.0.1'}`. */
export async function performHttp(
  services: Readonly<Record<string, HttpService>>,
  hosts: Readonly<Record<string, string>>,
  env: Readonly<Record<string, string>> = {},
): Promise<Postern> {
  const names = Object.entries(hosts).map(([name, address]) => `${name}=${address}`);
  return await Postern.start(httpConfiguration(services), {
    env: { TOKEN: token, TEST_HOSTS: names.join(','), ...env },
    nodeOptions: `--import=${hostsModule}`,
  });
}

/** What `postern ca show` has clients set, without the exceptions for this machine. */
export function clientEnvironment(port: number, ca?: string): Record<string, string> {
  const proxy = `http://127.0.0.1:${port}`;
  const trust = [
    'NODE_EXTRA_CA_CERTS',
    'DENO_CERT',
    'SSL_CERT_FILE',
    'REQUESTS_CA_BUNDLE',
    'CURL_CA_BUNDLE',
    'GIT_SSL_CAINFO',
    'PIP_CERT',
  ];
  return {
    http_proxy: proxy,
    HTTP_PROXY: proxy,
    https_proxy: proxy,
    HTTPS_PROXY: proxy,
    NODE_USE_ENV_PROXY: '1',
    ...(ca && Object.fromEntries(trust.map((name) => [name, ca]))),
  };
}

/** A response as it came, read to the end of the connection or of its body. */
export interface RawAnswer {
  readonly status: number;
  readonly head: string;
  readonly body: string;
}

/** Reads one response with a Content-Length. */
export async function readAnswer(socket: Socket): Promise<RawAnswer> {
  let text = '';
  const { promise, resolve, reject } = Promise.withResolvers<RawAnswer>();
  const timer = setTimeout(
    () => reject(new Error(`no whole response: ${JSON.stringify(text.slice(0, 500))}`)),
    10_000,
  );
  const finish = (closed: boolean) => {
    const end = text.indexOf('\r\n\r\n');
    const head = text.slice(0, end);
    const length = Number(/^content-length: (\d+)/im.exec(head)?.[1] ?? 0);
    if (end >= 0 && text.length >= end + 4 + length)
      resolve({ status: Number(head.slice(9, 12)), head, body: text.slice(end + 4) });
    else if (closed) reject(new Error(`closed: ${JSON.stringify(text.slice(0, 500))}`));
  };
  const data = (chunk: Buffer) => {
    text += chunk.toString('latin1');
    finish(false);
  };
  const closed = () => finish(true);
  socket.on('data', data).on('end', closed).on('close', closed).resume();
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    socket.off('data', data).off('end', closed).off('close', closed).pause();
  }
}

/** A connection to a port of Postern; errors are seen as its end. */
export async function open(port: number): Promise<Socket> {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  await once(socket, 'connect');
  socket.on('error', () => {});
  return socket;
}

/** Asks for a tunnel. */
export async function tunnel(
  port: number,
  authority: string,
): Promise<{ readonly socket: Socket; readonly answer: RawAnswer }> {
  const socket = await open(port);
  socket.write(`CONNECT ${authority} HTTP/1.1\r\nHost: ${authority}\r\n\r\n`);
  return { socket, answer: await readAnswer(socket) };
}

/** TLS through a tunnel. */
export async function secured(socket: Socket, options: ConnectionOptions): Promise<TLSSocket> {
  const secure = connectTls({ socket, ...options });
  secure.on('error', () => {});
  await once(secure, 'secureConnect');
  return secure;
}

/** Waits until the other side has ended the connection, in whatever way. */
export async function ended(socket: Socket): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  socket.on('end', resolve).on('close', resolve).resume();
  if (socket.destroyed) resolve();
  await promise;
  socket.destroy();
}
