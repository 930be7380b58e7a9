import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';

import { withDriver } from '../support/clients/drivers.ts';
import { httpClients, uploaded } from '../support/clients/http-clients.ts';
import { big, HttpOrigin } from '../support/http-origin.ts';
import { aptInstall, which } from '../support/servers/install.ts';
import { answers, freePort } from '../support/servers/process.ts';
import { clientEnvironment, open, Papers, performHttp, readAnswer, token } from './http-stage.ts';
import { eventually, shared } from './stage.ts';

const sha256 = (bytes: Buffer | string) => createHash('sha256').update(bytes).digest('hex');
const ends: (() => Promise<unknown>)[] = [];
after(async () => {
  for (const end of ends.toReversed()) await end();
});

/** nginx, plain and with TLS: files for those who have the credential, and uploads. */
async function startNginx(papers: Papers): Promise<{ plain: number; tls: number }> {
  if (!(await which('nginx'))) await aptInstall(['nginx-light']);
  const folder = await mkdtemp(join(tmpdir(), 'postern-nginx-'));
  ends.push(() => rm(folder, { recursive: true, force: true }));
  const [plain, tls] = [await freePort(), await freePort()];
  const { cert, key } = await papers.leaf('nginx.test');
  await mkdir(join(folder, 'files'));
  await writeFile(join(folder, 'files', 'big'), big);
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (name) => `${name}_temp_path ${folder}/${name};`,
  );
  const server = `
    if ($http_authorization != "Bearer ${token}") { return 401; }
    location / { root ${folder}/files; }
    location /echo { client_max_body_size 10m; add_header X-Host $http_host always; return 200 "$request_method $request_uri"; }
    location /up { dav_methods PUT; root ${folder}; client_max_body_size 10m; }`;
  await writeFile(
    join(folder, 'nginx.conf'),
    `daemon off; worker_processes 1; user root; pid ${folder}/pid; error_log stderr;
     events { worker_connections 200; }
     http { access_log off; ${temporary.join(' ')}
       server { listen 127.0.0.1:${plain}; ${server} }
       server { listen 127.0.0.1:${tls} ssl; ssl_certificate ${cert}; ssl_certificate_key ${key}; ${server} } }`,
  );
  const path = (await which('nginx')) ?? 'nginx';
  const args = ['-p', folder, '-e', 'stderr', '-c', join(folder, 'nginx.conf')];
  const child = spawn(path, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
  ends.push(async () => {
    if (child.exitCode !== null) return;
    child.kill('SIGQUIT');
    await once(child, 'exit');
  });
  await eventually('nginx', async () => {
    assert.equal(child.exitCode, null, said);
    return (await answers(plain)) && (await answers(tls));
  });
  return { plain, tls };
}

const scene = shared(async () => {
  const papers = await Papers.make();
  ends.push(() => papers[Symbol.asyncDispose]());
  const nginx = await startNginx(papers);
  const node = {
    plain: await HttpOrigin.open(),
    tls: await HttpOrigin.open(await papers.leaf('node.test')),
  };
  ends.push(
    () => node.plain[Symbol.asyncDispose](),
    () => node.tls[Symbol.asyncDispose](),
  );
  const origins = {
    nginx: { ...nginx, host: 'nginx.test' },
    node: { plain: node.plain.port, tls: node.tls.port, host: 'node.test' },
  };
  const tls = { ca: papers.serversCa };
  const services = Object.entries(origins).flatMap(([name, at]) => [
    [`${name}-plain`, { config: { upstream: `http://${at.host}:${at.plain}`, allowPlainHttp: true } }],
    [`${name}-tls`, { config: { upstream: `https://${at.host}:${at.tls}`, tls } }],
    [
      `${name}-forward`,
      {
        config: {
          match: [`http://${at.host}:${at.plain}/**`, `https://${at.host}:${at.tls}/**`],
          allowPlainHttp: true,
          tls,
          intercept: { caCert: papers.local.cert, caKey: papers.local.key },
        },
      },
    ],
  ]);
  const postern = await performHttp(Object.fromEntries(services) as Parameters<typeof performHttp>[0], {
    'nginx.test': '127.0.0.1',
    'node.test': '127.0.0.1',
  });
  ends.push(() => postern[Symbol.asyncDispose]());
  return { papers, origins, node, postern };
});

