import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, describe, it } from 'node:test';

import { drivers, withDriver } from '../support/clients/drivers.ts';
import { psql } from '../support/clients/psql.ts';
import {
  cancelRequest,
  fieldsOf,
  gssRequest,
  messagesOf,
  readUntil,
  sslRequest,
  startup,
} from '../support/fake-postgres.ts';
import type { Postern } from '../support/postern.ts';
import { certificates, server } from '../support/servers.ts';
import { Peer } from '../support/session.ts';
import { ask, busy, eventually, loginOf, perform, refused, shared, towards, viaPsql } from './stage.ts';

const hello = startup([
  ['user', 'anybody'],
  ['database', 'app'],
]);

describe('TLS on the side of the application', () => {
  let postern: Postern | undefined;

  const scene = shared(async () => {
    const [bao, postgres] = [await server('openbao'), await server('postgres18')];
    const { server: leaf, ca, 'other-ca': other } = await certificates();
    const credentials = await loginOf(bao, 'scram_user');
    const config = towards(postgres);
    const listenTls = { cert: leaf.cert, key: leaf.key };
    postern = await perform(bao, {
      tls: { listenTls, credentials, config },
      plain: { credentials, config },
    });
    const [tls, plain] = [postern.port('tls'), postern.port('plain')];
    return { postern, postgres, tls, plain, ca, otherCa: other.ca };
  });

  after(() => postern?.stop());

  /** How many sessions of the service have ended, and whether the last of them had TLS. */
  const endings = (program: Postern, service: string) =>
    program.lines.filter((line) => line.msg === 'session ended' && line['service'] === service);

  const who = 'select current_user';
  const modes: Readonly<Record<string, (ca: string) => string>> = {
    disable: () => 'sslmode=disable',
    prefer: () => 'sslmode=prefer',
    require: () => 'sslmode=require',
    'verify-ca': (ca) => `sslmode=verify-ca sslrootcert=${ca}`,
    'verify-full': (ca) => `sslmode=verify-full sslrootcert=${ca}`,
  };
  for (const [mode, parameters] of Object.entries(modes))
    it(`serves psql with sslmode=${mode}, in the way that it asks for`, async (t) => {
      const set = await scene(t);
      if (!set) return;
      const before = endings(set.postern, 'tls').length;
      const place = `host=localhost port=${set.tls} user=anybody dbname=app`;
      assert.equal(await viaPsql(`${place} ${parameters(set.ca)}`, who), 'scram_user');
      await eventually('the end of the session', () => endings(set.postern, 'tls').length > before);
      assert.equal(endings(set.postern, 'tls').at(-1)?.['clientTls'], mode === 'disable' ? undefined : true);
    });

  it('shows a certificate that psql can refuse', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const place = `host=localhost port=${set.tls} user=anybody dbname=app`;
    assert.match(
      await viaPsql(`${place} sslmode=verify-full sslrootcert=${set.otherCa}`, who),
      /certificate verify failed/,
    );
    // The certificate names localhost and 127.0.0.1, not this.
    const strange = `host=db.example hostaddr=127.0.0.1 port=${set.tls} user=anybody dbname=app`;
    assert.match(
      await viaPsql(`${strange} sslmode=verify-full sslrootcert=${set.ca}`, who),
      /does not match host name "db\.example"/,
    );
  });

  it('lets a client that prefers TLS go on without where there is none', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const place = `host=127.0.0.1 port=${set.plain} user=anybody dbname=app sslmode=prefer`;
    assert.equal(await viaPsql(place, who), 'scram_user');
  });

  it('lets libpq say in its own words that there is no TLS, where the client requires it', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const place = `host=127.0.0.1 port=${set.plain} user=anybody dbname=app sslmode=require`;
    assert.match(await viaPsql(place, who), /server does not support SSL, but SSL was required/);
  });

  it('serves pg with TLS that it has verified', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const ca = await readFile(set.ca, 'utf8');
    const row = await ask(set.tls, 'select current_user::text as who', { host: 'localhost', ssl: { ca } });
    assert.equal(row['who'], 'scram_user');
  });

  for (const driver of drivers)
    it(`serves ${driver.name} with TLS that it has verified, also its cancel request`, async (t) => {
      const set = await scene(t);
      if (!set || !(await withDriver(t, driver))) return;
      const target = {
        host: 'localhost',
        port: set.tls,
        user: 'anybody',
        database: 'app',
        sslmode: 'verify-full',
        rootCert: set.ca,
      } as const;
      const { user } = await driver.ask('select', target);
      assert.equal(user, 'scram_user');
      const { sqlstate, alive } = await driver.ask('cancel', target);
      assert.deepEqual([sqlstate, alive], ['57014', true]);
    });

  it('takes TLS at once (sslnegotiation=direct) from a client that agrees to the protocol by ALPN', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const peer = await Peer.connect(set.tls);
    const secure = await peer.startTls(['postgresql']);
    assert.equal(secure.alpnProtocol, 'postgresql');
    peer.send(hello);
    const messages = await readUntil(peer, 'ZE');
    assert.equal(messages.at(-1)?.type, 'Z');
    peer.destroy();
  });

  it('refuses TLS at once from a client that agrees to no protocol, or to another', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const peer = await Peer.connect(set.tls);
    await peer.startTls();
    const [error] = messagesOf(await peer.rest());
    assert.equal(error?.type, 'E');
    assert.equal(fieldsOf(error?.body ?? Buffer.alloc(0))['C'], '08P01');
    const other = await Peer.connect(set.tls);
    await assert.rejects(other.startTls(['http/1.1']));
    for (const each of [peer, other]) each.destroy();
  });

  it('answers TLS at once with a TLS alert where there is no certificate', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const peer = await Peer.connect(set.plain);
    await assert.rejects(peer.startTls(['postgresql']), { code: 'ERR_SSL_SSL/TLS_ALERT_HANDSHAKE_FAILURE' });
    peer.destroy();
  });

  it('takes no bytes that came in clear between the request for TLS and the handshake (CVE-2021-23214)', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const peer = await Peer.connect(set.tls);
    peer.send(sslRequest, hello);
    const answer = await peer.rest();
    assert.notEqual(answer[0], 'S'.charCodeAt(0));
    assert.equal(fieldsOf(messagesOf(answer)[0]?.body ?? Buffer.alloc(0))['C'], '08P01');
    peer.destroy();
  });

  it('cancels with a request in clear for a session over TLS, as a real server does', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const peer = await Peer.connect(set.tls);
    await peer.startTls(['postgresql']);
    peer.send(hello);
    const key = (await readUntil(peer, 'Z')).find(({ type }) => type === 'K')?.body ?? assert.fail();
    const query = Buffer.from('select pg_sleep(30)\0');
    peer.send(Buffer.from('Q'), Buffer.from([0, 0, 0, query.length + 4]), query);
    await busy(set.postgres, key.readInt32BE());
    const asking = await Peer.connect(set.tls);
    const started = performance.now();
    asking.send(cancelRequest(key.readInt32BE(), key.subarray(4)));
    await asking.rest();
    const [error] = (await readUntil(peer, 'Z')).filter(({ type }) => type === 'E');
    assert.equal(fieldsOf(error?.body ?? Buffer.alloc(0))['C'], '57014');
    assert.ok(performance.now() - started < 20_000);
    for (const each of [peer, asking]) each.destroy();
  });

  it('tells a refusal through the TLS of the client', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const { code, message } = await refused(set.tls, {
      ssl: { rejectUnauthorized: false },
      database: 'there_is_no_such_database',
    });
    assert.deepEqual([code, message], ['3D000', 'database "there_is_no_such_database" does not exist']);
  });

  it('copes with psql asking for GSSAPI encryption first', async (t) => {
    const set = await scene(t);
    if (!set) return;
    // Without a ticket libpq does not ask at all, so it is asked in its place.
    const peer = await Peer.connect(set.tls);
    peer.send(gssRequest);
    assert.equal((await peer.read(1)).toString(), 'N');
    peer.send(sslRequest);
    assert.equal((await peer.read(1)).toString(), 'S');
    await peer.startTls();
    peer.send(hello);
    assert.equal((await readUntil(peer, 'ZE')).at(-1)?.type, 'Z');
    peer.destroy();
    const { stdout } = await psql([
      '-Atc',
      who,
      `host=localhost port=${set.tls} user=anybody dbname=app gssencmode=prefer sslmode=require`,
    ]);
    assert.equal(stdout.trim(), 'scram_user');
  });
});
