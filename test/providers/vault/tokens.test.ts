import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { inspect } from 'node:util';
import fc from 'fast-check';

import { PosternError } from '../../../src/core/errors.ts';
import type { Lease } from '../../../src/providers/provider.ts';
import { failure, never, type Opened, open, texts } from '../opening.ts';
import { type FakeVault, fakeVault } from './fake-vault.ts';

const reference = 'secret/app/db#password';
const dynamic = ['database/creds/ro#username', 'database/creds/ro#password'];
const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

type Json = { readonly status: number; readonly json: unknown };
type Behave = Parameters<typeof fakeVault>[1];

/** What of a fake's answers can be had differently; the rest is a Vault that works. */
interface Plan {
  readonly token?: object;
  readonly lease?: object;
  readonly answer?: Behave;
}

/** A FAKE Vault with a login, a database engine, and leases of any length. */
async function fake({
  token,
  lease,
  answer,
}: Plan = {}): Promise<FakeVault & { count: (what: string) => number }> {
  let tokens = 0;
  let leases = 0;
  const vault = await fakeVault(
    { password: 'CANARY-VALUE', value: 'CANARY-VALUE' },
    (seen, response, count): Json | 'by hand' | undefined => {
      const special = answer?.(seen, response, count);
      if (special !== undefined) return special;
      if (seen.path.includes('/login')) {
        tokens += 1;
        const auth = {
          client_token: `CANARY-TOKEN-${tokens}`,
          lease_duration: 3600,
          renewable: true,
          ...token,
        };
        return { status: 200, json: { auth } };
      }
      if (seen.path.endsWith('/renew-self')) {
        return { status: 200, json: { auth: { lease_duration: 3600, ...token } } };
      }
      if (seen.path.endsWith('/revoke-self') || seen.path.endsWith('/leases/revoke')) {
        return { status: 204, json: null };
      }
      if (seen.path.endsWith('/leases/renew')) {
        return { status: 200, json: { lease_duration: 600, renewable: true, ...lease } };
      }
      if (seen.path.includes('/ui/mounts/database')) {
        return { status: 200, json: { data: { path: 'database/', type: 'database' } } };
      }
      if (seen.path.includes('/database/creds/')) {
        leases += 1;
        const data = { username: `user-${leases}`, password: 'CANARY-VALUE' };
        const answered = {
          lease_id: `database/creds/ro/${leases}`,
          lease_duration: 600,
          renewable: true,
          data,
          ...lease,
        };
        return { status: 200, json: answered };
      }
      return undefined;
    },
    { lookups: true },
  );
  cleanups.push(vault.stop);
  return { ...vault, count: (what) => vault.seen.filter(({ path }) => path.includes(what)).length };
}

function vault(address: string, more: object = {}): Opened {
  const auth = { method: 'approle', roleId: 'CANARY-ROLE', secretId: 'CANARY-SECRET' };
  const provider = open('vault', { address, auth, ...more });
  cleanups.push(async () => {
    await provider.close(AbortSignal.timeout(1000));
    assert.doesNotMatch(provider.logged(), /CANARY/);
  });
  return provider;
}

async function leaseOf(provider: Opened): Promise<Lease> {
  const { leases } = await provider.fetch(dynamic, never);
  return leases?.[0] as Lease;
}

