import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';

import { Postern } from '../test/support/postern.ts';
import { aptInstall, which } from '../test/support/servers/install.ts';
import { answers, capture, freePort, launch, mark, ready } from '../test/support/servers/process.ts';
import { discard, freshFolder, writeRecord } from '../test/support/servers/state.ts';
import { certificates, Unavailable } from '../test/support/servers.ts';
import type { Newcomer } from './candidates.ts';
import { cpuSeconds, residentGrowth, type Sample } from './measure.ts';

/** Someone between wrk and the origin. */
export interface HttpCandidate {
  readonly name: 'direct' | 'Postern' | 'nginx' | 'HAProxy' | 'http-proxy';
  readonly port: number;
  /** Its process; undefined for `direct`. */
  readonly pid: number | undefined;
}

/** What wrk asks for. */
export interface Load {
  readonly connections: number;
  readonly path: string;
  readonly seconds: number;
  /** Fields as a browser or an SDK sends them, about 700 bytes. */
  readonly realHead?: boolean;
  /** POST with a body of so many bytes. */
  readonly post?: number;
  /** A connection for each request. */
  readonly close?: boolean;
}

/** An nginx with one process as origin, and everyone who can stand before it. */
export interface HttpCast extends AsyncDisposable {
  readonly versions: Readonly<Record<string, string>>;
  readonly plain: readonly HttpCandidate[];
  /** The origin speaks TLS and is verified; the client's side is plain. */
  readonly tls: readonly HttpCandidate[];
  readonly missing: readonly string[];
  load(candidate: HttpCandidate, load: Load): Promise<Sample>;
  newcomer(name: 'Postern' | 'nginx' | 'HAProxy'): Promise<Newcomer | undefined>;
}

