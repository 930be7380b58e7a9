import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, describe, it } from 'node:test';

import { withDriver } from '../support/clients/drivers.ts';
import { httpClients, uploaded } from '../support/clients/http-clients.ts';
import { big, HttpOrigin } from '../support/http-origin.ts';
import type { Postern } from '../support/postern.ts';
import { freePort } from '../support/servers/process.ts';
import {
  clientEnvironment,
  ended,
  type HttpService,
  httpConfiguration,
  open,
  Papers,
  performHttp,
  type RawAnswer,
  readAnswer,
  secured,
  token,
  tunnel,
} from './http-stage.ts';
import { eventually, shared } from './stage.ts';

const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');
const ends: (() => Promise<unknown>)[] = [];
after(async () => {
  for (const end of ends.toReversed()) await end();
});

const hosts = {
  'plain.test': '127.0.0.1',
  'tls.test': '127.0.0.1',
  'inner.test': '127.0.0.1',
  'moving.test': '127.0.0.1|10.0.0.1',
};

const scene = shared(async () => {
  const papers = await Papers.make();
  ends.push(() => papers[Symbol.asyncDispose]());
  const [plain, tls] = [await HttpOrigin.open(), await HttpOrigin.open(await papers.leaf('tls.test'))];
  ends.push(
    () => plain[Symbol.asyncDispose](),
    () => tls[Symbol.asyncDispose](),
  );
  return { papers, plain, tls };
});

type Scene = NonNullable<Awaited<ReturnType<typeof scene>>>;

const plainService = ({ plain }: Scene, path = '/**'): HttpService => ({
  config: { match: [`http://plain.test:${plain.port}${path}`], allowPlainHttp: true },
});
const tlsService = ({ tls, papers }: Scene): HttpService => ({
  config: { match: [`http://tls.test:${tls.port}/**`], forceTls: true, tls: { ca: papers.serversCa } },
});

/** One request as a client of a proxy writes it, on a connection of its own or on one that is open. */
async function ask(
  to: number | Awaited<ReturnType<typeof open>>,
  target: string,
  more = '',
): Promise<RawAnswer> {
  const socket = typeof to === 'number' ? await open(to) : to;
  const host = /^https?:\/\/([^/]+)/.exec(target)?.[1] ?? 'localhost';
  socket.write(`GET ${target} HTTP/1.1\r\nHost: ${host}\r\n${more}\r\n`);
  const answer = await readAnswer(socket);
  if (typeof to === 'number') socket.destroy();
  return answer;
}

/** The port that several services have together. */
async function together(
  services: (listenOn: string) => Readonly<Record<string, HttpService>>,
): Promise<{ readonly postern: Postern; readonly port: number; readonly listenOn: string }> {
  const port = await freePort();
  const listenOn = `tcp://127.0.0.1:${port}`;
  return { postern: await performHttp(services(listenOn), hosts), port, listenOn };
}

async function reload(postern: Postern, services: Readonly<Record<string, HttpService>>): Promise<void> {
  const done = () => postern.lines.filter(({ msg }) => msg === 'configuration reloaded').length;
  const before = done();
  await postern.writeConfig(httpConfiguration(services));
  postern.signal('SIGHUP');
  await eventually('the reload', () => {
    const failed = postern.lines.find(({ msg }) => msg.startsWith('configuration not reloaded'));
    assert.equal(failed, undefined, JSON.stringify(failed));
    return done() > before;
  });
}