describe('the tokens of "vault"', () => {
  for (const days of [32, 365]) {
    it(`do not spin when they live for ${days} days, beyond what a timer can wait`, async () => {
      const server = await fake({
        token: { lease_duration: days * 86_400 },
        lease: { lease_duration: days * 86_400 },
      });
      const provider = vault(server.address);
      const lease = await leaseOf(provider);
      await sleep(500);
      assert.equal(server.count('renew'), 0);
      assert.ok(Math.abs(lease.expiresAt.getTime() - Date.now() - days * 86_400_000) < 5000);
      assert.ok((await lease.renew(never)) > new Date());
      assert.equal(server.count('renew-self'), 0);
    });
  }

  it('have no end, and their leases none, where Vault says 0 or nonsense', async () => {
    for (const odd of [0, -5, 'soon', null, { a: 1 }, 1e300]) {
      const server = await fake({ token: { lease_duration: odd }, lease: { lease_duration: odd } });
      const provider = vault(server.address);
      const { leases } = await provider.fetch(dynamic, never);
      const end = leases?.[0]?.expiresAt.getTime() ?? 0;
      assert.ok(end > Date.now() + 3.2e12, JSON.stringify(odd));
      await sleep(20);
      assert.equal(server.count('renew'), 0);
    }
  });

  it('are renewed at two thirds of their life while a lease hangs on them, not before and not without one', async () => {
    const server = await fake({ token: { lease_duration: 2 } });
    const provider = vault(server.address);
    await texts(provider, reference);
    await sleep(1700);
    assert.equal(server.count('renew-self'), 0, 'nothing hangs on it');
    const startedAt = performance.now();
    await leaseOf(provider);
    const logins = server.count('/login');
    while (server.count('renew-self') === 0 && performance.now() - startedAt < 3000) await sleep(20);
    assert.notEqual(server.count('renew-self'), 0, 'before its end there is another third');
    await sleep(2000);
    assert.ok(server.count('renew-self') >= 2);
    assert.ok(server.count('renew-self') <= 4);
    assert.equal(server.count('/login'), logins);
    assert.equal(server.seen.find(({ path }) => path.endsWith('renew-self'))?.body, '{"increment":"2s"}');
  });

  it('are left alone after close: no renewal, no login, and the leases on them cannot be renewed', async () => {
    const server = await fake({ token: { lease_duration: 1 } });
    const provider = vault(server.address);
    const lease = await leaseOf(provider);
    await provider.close(never);
    const seen = server.seen.length;
    await sleep(1500);
    assert.equal(server.seen.length, seen);
    assert.equal((await failure(lease.renew(never))).code, 'PROVIDER_FAILED');
    assert.equal(server.seen.length, seen);
  });

  it('are renewed again, with pauses, while Vault cannot be asked', async () => {
    let refusals = 0;
    const server = await fake({
      token: { lease_duration: 4 },
      answer: ({ path }) => {
        if (!path.endsWith('renew-self') || refusals >= 1) return undefined;
        refusals += 1;
        return { status: 503, json: { errors: ['Vault is sealed'] } };
      },
    });
    const provider = vault(server.address);
    const lease = await leaseOf(provider);
    await sleep(5000);
    assert.ok(server.count('renew-self') >= 2);
    assert.ok(lease.expiresAt.getTime() > Date.now(), 'alive beyond the first four seconds');
    assert.match(provider.logged(), /renewing the token: Vault is sealed or unavailable/);
  });

  it('that cannot be renewed are replaced when a lease is asked for after half of their life', async () => {
    for (const token of [{ renewable: false }, { token_type: 'batch' }]) {
      const server = await fake({ token: { lease_duration: 1, ...token } });
      const provider = vault(server.address);
      await leaseOf(provider);
      await leaseOf(provider);
      assert.equal(server.count('/login'), 1);
      await sleep(600);
      await texts(provider, reference);
      assert.equal(server.count('/login'), 1, 'good enough for what has no lease');
      const lease = await leaseOf(provider);
      assert.equal(server.count('/login'), 2);
      assert.equal(server.count('renew-self'), 0);
      assert.ok(lease.expiresAt.getTime() - Date.now() > 800);
      assert.equal(server.count('revoke-self'), 0, 'leases hang on the first');
      await sleep(600);
    }
  });

  it('serve on when their replacement is refused', async () => {
    const server = await fake({
      token: { lease_duration: 2, renewable: false },
      answer: ({ path }, _response, count) =>
        path.includes('/login') && count > 1 ? { status: 503, json: { errors: ['sealed'] } } : undefined,
    });
    const provider = vault(server.address, { retries: 0 });
    await leaseOf(provider);
    await sleep(1200);
    await leaseOf(provider);
    assert.match(provider.logged(), /token not replaced: .*approle login: Vault is sealed/);
  });

  it('that were given are looked up once, renewed by themselves, and never revoked', async () => {
    const lookup = { ttl: 1, creation_ttl: 1, renewable: true, num_uses: 0, id: 'CANARY-TOKEN' };
    const server = await fake({
      token: { lease_duration: 1 },
      answer: ({ path }) =>
        path.endsWith('lookup-self') ? { status: 200, json: { data: lookup } } : undefined,
    });
    const provider = vault(server.address, { auth: { method: 'token', token: 'CANARY-TOKEN' } });
    for (let i = 0; i < 5; i++) await texts(provider, reference);
    await sleep(1500);
    assert.equal(server.count('lookup-self'), 1);
    assert.ok(server.count('renew-self') >= 1);
    await provider.close(never);
    assert.equal(server.count('revoke-self'), 0);
  });

  it('with few uses are never asked about themselves, and are replaced before their last use while a lease hangs on them', async () => {
    const server = await fake({ token: { num_uses: 3 } });
    const provider = vault(server.address);
    await provider.check(never);
    assert.equal(server.count('lookup-self'), 0);
    await leaseOf(provider);
    for (let i = 0; i < 4; i++) await texts(provider, reference);
    const uses = new Map<string, number>();
    for (const { token } of server.seen) if (token) uses.set(token, (uses.get(token) ?? 0) + 1);
    assert.equal(uses.get('CANARY-TOKEN-1'), 2, 'one use is left for the lease to live on');
    for (const count of uses.values()) assert.ok(count <= 3);
  });

  it('are got by one login for fifty that are refused at once, whatever they ask', async () => {
    let valid = 'CANARY-TOKEN-1';
    const server = await fake({
      answer: ({ token }) =>
        token !== undefined && token !== valid
          ? { status: 403, json: { errors: ['permission denied'] } }
          : undefined,
    });
    const provider = vault(server.address);
    const leases = await Promise.all(Array.from({ length: 10 }, () => leaseOf(provider)));
    assert.equal(server.count('/login'), 1);
    valid = 'CANARY-TOKEN-2';
    await Promise.all([
      ...leases.flatMap((lease) => [lease.renew(never), lease.renew(never)]),
      ...Array.from({ length: 30 }, () => texts(provider, reference)),
    ]);
    assert.equal(server.count('/login'), 2);
  });
});

