import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import { Readable } from 'node:stream';
import { afterEach, describe, it } from 'node:test';
import { inspect } from 'node:util';

import { PosternError } from '../../../src/core/errors.ts';
import { failure, never, type Opened, open, texts } from '../opening.ts';
import { fakeVault } from './fake-vault.ts';

const canaries = {
  token: 'hvs.CANARY-TOKEN-31337',
  secretId: 'CANARY-SECRET-ID-31337',
  value: 'CANARY-VALUE-31337',
};
const values = { username: 'app', password: canaries.value };
const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function fake(behave?: Parameters<typeof fakeVault>[1]) {
  const vault = await fakeVault(values, behave);
  cleanups.push(vault.stop);
  return vault;
}

function vault(address: string, more: object = {}): Opened {
  const provider = open('vault', { address, auth: { method: 'token', token: canaries.token }, ...more });
  cleanups.push(() => provider.close(AbortSignal.timeout(1000)));
  return provider;
}

/** A failing fetch, whose error has no canary anywhere in it. */
async function failing(provider: Opened, signal: AbortSignal = never): Promise<PosternError> {
  const error = await failure(provider.fetch(['secret/app/db#password'], signal));
  const everything = inspect(error, { depth: null, showHidden: true }) + error.stack + provider.logged();
  for (const canary of Object.values(canaries))
    assert.ok(!everything.includes(canary), 'no canary in the error');
  assert.equal(error.cause, undefined);
  assert.match(error.message, /provider "vault"/);
  return error;
}