describe('a forward proxy', () => {
  for (const client of httpClients)
    it(`gives the requests of ${client.name} their credential, in clear or over TLS`, async (t) => {
      const here = await scene(t);
      if (!here || !(await withDriver(t, client))) return;
      const { plain, tls } = here;
      const { postern, port } = await together((listenOn) => ({
        plain: { ...plainService(here), listenOn },
        tls: { ...tlsService(here), listenOn },
      }));
      await using _ = postern;
      const env = clientEnvironment(port);
      for (const [origin, base] of [
        [plain, `http://plain.test:${plain.port}`],
        [tls, `http://tls.test:${tls.port}`],
      ] as const) {
        const got = await client.ask('get', `${base}/big`, env);
        assert.deepEqual([got.status, got.sha256], [200, sha256(big)], got.error);
        assert.equal(origin.last?.authorization, `Bearer ${token}`);
        const sent = await client.ask('upload', `${base}/up?x=%2F`, env);
        assert.equal(sent.status, 200, sent.error);
        assert.deepEqual([origin.last?.sha256, origin.last?.url], [sha256(uploaded), '/up?x=%2F']);
        assert.equal(origin.last?.authorization, `Bearer ${token}`);
      }
      const refused = await client.ask('get', `http://inner.test:${plain.port}/`, env);
      // Who asks for a tunnel shows no answer to that.
      if (client.name === 'fetch') assert.equal(refused.status, 0);
      else {
        assert.equal(refused.status, 403, refused.error);
        assert.match(refused.text ?? '', /no rule of this listener allows this request to inner\.test/);
      }
    });

  it('refuses what no rule has, says which there are, and sends nothing', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { plain, tls } = here;
    await using postern = await performHttp({ api: plainService(here, '/ok/**') }, hosts);
    const port = postern.port('api');
    const before = [plain.connections, tls.connections];
    const base = `http://plain.test:${plain.port}`;
    for (const [target, status] of [
      [`${base}/no`, 403],
      [`${base}/ok/../no`, 403],
      [`${base}/ok%2f..%2fno`, 403],
      [`http://plain.test/ok/x`, 403],
      [`https://plain.test:${plain.port}/ok/x`, 403],
      [`http://127.0.0.1:${plain.port}/ok/x`, 403],
      [`http://user@plain.test:${plain.port}/ok/x`, 400],
      [`ftp://plain.test/ok/x`, 400],
      ['/ok/x', 400],
      ['*', 400],
    ] as const) {
      const answer = await ask(port, target);
      assert.equal(answer.status, status, `${target}: ${answer.body}`);
      if (status === 403 && !target.includes('..'))
        assert.match(answer.body, /there are: http:\/\/plain\.test:\d+\/ok\/\*\*/, target);
    }
    assert.match((await ask(port, '/ok/x')).body, /http_proxy/);
    assert.deepEqual([plain.connections, tls.connections], before);
    assert.equal((await ask(port, `${base}/ok/x`)).status, 200);
  });

  it('serves a tunnel in clear for the server that it is to, and for no TLS', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { plain, tls } = here;
    await using postern = await performHttp({ api: plainService(here, '/ok/**') }, hosts);
    const target = `plain.test:${plain.port}`;
    const before = plain.received.length;
    for (const [path, host, status] of [
      ['/no', target, 403],
      ['/ok/x', `tls.test:${tls.port}`, 421],
      ['/ok/x', 'plain.test', 421],
      [`https://${target}/ok/x`, target, 421],
      ['/ok/x', target, 200],
    ] as const) {
      const { socket, answer } = await tunnel(postern.port('api'), target);
      assert.equal(answer.status, 200);
      socket.write(`GET ${path} HTTP/1.1\r\nHost: ${host}\r\n\r\n`);
      assert.equal((await readAnswer(socket)).status, status, path);
      socket.destroy();
    }
    assert.equal(plain.received.length, before + 1);
    const { socket } = await tunnel(postern.port('api'), target);
    await assert.rejects(secured(socket, { rejectUnauthorized: false }));
    await postern.logged((line) => String(line['error']).includes('no rule has an https:// URL'));
  });

  it('does not send a credential in clear that nobody said may go so', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { plain } = here;
    await using postern = await performHttp(
      { api: { config: { match: [{ host: 'plain.test', port: plain.port, path: '/**' }] } } },
      hosts,
    );
    const before = plain.connections;
    const answer = await ask(postern.port('api'), `http://plain.test:${plain.port}/x`);
    assert.equal(answer.status, 403);
    assert.match(answer.body, /in clear/);
    assert.equal(plain.connections, before);
  });

  it('does not follow a redirect, nor give its credential to where it leads', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { plain, tls } = here;
    await using postern = await performHttp({ api: plainService(here) }, hosts);
    const before = tls.connections;
    const answer = await ask(
      postern.port('api'),
      `http://plain.test:${plain.port}/redirect?${encodeURIComponent(`http://tls.test:${tls.port}/`)}`,
    );
    assert.equal(answer.status, 302);
    assert.equal(tls.connections, before);
    assert.equal((await ask(postern.port('api'), `http://tls.test:${tls.port}/`)).status, 403);
  });

  it('reaches a name that a pattern fits only where its address is public, at every connection anew', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { plain } = here;
    await using postern = await performHttp(
      { api: { config: { match: [`http://*.pattern.test:${plain.port}/**`], allowPlainHttp: true } } },
      {
        'a.pattern.test': '127.0.0.1',
        'b.pattern.test': '169.254.169.254',
        'c.pattern.test': '::ffff:10.0.0.1',
      },
    );
    const before = plain.connections;
    for (const host of ['a', 'b', 'c']) {
      const answer = await ask(postern.port('api'), `http://${host}.pattern.test:${plain.port}/`);
      assert.equal(answer.status, 403, `${host}: ${answer.body}`);
    }
    assert.equal(plain.connections, before);
  });

  it('removes what a client says in the place of the credential, also for the second service of a listener', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { plain, tls } = here;
    const { postern, port } = await together((listenOn) => ({
      tls: { ...tlsService(here), listenOn },
      plain: {
        ...plainService(here),
        listenOn,
        config: { ...plainService(here).config, authenticate: { headers: { 'X-Key': '{{token}}' } } },
      },
    }));
    await using _ = postern;
    const mine =
      'Authorization: Bearer mine\r\nX-Key: mine\r\nx_key: mine\r\nProxy-Authorization: Basic eA==\r\n';
    const socket = await open(port);
    for (const [origin, name, own] of [
      [tls, 'tls', 'authorization'],
      [plain, 'plain', 'x-key'],
      [tls, 'tls', 'authorization'],
    ] as const) {
      assert.equal((await ask(socket, `http://${name}.test:${origin.port}/x`, mine)).status, 200);
      const { headers, rawHeaders } = origin.last ?? assert.fail();
      assert.ok(String(headers[own]).endsWith(token), String(headers[own]).slice(0, 3));
      // The name that belongs to the other service is nothing to this one.
      assert.equal(
        headers[own === 'x-key' ? 'authorization' : 'x-key'],
        own === 'x-key' ? 'Bearer mine' : 'mine',
      );
      assert.equal(rawHeaders.filter((each) => each.toLowerCase().replace('_', '-') === own).length, 1);
      assert.equal(headers['proxy-authorization'], undefined);
    }
    socket.destroy();
  });
});