describe('a login of "vault"', () => {
  it('that is refused is not sent again at once with the same values, and at once with others', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'postern-backoff-'));
    cleanups.push(async () => rmSync(folder, { recursive: true }));
    const passwordFile = join(folder, 'password');
    writeFileSync(passwordFile, 'CANARY-wrong');
    const server = await fake({
      answer: ({ path, body }) =>
        path.includes('/login') && body.includes('wrong')
          ? { status: 400, json: { errors: ['invalid username or password'] } }
          : undefined,
    });
    const provider = vault(server.address, { auth: { method: 'userpass', username: 'u', passwordFile } });
    const errors = [];
    for (let i = 0; i < 10; i++) errors.push((await failure(provider.fetch([reference], never))).message);
    assert.equal(server.count('/login'), 1, 'ten connections do not lock the user out');
    assert.equal(new Set(errors).size, 1);
    writeFileSync(passwordFile, 'CANARY-right');
    await texts(provider, reference);
    assert.equal(server.count('/login'), 2);
  });

  it('is tried again soon after Vault could not be asked', async () => {
    let sealed = true;
    const server = await fake({
      answer: ({ path }) =>
        sealed && path.includes('/login')
          ? { status: 503, json: { errors: ['Vault is sealed'] } }
          : undefined,
    });
    const provider = vault(server.address, { retries: 0 });
    for (let i = 0; i < 20; i++) {
      const error = await failure(provider.fetch([reference], never));
      assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
    }
    assert.ok(server.count('/login') <= 2);
    sealed = false;
    const startedAt = performance.now();
    for (;;) {
      try {
        await texts(provider, reference);
        break;
      } catch {
        assert.ok(performance.now() - startedAt < 20_000);
        await sleep(50);
      }
    }
  });

  it('whose wrapped secret id was lost on its way is no interception', async () => {
    let unwraps = 0;
    const server = await fake({
      answer: ({ path }, response) => {
        if (path.endsWith('wrapping/lookup')) {
          if (unwraps > 0)
            return { status: 400, json: { errors: ['wrapping token is not valid or does not exist'] } };
          return { status: 200, json: { data: { creation_path: 'auth/approle/role/app/secret-id' } } };
        }
        if (!path.endsWith('wrapping/unwrap')) return undefined;
        unwraps += 1;
        response.destroy();
        return 'by hand';
      },
    });
    const auth = { method: 'approle', roleId: 'CANARY-ROLE', secretId: 'CANARY-WRAP', secretIdWrapped: true };
    const provider = vault(server.address, { auth });
    const first = await failure(provider.fetch([reference], never));
    assert.equal(first.code, 'PROVIDER_UNAVAILABLE');
    const second = await failure(provider.fetch([reference], never));
    assert.equal(second.code, 'PROVIDER_FAILED');
    assert.match(second.message, /it was sent before, and no answer came\. Deliver a new one/);
    assert.doesNotMatch(provider.logged(), /interception/);
    assert.equal(unwraps, 1);
  });

  it('unwraps its secret id to the end when the caller gives up, and once for all who ask', async () => {
    const server = await fake({
      answer: ({ path }, response) => {
        if (path.endsWith('wrapping/lookup'))
          return { status: 200, json: { data: { creation_path: 'ns1/auth/approle/role/app/secret-id' } } };
        if (!path.endsWith('wrapping/unwrap')) return undefined;
        setTimeout(() => response.end('{"data":{"secret_id":"CANARY-UNWRAPPED"}}'), 200);
        return 'by hand';
      },
    });
    const auth = { method: 'approle', roleId: 'CANARY-ROLE', secretId: 'CANARY-WRAP', secretIdWrapped: true };
    const provider = vault(server.address, { auth });
    const impatient = await failure(provider.fetch([reference], AbortSignal.timeout(100)));
    assert.equal(impatient.code, 'TIMEOUT');
    await Promise.all(Array.from({ length: 5 }, () => texts(provider, reference)));
    assert.equal(server.count('wrapping/unwrap'), 1);
    const unwrap = server.seen.find(({ path }) => path.endsWith('wrapping/unwrap'));
    assert.equal(unwrap?.token, 'CANARY-WRAP');
    assert.equal(unwrap?.body, '');
    assert.match(
      server.seen.find(({ path }) => path.endsWith('approle/login'))?.body ?? '',
      /CANARY-UNWRAPPED/,
    );
  });
});

