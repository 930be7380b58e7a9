import assert from 'node:assert/strict';
import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto';
import { after, describe, it } from 'node:test';

import { copiesIn, told, total, writable } from '../support/memory.ts';
import { Postern } from '../support/postern.ts';
import { type OpenBao, type PostgresInfo, server, sql } from '../support/servers.ts';
import {
  application,
  ask,
  configuration,
  environment,
  eventually,
  keep,
  type Reference,
  shared,
  towards,
} from './stage.ts';

/** A role of this process alone, so that its password is in no memory by chance, in the server and in the store. */
interface Account {
  readonly role: string;
  readonly references: Readonly<Record<'username' | 'password', Reference>>;
  password: Buffer;
  /** Sets a new password in the server and in the store; the old one is as good as unknown. */
  readonly rotate: () => Promise<void>;
}

const cleanups: (() => Promise<unknown>)[] = [];
after(async () => {
  for (const cleanup of cleanups.toReversed()) await cleanup();
});

async function openAccount(postgres: PostgresInfo, bao: OpenBao): Promise<Account> {
  const role = `memory_${process.pid}_${randomBytes(4).toString('hex')}`;
  const newPassword = () => randomBytes(15).toString('base64url');
  const password = newPassword();
  await sql(postgres, `create role ${role} login password '${password}'`);
  cleanups.push(() => sql(postgres, `drop role ${role}`));
  const { path, references } = await keep(bao, { username: role, password });
  const account: Account = {
    role,
    references,
    password: Buffer.from(password),
    rotate: async () => {
      const next = newPassword();
      await sql(postgres, `alter role ${role} password '${next}'`);
      await bao.write(path, { data: { username: role, password: next } });
      account.password = Buffer.from(next);
    },
  };
  return account;
}

/** Everything that SCRAM derives from a password and that logs in as well as it does, or nearly (RFC 5802 section 3). */
async function derived(postgres: PostgresInfo, { role, password }: Account): Promise<Record<string, Buffer>> {
  const [row] = await sql(postgres, `select rolpassword from pg_authid where rolname = '${role}'`);
  const verifier = /^SCRAM-SHA-256\$(\d+):([^$]+)\$([^:]+):(.+)$/.exec(String(row?.['rolpassword'])) ?? [];
  const [, iterations, salt = '', stored, serverKey] = verifier;
  const salted = pbkdf2Sync(password, Buffer.from(salt, 'base64'), Number(iterations), 32, 'sha256');
  const hmac = (text: string) => createHmac('sha256', salted).update(text).digest();
  const keys = {
    SaltedPassword: salted,
    ClientKey: hmac('Client Key'),
    StoredKey: createHash('sha256').update(hmac('Client Key')).digest(),
    ServerKey: hmac('Server Key'),
  };
  assert.equal(keys.StoredKey.toString('base64'), stored, 'what is searched for is what the server has');
  assert.equal(keys.ServerKey.toString('base64'), serverKey);
  return keys;
}

/** Texts of the form of a token of OpenBao that it says are good: none but the program's own can be in its memory. */
async function tokensIn(pid: number, bao: OpenBao): Promise<Buffer[]> {
  const candidates = new Set<string>();
  for (const { bytes } of writable(pid))
    for (const [found] of bytes.toString('latin1').matchAll(/s\.[A-Za-z0-9]{24}(?![A-Za-z0-9])/g))
      candidates.add(found);
  const good: Buffer[] = [];
  for (const token of candidates) {
    const known = await bao.write('auth/token/lookup', { token }).then(
      () => true,
      () => false,
    );
    if (known) good.push(Buffer.from(token));
  }
  return good;
}

interface Scene {
  readonly postgres: PostgresInfo;
  readonly bao: OpenBao;
  readonly postern: Postern;
  readonly accounts: Readonly<Record<Store, Account>>;
}

/** How the program speaks to the store: what a secret passes through on its way differs. */
const stores = ['http', 'https'] as const;
type Store = (typeof stores)[number];

