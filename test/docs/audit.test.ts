import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { pino } from 'pino';
import { Metrics } from '../../src/admin/metrics.ts';
import { AuditTrail } from '../../src/audit.ts';
import { auditEvents } from '../../src/config/config.ts';
import { Observations } from '../../src/observations.ts';
import { psql } from '../support/clients/psql.ts';
import { Postern } from '../support/postern.ts';
import { canary, certificates, server } from '../support/servers.ts';
import { until } from '../support/session.ts';

const page = readFileSync(new URL('../../docs/audit.md', import.meta.url), 'utf8');

/** Fields by the events that docs/audit.md gives them to. */
function documented(): Map<string, Set<string>> {
  const byEvent = new Map<string, Set<string>>(
    auditEvents.map((event) => [event, new Set(['time', 'event'])]),
  );
  const rows = [...(page.split('## Fields')[1] ?? '').matchAll(/^\| (`[^|]+) \| ([^|]+) \|/gm)];
  assert.ok(rows.length > 15);
  for (const [, fields = '', where = ''] of rows) {
    const [listed = '', ...special] = where.split(';');
    const named = [...listed.matchAll(/`(\w+)`/g)].map(([, event = '']) => event);
    const events = listed.startsWith('all but')
      ? auditEvents.filter((event) => !named.includes(event))
      : named;
    for (const [, field = ''] of fields.matchAll(/`(\w+)`/g)) {
      for (const event of events) byEvent.get(event)?.add(field);
      for (const each of special) {
        const [only, event = ''] = [...each.matchAll(/`(\w+)`/g)].map(([, name = '']) => name);
        if (only === field) byEvent.get(event)?.add(field);
      }
    }
  }
  return byEvent;
}

describe('docs/audit.md', { timeout: 180_000 }, () => {
  const folder = mkdtempSync(join(tmpdir(), 'postern-audit-'));
  const file = join(folder, 'audit.jsonl');
  let records: Record<string, unknown>[] = [];
  let text = '';
  const of = (event: string) => records.filter((record) => record['event'] === event);

  before(async () => {
    const postgres = await server('postgres18');
    const { server: own } = await certificates();
    const origin = createServer((request, response) => {
      request.resume();
      response.end('hello');
    });
    await new Promise<void>((resolve) => origin.listen(0, '127.0.0.1', resolve));
    const { port } = origin.address() as AddressInfo;
    const yaml = (more: string) => `version: 2
audit: { file: ${file}, events: [${auditEvents.join(', ')}] }
services:
  orders:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    listenTls: { cert: ${own.cert}, key: ${own.key} }
    credentials: { username: scram_user, password: { from: env, get: PASSWORD } }
    limits: { maxConnections: 1 }
    access: { loginRate: { perSecond: 100, burst: 100 } }
    config: { host: ${postgres.host}, port: ${postgres.port}, tls: { ca: ${postgres.ca} } }
  api:
    connector: http
    listenOn: tcp://127.0.0.1:0
    credentials: { token: { from: env, get: PASSWORD } }
    config: { upstream: "http://127.0.0.1:${port}", allowPlainHttp: true, authenticate: { bearer: token } }
${more}`;
    const postern = await Postern.start(yaml(''), { env: { PASSWORD: canary.postgres } });
    const to = `host=127.0.0.1 port=${postern.port('orders')} user=me dbname=app application_name=orders sslmode=require`;
    const long = psql([to, '-c', 'SELECT pg_sleep(2)']);
    await until('the login', () => readFileSync(file, 'utf8').includes('"login"'));
    await psql([to, '-c', 'SELECT 1']);
    await long;
    await (
      await fetch(`http://127.0.0.1:${postern.port('api')}/things/7?secret=of-the-query`, {
        headers: { 'x-own': 'field-of-client' },
      })
    ).text();
    await postern.writeConfig(yaml('limits: { drainTimeout: 5s }'));
    postern.signal('SIGHUP');
    await postern.logged(({ msg }) => msg === 'configuration reloaded', 30_000);
    await postern.writeConfig('version: 3');
    postern.signal('SIGHUP');
    await postern.logged(({ msg }) => msg.startsWith('configuration not reloaded'), 30_000);
    await postern.stop(30_000);
    origin.close();
    origin.closeAllConnections();

    // A lease without a store that gives one.
    const trail = await AuditTrail.open(
      { to: { file }, events: ['lease'] },
      pino({ enabled: false }),
      () => {},
    );
    const observations = new Observations(new Metrics('1', { ready: () => true, services: () => [] }));
    observations.audit = trail;
    observations.leaseOperation('vault', 'revoke', 'ok', 'database/creds/a/1');
    await trail.close();

    text = readFileSync(file, 'utf8');
    records = text
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  });

  after(() => rmSync(folder, { recursive: true, force: true }));

  it('lists every event, and each of them happens', () => {
    const listed = [...(page.split('## Fields')[0] ?? '').matchAll(/^\| (`\w+`(?:, `\w+`)*) \|/gm)].flatMap(
      ([, names = '']) => [...names.matchAll(/`(\w+)`/g)].map(([, name = '']) => name),
    );
    assert.deepEqual(listed.toSorted(), [...auditEvents].toSorted());
    for (const event of auditEvents) assert.ok(of(event).length > 0, event);
  });

  it('describes every field of every record', () => {
    const fields = documented();
    for (const record of records)
      for (const field of Object.keys(record))
        assert.ok(fields.get(String(record['event']))?.has(field), `${String(record['event'])} has ${field}`);
  });

  it('describes no field that is not there', () => {
    const seen = new Set(records.flatMap((record) => Object.keys(record)));
    // Of a cancel request, of CONNECT, and of a service that goes by programs (test/e2e/access.test.ts).
    const elsewhere = ['cancel', 'connect', 'host', 'peerPid', 'peerExecutable'];
    const all = new Set([...documented().values()].flatMap((fields) => [...fields]));
    for (const field of all) if (!elsewhere.includes(field)) assert.ok(seen.has(field), field);
  });

  it('says who used which credential, for which server, and how it ended', () => {
    const [session] = of('session').filter(({ service }) => service === 'orders');
    assert.ok(session);
    assert.deepEqual(session['credentials'], [
      { name: 'username', provider: 'literal' },
      { name: 'password', provider: 'env', reference: 'PASSWORD' },
    ]);
    assert.equal(session['decision'], 'allowed');
    assert.equal(session['outcome'], 'ok');
    assert.equal(session['askedUser'], 'me');
    assert.match(String(session['client']), /^127\.0\.0\.1:\d+$/);
    assert.match(String(session['upstream']), /:\d+$/);
    assert.ok(Number(session['bytesFromUpstream']) > 0);
    assert.equal(of('login')[0]?.['session'], session['session']);
  });

  it('says whom Postern turned away, and why', () => {
    const [refused] = of('refused');
    assert.equal(refused?.['outcome'], 'LIMIT_REACHED');
    assert.equal(refused['decision'], 'refused');
  });

  it('says which request went where, and nothing of its query and fields', () => {
    const [request] = of('request');
    assert.equal(request?.['path'], '/things/7');
    assert.equal(request['outcome'], '200');
    for (const word of ['of-the-query', 'field-of-client', canary.postgres, 'pg_sleep'])
      assert.ok(!text.includes(word), word);
  });

  it('says which reloads took place, and which did not', () => {
    assert.deepEqual(
      of('reload').map(({ outcome }) => outcome),
      ['ok', 'CONFIG_INVALID'],
    );
    assert.equal(records.filter(({ event }) => event !== 'lease').at(-1)?.['event'], 'stop');
    assert.equal(statSync(file).mode & 0o777, 0o600);
  });
});
