import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { aptInstall, which } from '../servers/install.ts';
import { capture } from '../servers/process.ts';
import { buildable, buildGo, installPython } from './program.ts';

/** What a client is to do; test/e2e/clients/README.md says what each does. */
export type HttpAction = 'get' | 'post' | 'upload';

/** What it got; `status` is 0 where it got nothing, and `error` says what it made of that. */
export interface HttpAnswer {
  readonly status: number;
  readonly type?: string;
  readonly length?: number;
  readonly sha256?: string;
  /** The body, where it is short. */
  readonly text?: string;
  readonly error?: string;
}

/** A client of HTTP as an application has it. It learns of a proxy and of a CA by variables alone. */
export interface HttpClient {
  readonly name: string;
  /** Installs and builds it, once; throws `Unavailable` where its language is missing. */
  readonly prepare: () => Promise<void>;
  readonly ask: (
    action: HttpAction,
    url: string,
    env: Readonly<Record<string, string>>,
  ) => Promise<HttpAnswer>;
}

/** The body of `upload`: 1 MiB, without a length where the client can. */
export const uploaded = Buffer.alloc(16_384 * 64, 'z');

type Environment = Readonly<Record<string, string>>;

/** Nothing of the developer's own: no proxies, no authorities, no configuration files. */
function bare(env: Environment, home: string): NodeJS.ProcessEnv {
  return { PATH: process.env['PATH'], HOME: home, ...env };
}

async function needed(program: string, packageName = program): Promise<void> {
  if (!(await which(program))) await aptInstall([packageName]);
}

/** Runs a program with an empty folder as its home, and gives the folder's files to whoever reads the answer. */
async function inFolder<T>(use: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'postern-http-client-'));
  try {
    return await use(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function answer(status: number, type: string, content: Buffer): HttpAnswer {
  return {
    status,
    type,
    length: content.length,
    sha256: createHash('sha256').update(content).digest('hex'),
    text: content.length <= 65_536 ? content.toString() : '',
  };
}

const curl: HttpClient = {
  name: 'curl',
  prepare: () => needed('curl'),
  ask: (action, url, env) =>
    inFolder(async (folder) => {
      const body = join(folder, 'body');
      const input = action === 'upload' ? uploaded.toString() : undefined;
      const args = ['-sS', '--max-time', '30', '-o', body, '-w', '%{http_code} %{content_type}'];
      if (action !== 'get') args.push('-H', 'Content-Type: application/json');
      if (action === 'post') args.push('--data', '{"n":1}');
      // From a pipe, so in chunks.
      if (action === 'upload') args.push('-X', 'POST', '-T', '-');
      const { code, stdout, stderr } = await capture('curl', [...args, url], {
        env: bare(env, folder),
        timeout: 40_000,
        ...(input !== undefined && { input }),
      });
      const [status = '0', ...type] = stdout.split(' ');
      // 000: nothing came, or the proxy refused the tunnel.
      if (code !== 0 || Number(status) === 0) return { status: 0, error: stderr };
      return answer(Number(status), type.join(' '), await readFile(body).catch(() => Buffer.alloc(0)));
    }),
};

const wget: HttpClient = {
  name: 'wget',
  prepare: () => needed('wget'),
  ask: (action, url, env) =>
    inFolder(async (folder) => {
      const body = join(folder, 'body');
      const args = ['-S', '--tries=1', '--timeout=30', '--content-on-error', '--max-redirect=0', '-O', body];
      // It reads no variable for a CA.
      if (env['SSL_CERT_FILE']) args.push('--ca-certificate', env['SSL_CERT_FILE']);
      if (action === 'post') args.push('--header=Content-Type: application/json', '--post-data={"n":1}');
      if (action === 'upload') {
        await writeFile(join(folder, 'upload'), uploaded);
        args.push('--header=Content-Type: application/json', `--post-file=${join(folder, 'upload')}`);
      }
      const { code, stderr } = await capture('wget', [...args, url], {
        env: bare(env, folder),
        timeout: 40_000,
      });
      const status = Number(
        /^ {2}HTTP\/1\.[01] (\d{3})/m.exec(stderr.split('  HTTP/1.1 200 Connection').at(-1) ?? '')?.[1] ?? 0,
      );
      if (code !== 0 && status === 0) return { status: 0, error: stderr };
      const type = /^ {2}content-type: (.*)$/im.exec(stderr)?.[1] ?? '';
      return answer(status, type, await readFile(body));
    }),
};

const nodeProgram = fileURLToPath(new URL('../../e2e/clients/node-http/client.ts', import.meta.url));

function nodeClient(name: string): HttpClient {
  return {
    name,
    prepare: async () => {},
    ask: async (action, url, env) => {
      const args = ['--no-warnings', nodeProgram, name, action, url];
      const { stdout, stderr } = await capture(process.execPath, args, { env: bare(env, '/nonexistent') });
      return parse(name, stdout, stderr);
    },
  };
}

const python = buildable({
  name: 'python-http',
  files: ['requirements.txt'],
  build: installPython,
  command: (source, folder) => ['env', `PYTHONPATH=${folder}`, 'python3', join(source, 'client.py')],
});

function pythonClient(name: string): HttpClient {
  return {
    name,
    prepare: python.prepare,
    ask: async (action, url, env) => (await python.ask([name, action, url], env)) as HttpAnswer,
  };
}

/** Sends three texts over a WebSocket and counts those that come back. */
export async function pythonWebSocket(
  url: string,
  env: Environment,
): Promise<HttpAnswer & { echoed?: number }> {
  return (await python.ask(['websockets', 'websocket', url], env)) as HttpAnswer & { echoed?: number };
}

const go = buildable({
  name: 'go-http',
  files: ['go.mod', 'main.go'],
  build: (source, folder) => buildGo(source, join(folder, 'go-http')),
  command: (_, folder) => [join(folder, 'go-http')],
});

const goClient: HttpClient = {
  name: 'go',
  prepare: go.prepare,
  ask: async (action, url, env) => (await go.ask([action, url], env)) as HttpAnswer,
};

function parse(name: string, stdout: string, stderr: string): HttpAnswer {
  if (!stdout.startsWith('{')) throw new Error(`${name} said nothing: ${stderr.slice(-2000)}`);
  return JSON.parse(stdout) as HttpAnswer;
}

/** Every client there is. */
export const httpClients: readonly HttpClient[] = [
  curl,
  wget,
  nodeClient('fetch'),
  nodeClient('undici'),
  nodeClient('axios'),
  pythonClient('requests'),
  pythonClient('httpx'),
  pythonClient('urllib'),
  goClient,
];