const scene = shared(async (): Promise<Scene> => {
  const [postgres, bao] = [await server('postgres18'), await server('openbao')];
  const accounts = { http: await openAccount(postgres, bao), https: await openAccount(postgres, bao) };
  const config = JSON.parse(
    configuration(bao, {
      http: { credentials: accounts.http.references, config: towards(postgres) },
      https: {
        credentials: Object.fromEntries(
          Object.entries(accounts.https.references).map(([name, { get }]) => [
            name,
            { from: 'overTls', get },
          ]),
        ),
        config: towards(postgres),
      },
    }),
  ) as { providers: Record<string, object> };
  config.providers['overTls'] = {
    ...config.providers['bao'],
    address: bao.tlsAddress,
    tls: { ca: bao.ca },
  };
  const postern = await Postern.start(JSON.stringify(config), { env: environment(bao) });
  cleanups.push(() => postern[Symbol.asyncDispose]());
  return { postgres, bao, postern, accounts };
});

async function visit({ postern }: Scene, store: Store): Promise<void> {
  const { who } = await ask(postern.port(store), 'select current_user::text as who');
  assert.ok(String(who).startsWith('memory_'));
}

async function sessionsOver({ postern }: Scene): Promise<void> {
  await eventually('all sessions end', async () => (await postern.metric('postern_sessions_active{')) === 0);
}

describe('memory', { skip: process.platform !== 'linux' && 'needs /proc' }, () => {
  for (const store of stores) {
    it(`holds no password while a session lives, and none after it (store over ${store})`, async (t) => {
      const found = await scene(t);
      if (!found) return;
      const { postern, accounts } = found;
      const { password } = accounts[store];
      const copies = () => copiesIn(postern.pid, password);
      // The search works: the folder of its configuration is on its command line and in its heap.
      const control = copiesIn(postern.pid, Buffer.from(postern.configPath));
      assert.ok((control['[stack]'] ?? 0) > 0 && (control['anonymous'] ?? 0) > 0, told(control));
      t.diagnostic(`control: ${told(control)}`);

      const client = await application(postern.port(store));
      const during = copies();
      await client.end();
      await sessionsOver(found);
      const afterwards = copies();
      for (let turn = 0; turn < 20; turn++) await visit(found, store);
      await Promise.all(Array.from({ length: 20 }, () => visit(found, store)));
      await sessionsOver(found);
      const afterMany = copies();
      t.diagnostic(`during: ${told(during)}; after: ${told(afterwards)}; after 40 more: ${told(afterMany)}`);
      for (const each of [during, afterwards, afterMany]) assert.equal(total(each), 0, told(each));
      assert.ok(!postern.output.includes(password.toString()), 'nor was it printed');
    });
  }

  it('holds the two keys that the next login needs once each, and nothing else that was derived', async (t) => {
    const found = await scene(t);
    if (!found) return;
    const { postern, postgres, accounts } = found;
    for (const store of stores) {
      await visit(found, store);
      await sessionsOver(found);
      const keys = await derived(postgres, accounts[store]);
      const copies = Object.entries(keys).map(([name, key]) => [name, copiesIn(postern.pid, key)] as const);
      for (const [name, each] of copies) t.diagnostic(`${store}: ${name}: ${told(each)}`);
      assert.deepEqual(Object.fromEntries(copies.map(([name, each]) => [name, total(each)])), {
        SaltedPassword: 0,
        ClientKey: 1,
        StoredKey: 0,
        ServerKey: 1,
      });
    }
  });

  it('forgets the keys of a password that was rotated, with the first login after it', async (t) => {
    const found = await scene(t);
    if (!found) return;
    const { postern, postgres, accounts } = found;
    const account = accounts.http;
    await visit(found, 'http');
    const { password } = account;
    const old = await derived(postgres, account);
    await account.rotate();
    await visit(found, 'http');
    await sessionsOver(found);
    for (const [name, key] of Object.entries({ ...old, password })) {
      const copies = copiesIn(postern.pid, key);
      assert.equal(total(copies), 0, `old ${name}: ${told(copies)}`);
    }
    assert.equal(total(copiesIn(postern.pid, (await derived(postgres, account))['ClientKey'] as Buffer)), 1);
  });

  it('says how often the token of the store and the secret that got it are there', async (t) => {
    const found = await scene(t);
    if (!found) return;
    const { postern, bao } = found;
    await visit(found, 'http');
    const tokens = await tokensIn(postern.pid, bao);
    // It is a header of each request, which node:http takes as a string only.
    assert.ok(tokens.length > 0, 'a program that asks the store holds its token');
    for (const token of tokens) t.diagnostic(`token: ${told(copiesIn(postern.pid, token))}`);
    t.diagnostic(
      `secret id, given in the environment: ${told(copiesIn(postern.pid, Buffer.from(bao.secretId)))}`,
    );
  });
});
