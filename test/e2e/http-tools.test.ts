import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
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
});