describe('the provider "vault" and a server that misbehaves', () => {
  it('sends the token, X-Vault-Request and the namespace, and never a doubled slash', async () => {
    const server = await fake();
    const provider = vault(`${server.address}/`, { namespace: 'team/a' });
    assert.deepEqual(await texts(provider, 'secret/app/a b%2f#password'), [canaries.value]);
    await provider.check(never);
    for (const { headers, path, token } of server.seen.slice(0, 2)) {
      assert.equal(headers['x-vault-request'], 'true');
      assert.equal(headers['x-vault-namespace'], 'team/a');
      assert.equal(token, canaries.token);
      assert.ok(!path.includes('//'));
    }
    assert.equal(server.seen[1]?.path, '/v1/secret/data/app/a%20b%252f');
    const health = server.seen[2];
    assert.match(health?.path ?? '', /^\/v1\/sys\/health\?standbyok=true/);
    assert.equal(health?.headers['x-vault-namespace'], undefined, 'sys/health is of the root namespace');
    assert.equal(health?.token, undefined);
  });

  it('keeps a path below the address where a proxy serves Vault', async () => {
    const server = await fake((seen) =>
      seen.path.startsWith('/vault/v1/sys/')
        ? { status: 200, json: { data: { path: 'secret/', type: 'kv', options: { version: '2' } } } }
        : undefined,
    );
    await texts(vault(`${server.address}/vault/`), 'secret/app/db#password');
    assert.equal(server.seen[1]?.path, '/vault/v1/secret/data/app/db');
  });

  it('reads all fields of one path in one request and asks for a mount only once', async () => {
    const server = await fake();
    const provider = vault(server.address);
    const grant = await provider.fetch(
      ['secret/a#password', 'secret/a#username', 'secret/a#password'],
      never,
    );
    assert.deepEqual(
      grant.secrets.map((secret) => secret.reveal().toString()),
      [canaries.value, 'app', canaries.value],
    );
    assert.equal(grant.version, '7');
    assert.equal(server.seen.length, 2);
    await texts(provider, 'secret/b#password');
    assert.equal(server.seen.length, 3);
  });

  for (const status of [412, 429, 500, 502, 503]) {
    it(`repeats a request that was answered ${status}, twice and no more`, async () => {
      const passing = await fake((seen, _response, count) =>
        seen.path.includes('/data/') && count <= 3 ? { status, json: { errors: ['busy'] } } : undefined,
      );
      assert.deepEqual(await texts(vault(passing.address), 'secret/app/db#password'), [canaries.value]);
      assert.equal(passing.seen.length, 4);

      const lasting = await fake((seen) =>
        seen.path.includes('/data/') ? { status, json: { errors: ['busy'] } } : undefined,
      );
      const error = await failing(vault(lasting.address));
      assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
      assert.match(error.message, new RegExp(`"secret/app/db#password".*HTTP ${status}: busy`));
      assert.equal(lasting.seen.length, 4);
    });
  }

  it('does not repeat 400, 403, 404, 405 and 412 for a missing header', async () => {
    for (const status of [400, 403, 404, 405, 412]) {
      const errors = status === 412 ? ['missing "X-Vault-Request" header'] : ['refused'];
      const server = await fake((seen) =>
        seen.path.includes('/data/') ? { status, json: { errors } } : undefined,
      );
      const error = await failing(vault(server.address));
      assert.equal(error.code, status === 412 ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED');
      assert.equal(server.seen.filter(({ path }) => path.includes('/data/')).length, 1);
    }
  });

  it('obeys a short Retry-After and gives up at once on a long one', async () => {
    const answer = (seconds: string) => (seen: { path: string }, _response: unknown, count: number) =>
      seen.path.includes('/data/') && count === 2
        ? { status: 429, json: { errors: [] }, headers: { 'retry-after': seconds } }
        : undefined;
    const short = await fake(answer('1'));
    const startedAt = performance.now();
    await texts(vault(short.address), 'secret/app/db#password');
    assert.ok(performance.now() - startedAt >= 995);

    const long = await fake(answer('3600'));
    assert.equal((await failing(vault(long.address))).code, 'PROVIDER_UNAVAILABLE');
    assert.equal(long.seen.length, 2);
  });

  it('repeats a request whose connection was reset', async () => {
    const server = await fake((_seen, response, count) => {
      if (count > 2) return undefined;
      response.destroy();
      return 'by hand';
    });
    assert.deepEqual(await texts(vault(server.address), 'secret/app/db#password'), [canaries.value]);
  });

  it('calls a server unavailable that refuses connections, and names it', async () => {
    const server = await fake();
    await server.stop();
    cleanups.pop();
    const error = await failing(vault(server.address));
    assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
    assert.match(error.message, /127\.0\.0\.1:\d+ cannot be asked \(ECONNREFUSED\)/);
  });

  const byHand: Record<string, (write: (text: string) => void, end: () => void) => void> = {
    'ends in the middle of its JSON': (write, end) => {
      write(`HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"data":{"data":{"pa`);
      end();
    },
    'ends before its Content-Length': (write, end) => {
      write(`HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"${canaries.value}":1}`);
      end();
    },
    'says more than its Content-Length': (write) => {
      write(`HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{"${canaries.value}":1}`);
    },
    'is garbage': (write) => write(`${canaries.value} ${canaries.token}\r\n\r\n`),
    'is HTML': (write) => write(`HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n<p>${canaries.value}</p>`),
    'has a header without end': (write) => write(`HTTP/1.1 200 OK\r\nX: ${canaries.value.repeat(5000)}`),
    'is compressed': (write) =>
      write('HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}'),
    'has a body of 2 MiB': (write) => {
      write(`HTTP/1.1 200 OK\r\nContent-Length: 2097152\r\n\r\n${canaries.value.repeat(120_000)}`);
    },
    'changes the protocol': (write) =>
      write('HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n'),
    'never comes': () => undefined,
    'drips one byte at a time': (write) => {
      write('HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n');
      const timer = setInterval(() => write('{'), 20);
      cleanups.push(async () => clearInterval(timer));
    },
  };
  for (const [what, answer] of Object.entries(byHand)) {
    it(`says that Vault is unavailable when its answer ${what}`, async () => {
      const server = createServer((socket) => {
        socket.on('error', () => undefined);
        socket.once('data', () =>
          answer(
            (text) => void (socket.destroyed || socket.write(text)),
            () => socket.end(),
          ),
        );
        cleanups.push(async () => socket.destroy());
      }).listen(0, '127.0.0.1');
      await new Promise((listening) => server.once('listening', listening));
      cleanups.push(async () => server.close());
      const { port } = server.address() as { port: number };
      const startedAt = performance.now();
      const error = await failing(vault(`http://127.0.0.1:${port}`, { timeout: '200ms', retries: 0 }));
      assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
      assert.ok(performance.now() - startedAt < 8000);
    });
  }

  it("ends at the caller's signal while it waits, for an answer or to repeat a request", async () => {
    for (const status of [undefined, 503]) {
      const server = await fake(() => (status ? { status, json: { errors: [] } } : 'by hand'));
      const provider = vault(server.address, { retries: 10 });
      const caller = new AbortController();
      const reason = new PosternError('SHUTDOWN', 'the end');
      let abortedAt = 0;
      setTimeout(() => {
        abortedAt = performance.now();
        caller.abort(reason);
      }, 100);
      const error = await failure(provider.fetch(['secret/app/db#password'], caller.signal));
      assert.equal(error, reason);
      assert.ok(performance.now() - abortedAt < 4000);
    }
  });

  it('leaves out of its message what the server says with a confidential value in it, and shortens the rest', async () => {
    const said = (text: string) =>
      fake((seen) => (seen.path.includes('/data/') ? { status: 400, json: { errors: [text] } } : undefined));
    const quoting = await said(`your token ${canaries.token} is bad`);
    assert.match((await failing(vault(quoting.address))).message, /Vault refused \(HTTP 400\)$/);
    const ragged = await said(`1 error occurred:\n\t* \u001b[31mno\u0000\u202e way\n${'x'.repeat(1000)}`);
    const { message } = await failing(vault(ragged.address));
    assert.match(message, /\(HTTP 400: 1 error occurred: \* \[31mno way x+\)$/);
    assert.ok(message.length < 400);
  });

  it('does not quote a secret id or a token that a login answers with', async () => {
    const auth = { method: 'approle', roleId: 'app', secretId: canaries.secretId };
    const quoting = await fake(() => ({ status: 400, json: { errors: [`invalid ${canaries.secretId}`] } }));
    assert.match((await failing(vault(quoting.address, { auth }))).message, /approle login: Vault refused/);

    const odd = [
      {},
      { auth: null },
      { auth: { client_token: 5 } },
      { auth: { client_token: `${canaries.token}\r\nX-Evil: 1` } },
      { auth: { client_token: `${canaries.token}é` } },
      { auth: { client_token: '' } },
      { auth: { client_token: canaries.token, mfa_requirement: { mfa_request_id: 'x' } } },
      { auth: { client_token: canaries.token, lease_duration: { odd: true } } },
    ];
    for (const json of odd) {
      const server = await fake(() => ({ status: 200, json }));
      await failing(vault(server.address, { auth }));
    }
  });

  it('refuses fields that are no values, answers that are not of Vault, and mounts that are not KV', async () => {
    const cases: [object, RegExp][] = [
      [{ data: { data: { password: { a: canaries.value } }, metadata: {} } }, /the field is an object/],
      [{ data: { data: { password: null }, metadata: {} } }, /the field is null/],
      [{ data: { data: { other: canaries.value } } }, /has no field "password"/],
      [{ data: { data: [canaries.value] } }, /not one of Vault/],
      [{ data: null }, /not one of Vault/],
    ];
    for (const [json, message] of cases) {
      const server = await fake((seen) => (seen.path.includes('/data/') ? { status: 200, json } : undefined));
      assert.match((await failing(vault(server.address))).message, message);
    }
    const mounts: [object, RegExp][] = [
      [{ path: 'sys/', type: 'system' }, /what is below "sys\/" is no secret of an engine/],
      [{ path: 'other/', type: 'kv' }, /path ends at the mount/],
      [{ type: 'kv' }, /not one of Vault/],
    ];
    for (const [data, message] of mounts) {
      const server = await fake(() => ({ status: 200, json: { data } }));
      assert.match((await failing(vault(server.address))).message, message);
    }
  });

  it('logs in once for many who wait, again once for all when the token is refused, and repeats each request once', async () => {
    let valid = 'none';
    let logins = 0;
    const server = await fake((seen) => {
      if (seen.path === '/v1/auth/approle/login') {
        valid = `token-${++logins}`;
        return { status: 200, json: { auth: { client_token: valid, lease_duration: 3600 } } };
      }
      return seen.token === valid ? undefined : { status: 403, json: { errors: ['permission denied'] } };
    });
    const provider = vault(server.address, { auth: { method: 'approle', roleId: 'r', secretId: 's' } });
    const many = () =>
      Promise.all(Array.from({ length: 20 }, () => texts(provider, 'secret/app/db#password')));
    await many();
    assert.equal(logins, 1);
    valid = 'revoked by someone';
    await many();
    assert.equal(logins, 2);
  });

  it('does not log in again and again for a path that stays denied', async () => {
    let logins = 0;
    const server = await fake((seen) => {
      if (seen.path.endsWith('/login')) {
        return { status: 200, json: { auth: { client_token: `token-${++logins}`, lease_duration: 3600 } } };
      }
      return seen.path.includes('/data/')
        ? { status: 403, json: { errors: ['permission denied'] } }
        : undefined;
    });
    const provider = vault(server.address, { auth: { method: 'approle', roleId: 'r', secretId: 's' } });
    for (let i = 0; i < 5; i++) {
      const error = await failing(provider);
      assert.equal(error.code, 'PROVIDER_FAILED');
      assert.match(error.message, /permission denied \(HTTP 403/);
    }
    assert.equal(logins, 2);
  });

  it('logs in again shortly before the token expires, never for a token without end, and uses one of a second', async () => {
    for (const [lease, expected] of [
      [1, 2],
      [0, 1],
      [2 ** 40, 1],
    ] as const) {
      let logins = 0;
      const server = await fake((seen) =>
        seen.path.endsWith('/login')
          ? { status: 200, json: { auth: { client_token: `token-${++logins}`, lease_duration: lease } } }
          : undefined,
      );
      const provider = vault(server.address, { auth: { method: 'approle', roleId: 'r', secretId: 's' } });
      await texts(provider, 'secret/app/db#password');
      await texts(provider, 'secret/app/db#password');
      assert.equal(logins, 1);
      if (lease === 1) await new Promise((later) => setTimeout(later, 950));
      await texts(provider, 'secret/app/db#password');
      assert.equal(logins, expected);
    }
  });

  it('lets one caller give up on a login without taking it from the others', async () => {
    const server = await fake((seen, response) => {
      if (!seen.path.endsWith('/login')) return undefined;
      setTimeout(() => response.end('{"auth":{"client_token":"late","lease_duration":0}}'), 200);
      return 'by hand';
    });
    const provider = vault(server.address, { auth: { method: 'approle', roleId: 'r', secretId: 's' } });
    const impatient = failure(provider.fetch(['secret/app/db#password'], AbortSignal.timeout(50)));
    assert.deepEqual(await texts(provider, 'secret/app/db#password'), [canaries.value]);
    assert.equal((await impatient).code, 'TIMEOUT');
    assert.equal(server.seen.filter(({ path }) => path.endsWith('/login')).length, 1);
  });

  it('follows a 307 once to the same origin, and takes the token nowhere else over plain http', async () => {
    const elsewhere = await fake();
    let target = '';
    const server = await fake((seen) =>
      seen.path.includes('/data/') && !seen.path.includes('moved')
        ? { status: 307, json: {}, headers: { location: target } }
        : undefined,
    );
    target = '/v1/secret/data/moved';
    assert.deepEqual(await texts(vault(server.address), 'secret/app/db#password'), [canaries.value]);
    for (target of [
      `${elsewhere.address}/v1/secret/data/x`,
      '//evil.invalid/',
      'ftp://x/',
      'http://u:p@127.0.0.1/',
      '::',
    ]) {
      const error = await failing(vault(server.address));
      assert.equal(error.code, 'PROVIDER_FAILED');
      assert.match(error.message, /redirected to where the token must not go/);
    }
    assert.equal(elsewhere.seen.length, 0);

    target = '/v1/secret/data/app/again';
    const before = server.seen.length;
    await failing(vault(server.address));
    assert.equal(server.seen.length - before, 3, 'a second redirect is not followed');
  });

  it('sends what it wrote again to where a 307 points, and follows none where the settings say so', async () => {
    const server = await fake((seen) => {
      if (seen.path.startsWith('/v1/sys/internal')) {
        return { status: 200, json: { data: { path: 'pki/', type: 'pki' } } };
      }
      if (seen.path.startsWith('/v1/pki/'))
        return { status: 307, json: {}, headers: { location: '/v1/active/issue' } };
      return seen.path === '/v1/active/issue'
        ? { status: 200, json: { data: { certificate: seen.body, expiration: 1 } } }
        : undefined;
    });
    const reference = 'pki/issue/web?common_name=a#certificate';
    assert.deepEqual(await texts(vault(server.address), reference), ['{"common_name":"a"}']);
    assert.equal(server.seen.at(-1)?.token, canaries.token);
    const before = server.seen.length;
    const error = await failure(vault(server.address, { followRedirects: false }).fetch([reference], never));
    assert.match(error.message, /redirected to where the token must not go/);
    assert.equal(server.seen.length, before + 2);
    const asked = open(
      'vault',
      { address: server.address, followRedirects: true, auth: { method: 'token', token: canaries.token } },
      { VAULT_DISABLE_REDIRECTS: '1' },
    );
    assert.deepEqual(await texts(asked, reference), ['{"common_name":"a"}'], 'the entry says more');
    await asked.close(never);
  });

  it('looks the mount up again after a 404, and finds the secret where it has moved to', async () => {
    let version = '1';
    const server = await fake((seen) => {
      if (seen.path.startsWith('/v1/sys/internal')) {
        return { status: 200, json: { data: { path: 'secret/', type: 'kv', options: { version } } } };
      }
      if (version === '1') return { status: 200, json: { data: values } };
      return seen.path.startsWith('/v1/secret/data/') ? undefined : { status: 404, json: { errors: [] } };
    });
    const provider = vault(server.address);
    assert.deepEqual(await texts(provider, 'secret/app/db#password'), [canaries.value]);
    version = '2';
    assert.deepEqual(await texts(provider, 'secret/app/db#password'), [canaries.value]);
  });

  it('does not ask for the mount where kvVersion says what it is', async () => {
    const server = await fake((seen) =>
      seen.path.startsWith('/v1/sys/') ? { status: 403, json: { errors: [] } } : undefined,
    );
    const hidden = await failing(vault(server.address));
    assert.match(hidden.message, /if the policy hides mounts, set kvVersion or engineMounts \(HTTP 403\)$/);
    const provider = vault(server.address, { kvVersion: 2, kvMount: 'team/kv' });
    await texts(provider, 'team/kv/app/db#password', 'secret/app/db#password', 'secret/data/x#data.password');
    assert.deepEqual(
      server.seen.slice(-3).map(({ path }) => path),
      ['/v1/team/kv/data/app/db', '/v1/secret/data/app/db', '/v1/secret/data/x'],
    );
    const engines = vault(server.address, { kvVersion: 2, engineMounts: ['database', 'team/pki'] });
    await failure(engines.fetch(['database/creds/app#nothing'], never));
    await failure(engines.fetch(['team/pki/issue/x?common_name=a%20b#nothing'], never));
    const [read, written] = server.seen.slice(-2);
    assert.equal(`${read?.method} ${read?.path}`, 'GET /v1/database/creds/app');
    assert.equal(`${written?.method} ${written?.path}`, 'POST /v1/team/pki/issue/x');
    assert.equal(written?.body, '{"common_name":"a b"}');
  });

  it('revokes at close only a token that it logged in for, and only warns when it cannot', async () => {
    for (const status of [204, 403]) {
      const server = await fake((seen) => {
        if (seen.path.endsWith('/login')) {
          return { status: 200, json: { auth: { client_token: canaries.token, lease_duration: 60 } } };
        }
        return seen.path.endsWith('/revoke-self') ? { status, json: { errors: ['no'] } } : undefined;
      });
      const provider = vault(server.address, { auth: { method: 'approle', roleId: 'r', secretId: 's' } });
      await texts(provider, 'secret/app/db#password');
      await provider.close(AbortSignal.timeout(1000));
      const last = server.seen.at(-1);
      assert.equal(last?.path, '/v1/auth/token/revoke-self');
      assert.equal(last?.token, canaries.token);
      assert.equal(/token not revoked/.test(provider.logged()), status === 403);
      assert.ok(!provider.logged().includes(canaries.token));
    }
    const server = await fake();
    const provider = vault(server.address);
    await texts(provider, 'secret/app/db#password');
    await provider.close(never);
    assert.ok(!server.seen.some(({ path }) => path.endsWith('/revoke-self')));
  });

  it('overwrites the bytes of an answer that the socket and the parser held', async () => {
    const server = await fake();
    const chunks: Buffer[] = [];
    // Both streams get their bytes by `push`; the raw chunk and what the parser cut out of it pass here.
    // oxlint-disable-next-line typescript/unbound-method -- called with its `this`, and put back as it was
    const { push } = Readable.prototype;
    Readable.prototype.push = function (this: Readable, chunk: unknown, ...rest) {
      if (chunk instanceof Buffer && chunk.includes(canaries.value)) chunks.push(chunk);
      return push.call(this, chunk, ...rest);
    };
    try {
      await texts(vault(server.address), 'secret/app/db#password');
    } finally {
      Readable.prototype.push = push;
    }
    assert.equal(chunks.length, 2, 'the raw chunk, and the copy that the parser made of its body');
    for (const chunk of chunks) assert.ok(!chunk.includes(canaries.value));
  });
});
