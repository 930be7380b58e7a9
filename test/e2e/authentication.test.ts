import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import postgres from 'postgres';

import { type Driver, drivers, withDriver } from '../support/clients/drivers.ts';
import type { Postern } from '../support/postern.ts';
import { canary, certificates, type Role, server, sql } from '../support/servers.ts';
import {
  ask,
  keep,
  loginOf,
  perform,
  refused,
  type ServiceOptions,
  shared,
  towards,
  viaPsql,
} from './stage.ts';

/** A way in: the role, which server and settings, and the method that Postern must have used. */
interface Way {
  readonly role: Role;
  readonly method: string;
  readonly config?: Readonly<Record<string, unknown>>;
}

/** PostgreSQL 18 with TLS, verified in full. */
const overTls: Readonly<Record<string, Way>> = {
  trust: { role: 'trust_user', method: 'none' },
  clear: { role: 'clear_user', method: 'password' },
  md5: { role: 'md5_user', method: 'md5' },
  scram: { role: 'scram_user', method: 'scram-sha-256', config: { channelBinding: 'disable' } },
  'scram-plus': { role: 'scram_user', method: 'scram-sha-256-plus', config: { channelBinding: 'require' } },
  cert: { role: 'cert_user', method: 'none' },
  unicode: { role: 'unicode_user', method: 'scram-sha-256-plus' },
  scram16k: { role: 'scram16k_user', method: 'scram-sha-256-plus' },
  'tls-only': { role: 'tls_only_user', method: 'scram-sha-256-plus' },
};
/** PostgreSQL 15 in clear, where a password in clear and MD5 have to be allowed. */
const inClear: Readonly<Record<string, Way>> = {
  trust: { role: 'trust_user', method: 'none' },
  clear: { role: 'clear_user', method: 'password', config: { allowAuth: ['password'] } },
  md5: { role: 'md5_user', method: 'md5', config: { allowAuth: ['md5'] } },
  scram: { role: 'scram_user', method: 'scram-sha-256' },
  unicode: { role: 'unicode_user', method: 'scram-sha-256' },
  scram16k: { role: 'scram16k_user', method: 'scram-sha-256' },
};

const clients: Readonly<Record<string, (port: number) => Promise<unknown>>> = {
  psql: (port) => viaPsql(`host=127.0.0.1 port=${port} user=anybody dbname=app`, 'select current_user'),
  pg: async (port) => (await ask(port, 'select current_user::text as who'))['who'],
  'postgres.js': async (port) => {
    const sql = postgres({
      host: '127.0.0.1',
      port,
      user: 'anybody',
      database: 'app',
      max: 1,
      onnotice: () => {},
    });
    try {
      return (await sql`select current_user::text as who, ${41}::int + 1 as sum`)[0]?.['who'];
    } finally {
      await sql.end();
    }
  },
};

describe('authentication', () => {
  const table: string[][] = [];
  let postern: Postern | undefined;

  const scene = shared(async () => {
    const bao = await server('openbao');
    const [pg18, pg15] = [await server('postgres18'), await server('postgres15')];
    const { client } = await certificates();
    const services: Record<string, ServiceOptions> = {};
    for (const [name, { role, config }] of Object.entries(overTls)) {
      const { tls, ...place } = towards(pg18);
      const identity = role === 'cert_user' ? { cert: client.cert, key: client.key } : {};
      services[`pg18-${name}`] = {
        credentials: await loginOf(bao, role),
        config: { ...place, ...config, tls: { ...tls, ...identity } },
      };
    }
    for (const [name, { role, config }] of Object.entries(inClear))
      services[`pg15-${name}`] = {
        credentials: await loginOf(bao, role),
        config: { ...towards(pg15), ...config },
      };
    return (postern = await perform(bao, services));
  });

  after(async () => {
    await postern?.stop();
    const width = Math.max(...table.map(([service = '']) => service.length));
    process.stdout.write(
      `\n${table.map(([service = '', method = '', ...seen]) => `${service.padEnd(width)}  ${method.padEnd(20)} ${seen.join('  ')}`).join('\n')}\n\n`,
    );
  });

  const ways = [
    ...Object.entries(overTls).map(([name, way]) => [`pg18-${name}`, way] as const),
    ...Object.entries(inClear).map(([name, way]) => [`pg15-${name}`, way] as const),
  ];
  for (const [service, { role, method }] of ways)
    it(`lets applications in as ${role} by ${method} (${service}), without a password of theirs`, async (t) => {
      const postern = await scene(t);
      if (!postern) return;
      const seen: string[] = [];
      for (const [name, who] of Object.entries(clients)) {
        assert.equal(await who(postern.port(service)), role, name);
        seen.push(`${name} ok`);
      }
      const lines = postern.lines.filter(
        (line) => line['service'] === service && line.msg === 'session ended',
      );
      assert.ok(lines.length > 0);
      for (const line of lines) assert.equal(line['auth'], method);
      const encrypted = service.startsWith('pg18') ? 'TLSv1.3' : 'none';
      for (const line of lines) assert.equal(line['upstreamTls'], encrypted);
      table.push([service, method, ...seen]);
    });

  for (const driver of drivers)
    it(`serves ${driver.name}: it selects, cancels, listens and copies`, async (t) => {
      const postern = await scene(t);
      if (!postern || !(await withDriver(t, driver))) return;
      for (const service of ['pg18-scram-plus', 'pg15-scram', 'pg18-clear']) {
        const { user }: { user: string } = await driver.ask('select', {
          host: '127.0.0.1',
          port: postern.port(service),
          user: 'anybody',
          database: 'app',
        });
        assert.equal(user, service === 'pg18-clear' ? 'clear_user' : 'scram_user');
      }
      await actions(driver, postern.port('pg18-scram-plus'));
      table.push([`${driver.name}`, 'scram-sha-256-plus', 'select ok  cancel ok  listen ok  copy ok']);
    });
});

