import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';

import { HttpOrigin } from '../support/http-origin.ts';
import { which } from '../support/servers/install.ts';
import { capture, run } from '../support/servers/process.ts';
import { clientEnvironment, Papers, performHttp, token } from './http-stage.ts';

/** git's own server as a CGI program (RFC 3875), for those who have the credential. */
function gitBackend(root: string, seen: (string | undefined)[]) {
  return (request: IncomingMessage, response: ServerResponse): boolean => {
    seen.push(request.headers.authorization);
    if (request.headers.authorization !== `Bearer ${token}`) {
      response.writeHead(401, { 'www-authenticate': 'Basic', 'content-length': 0 }).end();
      return true;
    }
    const { pathname, searchParams } = new URL(request.url ?? '', 'http://x');
    const child = spawn('git', ['http-backend'], {
      env: {
        PATH: process.env['PATH'],
        GIT_PROJECT_ROOT: root,
        GIT_HTTP_EXPORT_ALL: '1',
        REMOTE_USER: 'app',
        REQUEST_METHOD: request.method,
        PATH_INFO: pathname,
        QUERY_STRING: searchParams.toString(),
        CONTENT_TYPE: request.headers['content-type'] ?? '',
        ...(request.headers['content-encoding'] && {
          HTTP_CONTENT_ENCODING: request.headers['content-encoding'],
        }),
        ...(request.headers['git-protocol'] && { GIT_PROTOCOL: String(request.headers['git-protocol']) }),
      },
    });
    request.pipe(child.stdin);
    child.stdin.on('error', () => {});
    const chunks: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk));
    void once(child, 'close').then(() => {
      const all = Buffer.concat(chunks);
      const end = all.indexOf('\r\n\r\n');
      for (const line of all.toString('latin1', 0, end).split('\r\n')) {
        const [name = '', value = ''] = line.split(': ');
        if (name === 'Status') response.statusCode = Number(value.slice(0, 3));
        else response.setHeader(name, value);
      }
      response.end(all.subarray(end + 4));
    });
    return true;
  };
}