describe('a lease of "vault"', () => {
  it('is revoked when its answer comes after the caller has gone, and nothing of it is kept', async () => {
    const server = await fake({
      answer: ({ path }, response) => {
        if (path !== '/v1/database/creds/ro') return undefined;
        setTimeout(
          () =>
            response.end(
              '{"lease_id":"database/creds/ro/late","lease_duration":60,"renewable":true,"data":{"username":"u","password":"CANARY-VALUE"}}',
            ),
          200,
        );
        return 'by hand';
      },
    });
    const provider = vault(server.address);
    const caller = new AbortController();
    const reason = new PosternError('SHUTDOWN', 'the end');
    setTimeout(() => caller.abort(reason), 100);
    assert.equal(await failure(provider.fetch(dynamic, caller.signal)), reason);
    assert.equal(server.count('leases/revoke'), 0);
    await sleep(300);
    assert.equal(server.count('leases/revoke'), 1);
    assert.match(
      server.seen.find(({ path }) => path.endsWith('leases/revoke'))?.body ?? '',
      /creds\/ro\/late/,
    );
  });

  it('is revoked in the queue where Vault cannot do it while we wait', async () => {
    const server = await fake({
      answer: ({ path, body }) =>
        path.endsWith('leases/revoke') && body.includes('sync')
          ? { status: 500, json: { errors: ['database is down'] } }
          : undefined,
    });
    const lease = await leaseOf(vault(server.address));
    await lease.revoke(never);
    assert.deepEqual(
      server.seen.filter(({ path }) => path.endsWith('leases/revoke')).map(({ body }) => JSON.parse(body)),
      [{ lease_id: lease.id, sync: 'true' }, { lease_id: lease.id }],
    );
  });

  it('cannot have an id that would break a line of the log, or end in the wrong place', async () => {
    for (const id of ['database/creds/ro/\nfake line', 'x'.repeat(1025), 'ro/\u0000', 'é', ' ']) {
      const server = await fake({ lease: { lease_id: id } });
      const error = await failure(vault(server.address).fetch(dynamic, never));
      assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
      assert.match(error.message, /the answer is not one of Vault/);
    }
  });

  it('stays what it is when its renewal fails for the moment, and is known to be over when Vault says so', async () => {
    let status = 503;
    let said = 'Vault is sealed';
    const server = await fake({
      answer: ({ path }) =>
        path.endsWith('leases/renew') && status ? { status, json: { errors: [said] } } : undefined,
    });
    const lease = await leaseOf(vault(server.address, { retries: 0 }));
    const end = lease.expiresAt.getTime();
    assert.equal((await failure(lease.renew(never))).code, 'PROVIDER_UNAVAILABLE');
    assert.ok(Math.abs(lease.expiresAt.getTime() - end) < 50);
    status = 0;
    assert.ok((await lease.renew(never)).getTime() >= end - 50);
    [status, said] = [400, 'lease not found'];
    assert.equal((await failure(lease.renew(never))).code, 'PROVIDER_FAILED');
    assert.ok(lease.expiresAt.getTime() <= Date.now());
  });

  it('of a former process is tried even after another has failed; the first failure is told', async () => {
    const server = await fake({
      answer: ({ path, body }) =>
        path.endsWith('leases/revoke') && body.includes('bad')
          ? { status: 500, json: { errors: ['no'] } }
          : undefined,
    });
    const provider = vault(server.address, { retries: 0 });
    const ids = Array.from({ length: 20 }, (_, i) => (i === 3 ? 'bad' : `lease-${i}`));
    const error = await failure(provider.revokeLeases?.(ids, never) ?? Promise.resolve());
    assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
    assert.match(error.message, /revoking the lease "bad"/);
    const revoked = new Set(
      server.seen.flatMap(({ path, body }) =>
        path.endsWith('leases/revoke') ? [JSON.parse(body).lease_id] : [],
      ),
    );
    assert.equal(revoked.size, 20);
  });

  it('shows nothing but its id and its end', async () => {
    const server = await fake();
    const lease = await leaseOf(vault(server.address));
    assert.doesNotMatch(inspect(lease, { depth: null, showHidden: true }) + JSON.stringify(lease), /CANARY/);
  });
});