describe('services that share a listener', () => {
  it('are a proxy for those who ask for URLs, and one server for those who do not', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { plain, tls, papers } = here;
    const { postern, port } = await together((listenOn) => ({
      forward: { ...plainService(here), listenOn },
      reverse: {
        listenOn,
        config: { upstream: `https://tls.test:${tls.port}`, tls: { ca: papers.serversCa } },
      },
    }));
    await using _ = postern;
    assert.match((await ask(port, '/mine')).body, new RegExp(`"host":"tls\\.test:${tls.port}"`));
    assert.match((await ask(port, `http://plain.test:${plain.port}/yours`)).body, /"url":"\/yours"/);
    assert.equal((await ask(port, `http://tls.test:${tls.port}/`)).status, 403);
  });

  it('are asked in the order of the configuration', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { plain } = here;
    const { postern, port } = await together((listenOn) => ({
      narrow: {
        listenOn,
        credentials: { token: 'first' },
        config: { match: [`http://plain.test:${plain.port}/a/**`], allowPlainHttp: true },
      },
      wide: { ...plainService(here), listenOn },
    }));
    await using _ = postern;
    await ask(port, `http://plain.test:${plain.port}/a/x`);
    assert.equal(plain.last?.authorization, 'Bearer first');
    await ask(port, `http://plain.test:${plain.port}/b`);
    assert.equal(plain.last?.authorization, `Bearer ${token}`);
  });

  it('may come and go with reloads, while connections that are open live on and follow', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { plain, tls } = here;
    const only = (listenOn: string) => ({ plain: { ...plainService(here), listenOn } });
    const both = (listenOn: string) => ({ ...only(listenOn), tls: { ...tlsService(here), listenOn } });
    const { postern, port, listenOn } = await together(only);
    await using _ = postern;
    const [plainUrl, tlsUrl] = [`http://plain.test:${plain.port}/x`, `http://tls.test:${tls.port}/x`];
    const socket = await open(port);
    assert.equal((await ask(socket, plainUrl)).status, 200);

    await reload(postern, both(listenOn));
    assert.equal((await ask(socket, tlsUrl)).status, 200);
    assert.equal((await ask(port, tlsUrl)).status, 200);

    // The second one with another credential: the same connection gets the new one.
    await reload(postern, {
      ...both(listenOn),
      tls: { ...tlsService(here), listenOn, credentials: { token: 'other' } },
    });
    assert.equal((await ask(socket, tlsUrl)).status, 200);
    assert.equal(tls.last?.authorization, 'Bearer other');

    await reload(postern, only(listenOn));
    const before = tls.received.length;
    assert.equal((await ask(socket, tlsUrl)).status, 403);
    assert.equal((await ask(port, tlsUrl)).status, 403);
    assert.equal(tls.received.length, before);
    assert.equal((await ask(port, plainUrl)).status, 200);
    assert.equal(postern.lines.filter(({ msg }) => msg === 'listening').length, 1);
    assert.ok(!postern.lines.some(({ msg }) => msg === 'no longer listening'));
  });

  it('stay on their listener when the first of them goes, changes, or others come before it', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { plain, tls } = here;
    const { postern, port, listenOn } = await together((listenOn) => ({
      tls: { ...tlsService(here), listenOn },
      plain: { ...plainService(here), listenOn },
    }));
    await using _ = postern;
    const [plainUrl, tlsUrl] = [`http://plain.test:${plain.port}/x`, `http://tls.test:${tls.port}/x`];
    const idle = await open(port);
    assert.equal((await ask(idle, tlsUrl)).status, 200);
    await reload(postern, { plain: { ...plainService(here), listenOn } });
    // The service that had this connection is gone, and so is the connection as soon as it is idle.
    await ended(idle);
    assert.equal((await ask(port, plainUrl)).status, 200);
    assert.equal((await ask(port, tlsUrl)).status, 403);
    await reload(postern, {
      tls: { ...tlsService(here), listenOn },
      plain: { ...plainService(here), listenOn },
    });
    assert.equal((await ask(port, tlsUrl)).status, 200);
    assert.equal((await ask(port, plainUrl)).status, 200);
    assert.equal(postern.lines.filter(({ msg }) => msg === 'listening').length, 1);
    assert.equal(await postern.stop(), 0);
  });

  it('do not lose a request that is under way when their service goes', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { plain, tls } = here;
    const { postern, port, listenOn } = await together((listenOn) => ({
      plain: { ...plainService(here), listenOn },
      tls: { ...tlsService(here), listenOn },
    }));
    await using _ = postern;
    const { promise: arrived, resolve: arrive } = Promise.withResolvers<void>();
    const { promise: free, resolve: release } = Promise.withResolvers<void>();
    tls.handle = ({ url }, response) => {
      if (url !== '/slow') return false;
      arrive();
      void free.then(() => response.setHeader('content-length', '4').end('done'));
      return true;
    };
    const answer = ask(port, `http://tls.test:${tls.port}/slow`);
    await arrived;
    await reload(postern, { plain: { ...plainService(here), listenOn } });
    release();
    assert.equal((await answer).body, 'done');
    tls.handle = undefined;
    assert.equal((await ask(port, `http://plain.test:${plain.port}/`)).status, 200);
  });

  it('have a tunnel that is open follow a reload too', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { plain, tls, papers } = here;
    const intercept = { caCert: papers.local.cert, caKey: papers.local.key };
    const first = (listenOn: string) => ({
      plain: { ...plainService(here), listenOn, config: { ...plainService(here).config, intercept } },
    });
    const api = (path: string, listenOn: string): HttpService => ({
      listenOn,
      config: { match: [`https://tls.test:${tls.port}${path}`], tls: { ca: papers.serversCa } },
    });
    const { postern, port, listenOn } = await together((on) => ({ ...first(on), api: api('/**', on) }));
    await using _ = postern;
    const target = `tls.test:${tls.port}`;
    const { readFile } = await import('node:fs/promises');
    const ca = await readFile(papers.local.cert);
    const secure = await secured((await tunnel(port, target)).socket, { ca, servername: 'tls.test' });
    const inside = async (path: string) => {
      secure.write(`GET ${path} HTTP/1.1\r\nHost: ${target}\r\n\r\n`);
      return (await readAnswer(secure)).status;
    };
    assert.equal(await inside('/secret'), 200);
    await reload(postern, { ...first(listenOn), api: api('/public/**', listenOn) });
    assert.equal(await inside('/public/x'), 200);
    assert.equal(await inside('/secret'), 403);
    secure.destroy();
    assert.equal((await ask(port, `http://plain.test:${plain.port}/`)).status, 200);
  });
});