/** Of each family one: the others have their tests beside this one. */
const some = { nginx: ['curl', 'wget', 'fetch', 'requests', 'go'], node: ['curl', 'go'] };

for (const origin of ['nginx', 'node'] as const)
  describe(`${origin} as the server, plain and under TLS`, { timeout: 180_000 }, () => {
    for (const client of httpClients.filter(({ name }) => some[origin].includes(name)))
      it(`gets the requests of ${client.name}: to one server, by forward proxy, by interception`, async (t) => {
        const here = await scene(t);
        if (!here || !(await withDriver(t, client))) return;
        const { origins, postern, papers, node } = here;
        const { host, plain, tls } = origins[origin];
        const proxied = clientEnvironment(postern.port(`${origin}-forward`), papers.local.cert);
        const uploads = node.plain.received.length + node.tls.received.length;
        for (const [base, env] of [
          [`http://localhost:${postern.port(`${origin}-plain`)}`, {}],
          [`http://localhost:${postern.port(`${origin}-tls`)}`, {}],
          [`http://${host}:${plain}`, proxied],
          [`https://${host}:${tls}`, proxied],
        ] as const) {
          const got = await client.ask('get', `${base}/big`, env);
          assert.deepEqual([got.status, got.sha256], [200, sha256(big)], `${base}: ${got.error}`);
          const sent = await client.ask('upload', `${base}/echo`, env);
          assert.equal(sent.status, 200, `${base}: ${sent.error}`);
          if (origin === 'nginx') assert.equal(sent.text, 'POST /echo');
        }
        if (origin === 'nginx') return;
        const received = [...node.plain.received, ...node.tls.received];
        assert.equal(received.length, uploads + 8);
        assert.equal(received.filter(({ sha256: sum }) => sum === sha256(uploaded)).length % 4, 0);
        for (const { authorization } of received) assert.equal(authorization, `Bearer ${token}`);
      });

    it('serves a client of HTTP/1.0, with a length and without, kept and not', async (t) => {
      const here = await scene(t);
      if (!here) return;
      const { postern } = here;
      for (const service of [`${origin}-plain`, `${origin}-tls`]) {
        const socket = await open(postern.port(service));
        for (let i = 0; i < 2; i += 1) {
          socket.write('GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n');
          const { status, head } = await readAnswer(socket);
          assert.equal(status, 200);
          assert.match(head, /\r\nConnection: keep-alive/i);
        }
        socket.write('GET /big HTTP/1.0\r\n\r\n');
        const pieces: Buffer[] = [];
        socket.on('data', (piece: Buffer) => pieces.push(piece)).resume();
        await once(socket, 'end');
        const all = Buffer.concat(pieces);
        assert.equal(sha256(all.subarray(all.indexOf('\r\n\r\n') + 4)), sha256(big), service);
        assert.ok(!all.subarray(0, 500).includes('chunked'));
        socket.destroy();
      }
    });
  });

describe('a server of HTTP/1.0', () => {
  it('that ends each response with its connection serves all clients', async (t) => {
    const server = createServer((socket) => {
      let head = '';
      socket.setEncoding('latin1').on('data', (text: string) => {
        head += text;
        if (!head.includes('\r\n\r\n')) return;
        const good = head.includes(`Authorization: Bearer ${token}\r\n`);
        socket.write(`HTTP/1.0 ${good ? '200 OK' : '401 No'}\r\nContent-Type: text/plain\r\n\r\n`);
        socket.end(big);
      });
      socket.on('error', () => {});
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    t.after(() => server.close());
    const { port } = server.address() as { port: number };
    await using postern = await performHttp(
      { api: { config: { upstream: `http://127.0.0.1:${port}`, allowPlainHttp: true } } },
      {},
    );
    for (const client of httpClients.filter(({ name }) => some.nginx.includes(name))) {
      if (!(await withDriver(t, client))) continue;
      const got = await client.ask('get', `http://localhost:${postern.port('api')}/x`, {});
      assert.deepEqual([got.status, got.sha256], [200, sha256(big)], `${client.name}: ${got.error}`);
    }
    // A client that only listens on: the end is an end in order.
    const socket = connect(postern.port('api'), '127.0.0.1');
    socket.write('GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n');
    let length = 0;
    socket.on('data', (bytes: Buffer) => (length += bytes.length));
    await once(socket, 'end');
    assert.ok(length > big.length);
  });
});