describe('the provider "vault" and answers at random', () => {
  const shapes: readonly unknown[] = [
    {},
    null,
    [],
    'text',
    { data: null },
    { data: [] },
    { data: { path: 'database/', type: 'database' } },
    { data: { path: 'secret/', type: 'kv', options: { version: '2' } } },
    {
      data: { username: 'u', password: 'CANARY-VALUE' },
      lease_id: 'x/1',
      lease_duration: 1,
      renewable: true,
    },
    { data: { username: 'u', password: 'CANARY-VALUE' }, lease_id: 7, lease_duration: {}, renewable: 'no' },
    { data: { username: 'u', password: 'CANARY-VALUE' }, lease_id: 'x/2', lease_duration: -1 },
    { auth: [] },
    { auth: { client_token: 'CANARY-TOKEN', lease_duration: 1, renewable: true } },
    { auth: { client_token: 'CANARY-TOKEN', lease_duration: 3600, num_uses: 2 } },
    { auth: { client_token: 'CANARY-TOKEN', lease_duration: 'x', token_type: 'batch' } },
    { data: { ttl: 1, renewable: true, num_uses: 'many' } },
    // A server that quotes what it was sent.
    { errors: ['ECHO is bad'] },
    { errors: [{ a: 1 }] },
    { lease_id: '\n', lease_duration: 1e308 },
  ];
  const said = fc.record({
    status: fc.constantFrom(200, 200, 200, 200, 204, 307, 400, 403, 404, 412, 418, 429, 500, 503),
    shape: fc.nat({ max: shapes.length - 1 }),
    cut: fc.option(fc.nat({ max: 40 }), { freq: 5 }),
    reset: fc.boolean().map((bit) => bit && Math.random() < 0.2),
  });

  it('fails, if it fails, with a PosternError that shows nothing, ends all it began, and can be closed', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(said, { minLength: 1, maxLength: 30 }), fc.boolean(), async (plan, given) => {
        const server = await fakeVault(
          {},
          ({ token, body }, response, count) => {
            const now = plan[(count - 1) % plan.length];
            if (!now) return undefined;
            if (now.reset) response.destroy();
            else {
              const echo = JSON.stringify(`${token} ${body}`).slice(1, -1);
              const text = JSON.stringify(shapes[now.shape]).replace('ECHO', () => echo);
              response.writeHead(now.status, now.status === 307 ? { location: '/v1/elsewhere' } : {});
              response.end(now.cut === null ? text : text.slice(0, now.cut));
            }
            return 'by hand';
          },
          { lookups: true },
        );
        const auth = given
          ? { method: 'token', token: 'CANARY-TOKEN' }
          : {
              method: 'approle',
              roleId: 'r',
              secretId: 'CANARY"\\SECRET',
              secretIdWrapped: plan.length % 2 === 0,
            };
        const provider = open('vault', { address: server.address, auth, retries: 0, timeout: '500ms' });
        const errors: PosternError[] = [];
        const note = (thrown: unknown) => {
          assert.ok(thrown instanceof PosternError, inspect(thrown));
          assert.ok(thrown.code === 'PROVIDER_FAILED' || thrown.code === 'PROVIDER_UNAVAILABLE', thrown.code);
          errors.push(thrown);
        };
        try {
          for (let i = 0; i < 3; i++) {
            const [grant] = await Promise.all([
              provider.fetch(dynamic, never).catch(note),
              provider.fetch([reference], never).catch(note),
              provider.check(never).catch(note),
            ]);
            for (const lease of grant?.leases ?? []) {
              await lease.renew(never).catch(note);
              assert.ok(lease.expiresAt instanceof Date && !Number.isNaN(lease.expiresAt.getTime()));
              await lease.revoke(never).catch(note);
            }
          }
          await provider.revokeLeases?.(['a', 'b'], never).catch(note);
        } finally {
          await provider.close(AbortSignal.timeout(2000));
          await server.stop();
        }
        const everything = inspect(errors, { depth: null, showHidden: true }) + provider.logged();
        assert.doesNotMatch(everything, /CANARY/);
      }),
      { numRuns: 60, endOnFailure: false, interruptAfterTimeLimit: 30_000 },
    );
  });
});