async function actions(driver: Driver, port: number): Promise<void> {
  const target = { host: '127.0.0.1', port, user: 'anybody', database: 'app' };
  const cancelled = await driver.ask('cancel', target);
  assert.deepEqual([cancelled.sqlstate, cancelled.alive], ['57014', true]);
  assert.ok(cancelled.ms >= 300 && cancelled.ms < 5000, `cancelled after ${cancelled.ms} ms`);
  assert.equal((await driver.ask('listen', target)).payload, 'hello');
  const copied = await driver.ask('copy', target);
  assert.equal(copied.rows, 20_000);
  assert.equal(copied.back, copied.out);
}

describe('a login that the policy of the service, or the server, refuses', () => {
  interface Case {
    readonly server: 'postgres18' | 'postgres15';
    readonly role: Role;
    readonly tls?: Readonly<Record<string, string>>;
    readonly config?: Readonly<Record<string, unknown>>;
    readonly credentials?: Readonly<Record<string, string>>;
    /** What the text must name. */
    readonly text: RegExp;
    readonly outcome: string;
  }
  const notAllowed = 'AUTH_NOT_ALLOWED';
  const cases: Readonly<Record<string, Case>> = {
    'a password in clear over TLS that is not verified': {
      server: 'postgres18',
      role: 'clear_user',
      tls: { mode: 'require' },
      text: /the password in clear/,
      outcome: notAllowed,
    },
    'MD5 over TLS that is not verified': {
      server: 'postgres18',
      role: 'md5_user',
      tls: { mode: 'require' },
      text: /MD5 authentication/,
      outcome: notAllowed,
    },
    'a password in clear without TLS': {
      server: 'postgres15',
      role: 'clear_user',
      text: /the password in clear/,
      outcome: notAllowed,
    },
    'MD5 without TLS, where only a password in clear is allowed': {
      server: 'postgres15',
      role: 'md5_user',
      config: { allowAuth: ['password'] },
      text: /MD5 authentication/,
      outcome: notAllowed,
    },
    'no authentication where something is the least': {
      server: 'postgres18',
      role: 'trust_user',
      config: { minimumAuth: 'password' },
      text: /no authentication at all.*password \(minimumAuth\)/,
      outcome: notAllowed,
    },
    'a password in clear where SCRAM is the least': {
      server: 'postgres18',
      role: 'clear_user',
      config: { minimumAuth: 'scram-sha-256' },
      text: /the password in clear.*scram-sha-256 \(minimumAuth\)/,
      outcome: notAllowed,
    },
    'MD5 where SCRAM is the least': {
      server: 'postgres18',
      role: 'md5_user',
      config: { minimumAuth: 'scram-sha-256' },
      text: /MD5 authentication.*scram-sha-256 \(minimumAuth\)/,
      outcome: notAllowed,
    },
    'SCRAM without channel binding where that is the least': {
      server: 'postgres15',
      role: 'scram_user',
      tls: {},
      credentials: { sslmode: 'disable' },
      config: { minimumAuth: 'scram-sha-256-plus' },
      text: /SCRAM-SHA-256 without channel binding.*scram-sha-256-plus \(minimumAuth\)/,
      outcome: notAllowed,
    },
    'a server without TLS where channel binding is required': {
      server: 'postgres15',
      role: 'scram_user',
      tls: {},
      credentials: { sslmode: 'disable' },
      config: { channelBinding: 'require' },
      text: /channel binding is required/,
      outcome: notAllowed,
    },
    'MD5 where channel binding is required': {
      server: 'postgres18',
      role: 'md5_user',
      config: { channelBinding: 'require' },
      text: /MD5 authentication.*requires channel binding/,
      outcome: notAllowed,
    },
    'no authentication where channel binding is required': {
      server: 'postgres18',
      role: 'trust_user',
      config: { channelBinding: 'require' },
      text: /no authentication at all.*requires channel binding/,
      outcome: notAllowed,
    },
    'SCRAM with more iterations than are allowed': {
      server: 'postgres18',
      role: 'scram16k_user',
      config: { scramMaxIterations: 4096 },
      text: /SCRAM.*16384 iterations.*scramMaxIterations/,
      outcome: notAllowed,
    },
    'a role that pg_hba.conf rejects': {
      server: 'postgres18',
      role: 'reject_user',
      text: /rejected this service's credential/,
      outcome: 'UPSTREAM_REJECTED',
    },
    'a role that needs a client certificate, without one': {
      server: 'postgres18',
      role: 'cert_user',
      text: /rejected this service's credential/,
      outcome: 'UPSTREAM_REJECTED',
    },
    'a role that may come over TLS only, without TLS': {
      server: 'postgres18',
      role: 'tls_only_user',
      tls: { mode: 'disable' },
      text: /rejected this service's credential/,
      outcome: 'UPSTREAM_REJECTED',
    },
  };

  const wrong = ['scram_user', 'md5_user', 'clear_user', 'there_is_no_such_role'] as const;
  const wrongPassword = 's3cr3t-canary-wrong';
  let postern: Postern | undefined;

  const scene = shared(async () => {
    const bao = await server('openbao');
    const servers = { postgres18: await server('postgres18'), postgres15: await server('postgres15') };
    const services: Record<string, ServiceOptions> = {};
    let number = 0;
    for (const each of Object.values(cases)) {
      const { server: which, role, tls, config, credentials } = each;
      const place = towards(servers[which]);
      services[`case-${(number += 1)}`] = {
        credentials: { ...(await loginOf(bao, role)), ...credentials },
        config: { ...place, ...config, tls: tls ?? place.tls },
      };
    }
    for (const username of wrong) {
      const { references } = await keep(bao, { username, password: wrongPassword });
      services[`wrong-${username}`] = { credentials: references, config: towards(servers.postgres18) };
    }
    postern = await perform(bao, services);
    // The first login of a process also loads code and logs in to the store.
    await refused(postern.port('case-1'));
    return { postern, servers };
  });

  after(() => postern?.stop());

  for (const [i, [name, { server: which, role, text, outcome }]] of Object.entries(cases).entries())
    it(`tells the client SQLSTATE 28000 for ${name}`, async (t) => {
      const set = await scene(t);
      if (!set) return;
      const service = `case-${i + 1}`;
      const refusal = await refused(set.postern.port(service));
      assert.equal(refusal.code, '28000');
      assert.match(refusal.message, text);
      assert.ok(refusal.ms < 8000, `after ${refusal.ms} ms`);
      const { port } = set.servers[which];
      for (const secret of [role, 'localhost', '127.0.0.1', String(port), canary.postgres])
        assert.ok(!refusal.whole.includes(secret), `names ${secret}: ${refusal.whole}`);
      const line = await set.postern.logged(
        (each) => each.msg === 'session failed' && each['service'] === service,
      );
      assert.equal(line['outcome'], outcome);
    });

  for (const role of wrong)
    it(`tells the client SQLSTATE 28000 for a wrong password of ${role}, and not even the word`, async (t) => {
      const set = await scene(t);
      if (!set) return;
      const refusal = await refused(set.postern.port(`wrong-${role}`));
      assert.equal(refusal.code, '28000');
      assert.ok(refusal.ms < 8000, `after ${refusal.ms} ms`);
      assert.doesNotMatch(refusal.whole, /password|localhost|127\.0\.0\.1|s3cr3t|_user|no_such/);
      assert.ok(!set.postern.output.includes(wrongPassword));
    });

  it("keeps the SQLSTATE of the server's own refusal and hides the role that its text names", async (t) => {
    const set = await scene(t);
    if (!set) return;
    const role = `crowded_${process.pid}`;
    const { postgres18 } = set.servers;
    await sql(postgres18, `create role ${role} login connection limit 0 password '${canary.postgres}'`);
    try {
      const bao = await server('openbao');
      const { references } = await keep(bao, { username: role, password: canary.postgres });
      await using own = await perform(bao, { db: { credentials: references, config: towards(postgres18) } });
      const hidden = await refused(own.port('db'));
      assert.equal(hidden.code, '53300');
      assert.equal(hidden.message, 'postern: the database server refused the connection');
      assert.ok(!hidden.whole.includes(role));
      // A client that knows the name anyway hears it all.
      const open = await refused(own.port('db'), { user: role });
      assert.equal(open.message, `too many connections for role "${role}"`);
      const line = await own.logged((each) => each.msg === 'session failed');
      assert.match(String(line['error']), new RegExp(`53300 too many connections for role "${role}"`));
    } finally {
      await sql(postgres18, `drop role ${role}`);
    }
  });
});