export async function assembleHttp(): Promise<HttpCast> {
  await using stack = new AsyncDisposableStack();
  const wrk = await program('wrk', 'wrk');
  const nginx = await program('nginx', 'nginx-light');
  const haproxy = await program('haproxy', 'haproxy').catch(() => undefined);
  const folder = await freshFolder(`bench-http-${process.pid}`);
  const { server: leaf, ca } = await certificates();
  const origin = { plain: await freePort(), tls: await freePort() };
  const daemons = new Daemons(folder);
  stack.use(daemons);

  await writeFile(join(folder, '64k'), Buffer.alloc(64 * 1024, 'x'));
  await writeFile(join(folder, '1m'), Buffer.alloc(1024 * 1024, 'x'));
  await daemons.nginx(nginx, 'origin', originConfig(folder, origin, leaf), origin.plain);
  const missing = haproxy ? [] : ['HAProxy: not installed (apt-get install haproxy)'];

  const start = async (tls: boolean): Promise<HttpCandidate[]> => {
    const upstream = tls ? origin.tls : origin.plain;
    const postern = stack.use(await startPostern(upstream, tls ? ca : undefined));
    const between: HttpCandidate[] = [
      { name: 'direct', port: origin.plain, pid: undefined },
      { name: 'Postern', port: postern.port('api'), pid: postern.pid },
      { name: 'nginx', ...(await daemons.proxy('nginx', nginx, upstream, tls ? ca : undefined)) },
    ];
    if (haproxy)
      between.push({
        name: 'HAProxy',
        ...(await daemons.proxy('HAProxy', haproxy, upstream, tls ? ca : undefined)),
      });
    if (!tls) between.push({ name: 'http-proxy', ...(await daemons.httpProxy(upstream)) });
    return between;
  };
  const plain = await start(false);
  const tls = await start(true);
  const version = async (command: string, args: readonly string[]) => {
    const { stdout, stderr } = await capture(command, args);
    return (stdout || stderr).split('\n')[0]?.trim() ?? '';
  };
  const ours = stack.move();
  return {
    versions: {
      nginx: await version(nginx, ['-v']),
      ...(haproxy && { HAProxy: await version(haproxy, ['-v']) }),
      wrk: (await version(wrk, ['-v'])).replace(/ \[.*/, ''),
    },
    plain,
    tls,
    missing,
    load: (candidate, load) => runWrk(wrk, folder, candidate, load),
    newcomer: async (name) => {
      if (name === 'Postern') {
        const postern = await startPostern(origin.plain, undefined);
        return {
          pid: postern.pid,
          port: postern.port('api'),
          [Symbol.asyncDispose]: () => postern[Symbol.asyncDispose](),
        };
      }
      const command = name === 'nginx' ? nginx : haproxy;
      if (command === undefined) return undefined;
      return {
        ...(await daemons.proxy(name, command, origin.plain, undefined)),
        [Symbol.asyncDispose]: async () => {},
      };
    },
    [Symbol.asyncDispose]: () => ours.disposeAsync(),
  };
}

async function program(name: string, debianPackage: string): Promise<string> {
  const found = () => which(name).then((path) => path ?? which(`/usr/sbin/${name}`));
  const before = await found();
  if (before) return before;
  await aptInstall([debianPackage]);
  const after = await found();
  if (!after) throw new Unavailable(`${name} is not installed`);
  return after;
}

/** Postern as its users run it: requests counted, the credential from a file. */
async function startPostern(upstream: number, ca: string | undefined): Promise<Postern> {
  const settings = ca
    ? { upstream: `https://localhost:${upstream}`, tls: { ca } }
    : { upstream: `http://127.0.0.1:${upstream}`, allowPlainHttp: true };
  const service = {
    connector: 'http',
    listenOn: 'tcp://127.0.0.1:0',
    limits: { maxConnections: 5000 },
    credentials: { token: { from: 'env', get: 'BENCH_TOKEN' } },
    config: { ...settings, authenticate: { bearer: 'token' } },
  };
  return await Postern.start(JSON.stringify({ version: 2, services: { api: service } }), {
    args: ['--log-level', 'info'],
    env: { BENCH_TOKEN: 'bench-token' },
    ...(process.env['BENCH_NODE_OPTIONS'] && { nodeOptions: process.env['BENCH_NODE_OPTIONS'] }),
  });
}

/** One process each, as Postern is one. */
class Daemons implements AsyncDisposable {
  readonly #folder: string;
  readonly #names: string[] = [];

  constructor(folder: string) {
    this.#folder = folder;
  }

  async nginx(
    command: string,
    name: string,
    config: string,
    port: number,
  ): Promise<{ port: number; pid: number }> {
    const path = join(this.#folder, `${name}.conf`);
    await writeFile(path, config);
    return await this.#launch(name, command, ['-c', path, '-p', this.#folder], port);
  }

  async proxy(
    kind: 'nginx' | 'HAProxy',
    command: string,
    upstream: number,
    ca: string | undefined,
  ): Promise<{ port: number; pid: number }> {
    const port = await freePort();
    const name = `${kind}-${port}`;
    if (kind === 'nginx')
      return await this.nginx(command, name, nginxProxy(this.#folder, name, port, upstream, ca), port);
    const path = join(this.#folder, `${name}.cfg`);
    await writeFile(path, haproxyConfig(port, upstream, ca));
    return await this.#launch(name, command, ['-db', '-f', path], port);
  }

  async httpProxy(upstream: number): Promise<{ port: number; pid: number }> {
    const port = await freePort();
    const program = join(import.meta.dirname, 'http-proxy.ts');
    const env = {
      ...process.env,
      BENCH_PROXY: JSON.stringify({ port, target: `http://127.0.0.1:${upstream}` }),
    };
    return await this.#launch(
      `http-proxy-${port}`,
      process.execPath,
      ['--no-deprecation', program],
      port,
      env,
    );
  }

  async #launch(
    name: string,
    command: string,
    args: readonly string[],
    port: number,
    env: NodeJS.ProcessEnv = process.env,
  ): Promise<{ port: number; pid: number }> {
    const record = `bench-${name}-${process.pid}`;
    const folder = await freshFolder(record);
    const log = join(folder, 'log');
    const daemon = await launch({ command, args, log, cwd: folder, env });
    await writeRecord(record, { process: daemon, port, info: {}, owner: mark(process.pid), ready: true });
    this.#names.push(record);
    await ready(name, daemon, log, () => answers(port));
    return { port, pid: daemon.pid };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const name of this.#names) await discard(name);
    await discard(`bench-http-${process.pid}`);
  }
}

/** `master_process off`: one process does everything, so that its CPU is that of one pid. */
function nginxBase(folder: string, name: string): string {
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (kind) => `${kind}_temp_path ${folder}/${name}-${kind};`,
  );
  return `daemon off; master_process off; worker_processes 1; error_log stderr crit; pid ${folder}/${name}.pid;
events { worker_connections 8192; }
http {
  access_log off; keepalive_requests 1000000000; keepalive_timeout 300s; client_body_buffer_size 64k;
  ${temporary.join('\n  ')}
`;
}

function originConfig(
  folder: string,
  ports: { readonly plain: number; readonly tls: number },
  leaf: { readonly cert: string; readonly key: string },
): string {
  return `${nginxBase(folder, 'origin')}
  server {
    listen 127.0.0.1:${ports.plain} backlog=4096;
    listen 127.0.0.1:${ports.tls} ssl backlog=4096;
    ssl_certificate ${leaf.cert}; ssl_certificate_key ${leaf.key};
    location = /tiny { default_type text/plain; return 200 "hello world\\n"; }
    location = /sink { default_type text/plain; return 200 "ok\\n"; }
    location / { root ${folder}; }
  }
}
`;
}

function nginxProxy(
  folder: string,
  name: string,
  port: number,
  upstream: number,
  ca: string | undefined,
): string {
  return `${nginxBase(folder, name)}
  upstream origin { server 127.0.0.1:${upstream}; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:${port} backlog=4096;
    location / {
      proxy_pass ${ca ? 'https' : 'http'}://origin; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_set_header Authorization "Bearer bench-token";
      ${ca ? `proxy_ssl_verify on; proxy_ssl_trusted_certificate ${ca}; proxy_ssl_name localhost; proxy_ssl_server_name on;` : ''}
    }
  }
}
`;
}

function haproxyConfig(port: number, upstream: number, ca: string | undefined): string {
  return `global
  nbthread 1
  maxconn 5000
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  http-reuse always
frontend in
  bind 127.0.0.1:${port}
  http-request set-header Authorization "Bearer bench-token"
  default_backend out
backend out
  server origin 127.0.0.1:${upstream} ${ca ? `ssl verify required ca-file ${ca} sni str(localhost) verifyhost localhost` : ''}
`;
}

const realFields: Readonly<Record<string, string>> = {
  'User-Agent':
    'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36',
  Accept: 'application/json, text/plain, */*',
  'Accept-Language': 'en-GB,en;q=0.9,de;q=0.8,fr;q=0.7',
  'Accept-Encoding': 'gzip, deflate, br, zstd',
  'Content-Type': 'application/json; charset=utf-8',
  'X-Request-Id': '6f1c2a3e-9a55-4f0d-8a4b-0c8d6f5b2e11',
  Traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
  Referer: 'http://app.example.com/orders/2026/11/overview?page=3&sort=created',
  Cookie: 'session=3f0d8a4b0c8d6f5b2e116f1c2a3e9a55; theme=dark; locale=en-GB; seen=1732190400',
  'Cache-Control': 'no-cache',
  Pragma: 'no-cache',
  DNT: '1',
};

/** Requests a second. */
async function runWrk(wrk: string, folder: string, candidate: HttpCandidate, load: Load): Promise<Sample> {
  const script = join(folder, 'load.lua');
  const headers = { ...(load.realHead && realFields), ...(load.close && { Connection: 'close' }) };
  const lines = Object.entries(headers).map(
    ([name, value]) => `wrk.headers[${JSON.stringify(name)}] = ${JSON.stringify(value)}`,
  );
  if (load.post !== undefined) lines.push('wrk.method = "POST"', `wrk.body = string.rep("x", ${load.post})`);
  await writeFile(script, lines.join('\n'));
  const before = await cpuSeconds(candidate.pid);
  const { code, stdout, stderr } = await capture(
    wrk,
    [
      '-t1',
      `-c${load.connections}`,
      `-d${load.seconds}s`,
      '-s',
      script,
      `http://127.0.0.1:${candidate.port}${load.path}`,
    ],
    { timeout: (load.seconds + 30) * 1000 },
  );
  const after = await cpuSeconds(candidate.pid);
  const value = Number(/^Requests\/sec:\s+([\d.]+)/m.exec(stdout)?.[1]);
  const transactions = Number(/^\s*(\d+) requests in/m.exec(stdout)?.[1]);
  const failed = /Non-2xx or 3xx responses: \d+/.exec(stdout)?.[0] ?? /Socket errors:.*/.exec(stdout)?.[0];
  // wrk counts the close that it asked for as an error of reading.
  if (code !== 0 || !(value > 0) || (failed !== undefined && !load.close))
    throw new Error(`wrk through ${candidate.name} failed: ${failed ?? stderr.trim().slice(-300)}`);
  return {
    value,
    transactions,
    ...(before !== undefined && after !== undefined && { cpuSeconds: after - before }),
  };
}

/** Resident memory with 0, half and all of the keep-alive connections, each of which has made one request. */
export async function idleHttpMemory(
  newcomer: Newcomer,
  connections: number,
): Promise<[number, number, number]> {
  return await residentGrowth(newcomer, connections, openIdle);
}

async function openIdle(port: number): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port, noDelay: true });
  await once(socket, 'connect');
  socket.write('GET /tiny HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n');
  let seen = '';
  for await (const chunk of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    seen += chunk.toString('latin1');
    if (seen.endsWith('hello world\n')) return socket;
  }
  throw new Error('a connection for counting memory was closed');
}