async function folderOf(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'postern-tools-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

describe('tools that speak HTTP', () => {
  it('git clones over https from a server that wants a credential, pushes, and has none itself', async (t) => {
    if (!(await which('git'))) return t.skip('install git');
    const folder = await folderOf(t);
    const git = async (args: readonly string[], env: Record<string, string> = {}) => {
      const identity = [
        '-c',
        'user.name=t',
        '-c',
        'user.email=t@example.com',
        '-c',
        'init.defaultBranch=main',
      ];
      return await run('git', [...identity, ...args], {
        cwd: folder,
        env: { PATH: process.env['PATH'], HOME: folder, GIT_TERMINAL_PROMPT: '0', ...env },
      });
    };
    await git(['init', '-q', '--bare', 'srv/app.git']);
    await git(['-C', 'srv/app.git', 'config', 'http.receivepack', 'true']);
    await git(['init', '-q', 'first']);
    const text = 'line\n'.repeat(200_000);
    await writeFile(join(folder, 'first', 'file'), text);
    await git(['-C', 'first', 'add', 'file']);
    await git(['-C', 'first', 'commit', '-q', '-m', 'one']);

    await using papers = await Papers.make();
    await using origin = await HttpOrigin.open(await papers.leaf('git.test'));
    const seen: (string | undefined)[] = [];
    origin.handle = gitBackend(join(folder, 'srv'), seen);
    await using postern = await performHttp(
      {
        git: {
          config: {
            match: [`https://git.test:${origin.port}/app.git/**`],
            tls: { ca: papers.serversCa },
            intercept: { caCert: papers.local.cert, caKey: papers.local.key },
          },
        },
      },
      { 'git.test': '127.0.0.1' },
    );
    const env = clientEnvironment(postern.port('git'), papers.local.cert);
    const url = `https://git.test:${origin.port}/app.git`;
    await git(['-C', 'first', 'push', '-q', url, 'main'], env);
    await git(['clone', '-q', url, 'second'], env);
    assert.equal(await readFile(join(folder, 'second', 'file'), 'utf8'), text);
    assert.ok(seen.length > 3 && seen.every((each) => each === `Bearer ${token}`));
    const other = await capture('git', ['clone', '-q', `https://git.test:${origin.port}/other.git`], {
      cwd: folder,
      env: { PATH: process.env['PATH'], HOME: folder, GIT_TERMINAL_PROMPT: '0', ...env },
    });
    assert.notEqual(other.code, 0);
    assert.match(other.stderr, /403/);
  });

  it('npm installs from a registry, by forward proxy and by interception, and has no token itself', async (t) => {
    if (!(await which('npm'))) return t.skip('install npm');
    const folder = await folderOf(t);
    const archive = await archiveOf(folder, 'npm', 'package', {
      'package.json': JSON.stringify({ name: 'posternal', version: '1.0.0' }),
      'index.js': `module.exports = ${JSON.stringify('x'.repeat(300_000))};`,
    });
    const integrity = `sha512-${createHash('sha512').update(archive).digest('base64')}`;
    await using scene = await Registry.open(({ pathname }, base) => {
      if (pathname === '/posternal/-/posternal-1.0.0.tgz') return [archive, 'application/octet-stream'];
      if (pathname !== '/posternal') return undefined;
      const dist = { tarball: `${base}/posternal/-/posternal-1.0.0.tgz`, integrity };
      const versions = { '1.0.0': { name: 'posternal', version: '1.0.0', dist } };
      const about = { name: 'posternal', 'dist-tags': { latest: '1.0.0' }, versions };
      return [Buffer.from(JSON.stringify(about)), 'application/json'];
    });
    for (const { base, env, name } of scene.ways) {
      const into = join(folder, name);
      await mkdir(into);
      await writeFile(join(into, 'package.json'), '{"private":true}');
      const args = ['install', '--no-audit', '--no-fund', '--no-update-notifier', '--fetch-retries=0'];
      // A `cafile` of the machine's own would count for more than NODE_EXTRA_CA_CERTS.
      const trust = { npm_config_cafile: env['NODE_EXTRA_CA_CERTS'] };
      const { code, stderr } = await capture(
        'npm',
        [...args, `--registry=${base}/`, `--cache=${join(folder, `cache-${name}`)}`, 'posternal@1.0.0'],
        { cwd: into, env: { PATH: process.env['PATH'], HOME: into, ...env, ...trust }, timeout: 60_000 },
      );
      assert.equal(code, 0, stderr);
      const installed = await readFile(join(into, 'node_modules', 'posternal', 'index.js'), 'utf8');
      assert.ok(installed.length > 300_000);
    }
    scene.assertAuthorized();
  });

  it('pip installs from an index, by forward proxy and by interception, and has no token itself', async (t) => {
    if (!(await which('python3'))) return t.skip('install python3');
    const folder = await folderOf(t);
    const archive = await archiveOf(folder, 'pip', 'posternal-1.0', {
      'PKG-INFO': 'Metadata-Version: 2.1\nName: posternal\nVersion: 1.0\n',
      'setup.py': 'from setuptools import setup\nsetup(name="posternal", version="1.0")\n',
    });
    const sum = createHash('sha256').update(archive).digest('hex');
    await using scene = await Registry.open(({ pathname }) => {
      if (pathname === '/files/posternal-1.0.tar.gz') return [archive, 'application/octet-stream'];
      if (pathname !== '/simple/posternal/') return undefined;
      const link = `<a href="/files/posternal-1.0.tar.gz#sha256=${sum}">posternal-1.0.tar.gz</a>`;
      return [Buffer.from(`<!DOCTYPE html><html><body>${link}</body></html>`), 'text/html'];
    });
    for (const { base, env, name } of scene.ways) {
      // To fetch is the proxy's business; to build would want packages from elsewhere.
      const script = `
import sys
from pip._internal.cli.main import main
sys.exit(main(sys.argv[1:]))`;
      const { host } = new URL(base);
      const args = ['download', '--no-deps', '--no-binary=:all:', '--no-build-isolation', '--retries=0'];
      const { stdout, stderr } = await capture(
        'python3',
        [
          '-c',
          script,
          ...args,
          '--isolated',
          '--no-cache-dir',
          '--disable-pip-version-check',
          '--trusted-host',
          name === 'forward' ? host : 'nobody.test',
          '--proxy',
          env['http_proxy'] ?? '',
          ...(name === 'forward' ? [] : ['--cert', env['PIP_CERT'] ?? '']),
          `--index-url=${base}/simple/`,
          '-d',
          join(folder, name),
          'posternal==1.0',
        ],
        { env: { PATH: process.env['PATH'], HOME: folder, ...env }, timeout: 60_000 },
      );
      assert.match(stdout, /posternal-1\.0\.tar\.gz/, stderr);
      scene.assertFetched('/files/posternal-1.0.tar.gz', name);
    }
    scene.assertAuthorized();
  });
});

/** A gzipped tar of these files, below one folder. */
async function archiveOf(
  folder: string,
  name: string,
  top: string,
  files: Readonly<Record<string, string>>,
): Promise<Buffer> {
  const source = join(folder, `source-${name}`);
  await mkdir(join(source, top), { recursive: true });
  for (const [file, text] of Object.entries(files)) await writeFile(join(source, top, file), text);
  await run('tar', ['-czf', join(folder, `${name}.tgz`), '-C', source, top]);
  return await readFile(join(folder, `${name}.tgz`));
}

interface Seen {
  readonly url: string;
  readonly authorization: string | undefined;
  readonly name: string;
}

type Page = (url: URL, base: string) => readonly [Buffer, string] | undefined;

/** A registry of packages, in clear and under TLS, for those who have the token, with Postern as the way to it. */
class Registry implements AsyncDisposable {
  readonly ways: readonly {
    readonly name: string;
    readonly base: string;
    readonly env: Readonly<Record<string, string>>;
  }[];
  readonly #stack: AsyncDisposableStack;
  readonly #seen: readonly Seen[];

  private constructor(stack: AsyncDisposableStack, ways: Registry['ways'], seen: Seen[]) {
    this.#stack = stack;
    this.ways = ways;
    this.#seen = seen;
  }

  static async open(page: Page): Promise<Registry> {
    const stack = new AsyncDisposableStack();
    const papers = stack.use(await Papers.make());
    const origins = {
      forward: stack.use(await HttpOrigin.open()),
      intercepted: stack.use(await HttpOrigin.open(await papers.leaf('registry.test'))),
    };
    const bases = {
      forward: `http://registry.test:${origins.forward.port}`,
      intercepted: `https://registry.test:${origins.intercepted.port}`,
    };
    const seen: Seen[] = [];
    for (const name of ['forward', 'intercepted'] as const)
      origins[name].handle = (request, response) => {
        const { url = '', headers } = request;
        seen.push({ url, authorization: headers.authorization, name });
        const found = page(new URL(url, bases[name]), bases[name]);
        const allowed = headers.authorization === `Bearer ${token}`;
        const [body, type] = (allowed && found) || [Buffer.from('no'), 'text/plain'];
        response.writeHead(allowed ? (found ? 200 : 404) : 401, {
          'content-type': type,
          'content-length': body.length,
        });
        response.end(body);
        return true;
      };
    const postern = stack.use(
      await performHttp(
        {
          registry: {
            config: {
              match: Object.values(bases).map((base) => `${base}/**`),
              allowPlainHttp: true,
              tls: { ca: papers.serversCa },
              intercept: { caCert: papers.local.cert, caKey: papers.local.key },
            },
          },
        },
        { 'registry.test': '127.0.0.1' },
      ),
    );
    const env = clientEnvironment(postern.port('registry'), papers.local.cert);
    const ways = (['forward', 'intercepted'] as const).map((name) => ({ name, base: bases[name], env }));
    return new Registry(stack, ways, seen);
  }

  assertAuthorized(): void {
    assert.ok(this.#seen.length >= 4);
    for (const { url, authorization } of this.#seen) assert.equal(authorization, `Bearer ${token}`, url);
  }

  assertFetched(path: string, way: string): void {
    assert.ok(
      this.#seen.some(({ url, name }) => url === path && name === way),
      `${way} ${path}`,
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}
