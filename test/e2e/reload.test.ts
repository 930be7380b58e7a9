import assert from 'node:assert/strict';
import { once } from 'node:events';
import { copyFileSync, lstatSync, mkdtempSync, rmSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it, type TestContext } from 'node:test';

import { fieldsOf, readMessage, sslRequest, startup } from '../support/fake-postgres.ts';
import type { Postern } from '../support/postern.ts';
import { answers, freePort } from '../support/servers/process.ts';
import { certificates, startOpenBao } from '../support/servers.ts';
import { Peer } from '../support/session.ts';
import {
  application,
  ask,
  configuration,
  eventually,
  keep,
  loginOf,
  perform,
  refused,
  type ServiceOptions,
  stage,
  towards,
} from './stage.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-reload-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const DONE = 'configuration reloaded';
const FAILED = 'configuration not reloaded, the old one stays in force';

/** Servers, a usual service, and a way to put other services in force. */
async function scene(t: TestContext) {
  const servers = await stage(t);
  if (!servers) return undefined;
  const { openbao, postgres18 } = servers;
  const service: ServiceOptions = {
    credentials: await loginOf(openbao, 'scram_user'),
    config: towards(postgres18),
  };
  return {
    openbao,
    service,
    start: (services: Record<string, ServiceOptions>, top?: Record<string, unknown>) =>
      perform(openbao, services, { ...(top && { top }) }),
    reload: (postern: Postern, services: Record<string, ServiceOptions>, top?: Record<string, unknown>) =>
      reload(postern, configuration(openbao, services, top)),
  };
}

/** Writes a configuration, says so, and gives the line of the log that comes of it. */
async function reload(
  postern: Postern,
  text: string,
  signal: NodeJS.Signals = 'SIGHUP',
): Promise<{ readonly done: boolean; readonly error: string }> {
  const answered = () => postern.lines.filter(({ msg }) => msg === DONE || msg === FAILED);
  const before = answered().length;
  await postern.writeConfig(text);
  postern.signal(signal);
  await eventually('the reload', () => answered().length > before);
  const line = answered().at(-1);
  const error = line?.['error'];
  return { done: line?.msg === DONE, error: typeof error === 'string' ? error : '' };
}

async function whoAmI(port: number): Promise<unknown> {
  return (await ask(port, 'select session_user as who'))['who'];
}

describe('SIGHUP', { timeout: 600_000 }, () => {
  it('opens a service that is new in the file, and touches no other', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start({ first: at.service });
    const [before, session] = [postern.port('first'), await application(postern.port('first'))];
    assert.ok((await at.reload(postern, { first: at.service, second: at.service })).done);
    assert.equal(await whoAmI(postern.port('second')), 'scram_user');
    assert.equal(await whoAmI(before), 'scram_user');
    const first = postern.lines.filter(({ msg, service }) => msg === 'listening' && service === 'first');
    assert.equal(first.length, 1, 'the old listener was opened anew');
    assert.equal((await session.query('select 1')).rowCount, 1);
    await session.end();
  });

  it('makes a changed service serve new clients its new way, while the old session lives', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const other = await loginOf(at.openbao, 'md5_user');
    await using postern = await at.start({ db: at.service });
    const port = postern.port('db');
    const session = await application(port);
    assert.ok((await at.reload(postern, { db: { ...at.service, credentials: other } })).done);
    assert.equal(await whoAmI(port), 'md5_user');
    const { rows } = await session.query<{ who: string }>('select session_user as who');
    assert.deepEqual(rows, [{ who: 'scram_user' }]);
    assert.equal(await postern.metric('postern_sessions_active', { service: 'db' }), 1);
    await session.end();
    await eventually(
      'it to be gone',
      async () => (await postern.metric('postern_sessions_active', { service: 'db' })) === 0,
    );
  });

  it('does not turn away a client that has connected and not yet said what it wants', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start({ db: at.service });
    const port = postern.port('db');
    const peer = await Peer.connect(port);
    // The answer shows that Postern has taken the connection.
    peer.send(sslRequest);
    assert.equal((await peer.read(1)).toString(), 'N');
    const limits = { maxConnections: 7 };
    assert.ok((await at.reload(postern, { db: { ...at.service, limits } })).done);
    peer.send(
      startup([
        ['user', 'anybody'],
        ['database', 'app'],
      ]),
    );
    const { type, body } = await readMessage(peer);
    assert.equal(type, 'R', type === 'E' ? JSON.stringify(fieldsOf(body)) : type);
    peer.destroy();
  });

  it('fails nobody of those who connect all the time, however often it comes', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start({ db: at.service });
    const port = postern.port('db');
    let stopped = false;
    let served = 0;
    const crowd = Array.from({ length: 4 }, async () => {
      while (!stopped) {
        assert.equal(await whoAmI(port), 'scram_user');
        served += 1;
      }
    });
    const all = Promise.all(crowd);
    all.catch(() => {});
    for (let turn = 1; turn <= 25; turn++) {
      const limits = { maxConnections: 100 + turn };
      assert.ok((await at.reload(postern, { db: { ...at.service, limits } })).done);
      const enough = served + 4;
      await Promise.race([all, eventually('clients to come', () => served >= enough)]);
    }
    stopped = true;
    await all;
    t.diagnostic(`25 reloads, ${served} connections, 0 failures`);
  });

  it('closes the listener of a service that is gone from the file, and its session lives', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start({ stays: at.service, goes: at.service });
    const [stays, goes] = [postern.port('stays'), postern.port('goes')];
    const session = await application(goes);
    assert.ok((await at.reload(postern, { stays: at.service })).done);
    await postern.logged(({ msg, service }) => msg === 'no longer listening' && service === 'goes');
    assert.ok(!(await answers(goes)), 'still listens');
    assert.equal(await whoAmI(stays), 'scram_user');
    assert.equal((await session.query('select 1')).rowCount, 1);
    await session.end();
  });

  it('moves a service to another address', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const [from, to] = [await freePort(), await freePort()];
    const on = (port: number) => ({ db: { ...at.service, listenOn: `tcp://127.0.0.1:${port}` } });
    await using postern = await at.start(on(from));
    assert.equal(await whoAmI(from), 'scram_user');
    assert.ok((await at.reload(postern, on(to))).done);
    assert.equal(await whoAmI(to), 'scram_user');
    assert.ok(!(await answers(from)), 'still listens');
  });

  it('leaves everything as it was when the file is bad, says why, and counts it', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start({ db: at.service });
    const port = postern.port('db');
    const session = await application(port);
    const bad = [
      'version: [',
      configuration(at.openbao, { db: { ...at.service, connector: 'postgre' }, late: at.service }),
      configuration(at.openbao, {}),
    ];
    for (const [i, text] of bad.entries()) {
      const { done, error } = await reload(postern, text);
      assert.ok(!done, text);
      assert.match(error, /postern\.yaml:\d+:\d+/);
      assert.equal(await postern.metric('postern_config_reloads_total', { outcome: 'failed' }), i + 1);
    }
    assert.ok(!postern.lines.some(({ service }) => service === 'late'), 'half of it was put in force');
    assert.equal(await whoAmI(port), 'scram_user');
    assert.equal((await session.query('select 1')).rowCount, 1);
    await session.end();
    assert.ok((await at.reload(postern, { db: at.service })).done);
    assert.equal(await postern.metric('postern_config_reloads_total', { outcome: 'ok' }), 1);
  });

  it('puts nothing of it in force when one of its addresses cannot be had', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const taken = createServer();
    await once(taken.listen(0, '127.0.0.1'), 'listening');
    t.after(() => taken.close());
    const { port: takenPort } = taken.address() as AddressInfo;
    await using postern = await at.start({ db: at.service });
    const other = await loginOf(at.openbao, 'md5_user');
    const { done, error } = await at.reload(postern, {
      db: { ...at.service, credentials: other },
      fresh: at.service,
      taken: { ...at.service, listenOn: `tcp://127.0.0.1:${takenPort}` },
    });
    assert.ok(!done);
    assert.match(error, new RegExp(`cannot listen on tcp://127\\.0\\.0\\.1:${takenPort}`));
    assert.equal(await whoAmI(postern.port('db')), 'scram_user');
    await eventually('the new listener to be closed', async () => !(await answers(postern.port('fresh'))));
    assert.equal(await postern.metric('postern_config_reloads_total', { outcome: 'failed' }), 1);
  });

  it('uses a provider that changed, and keeps one that did not', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start({ db: at.service });
    const port = postern.port('db');
    const login = () => postern.lines.filter(({ msg }) => msg === 'logged in to Vault').length;
    assert.equal(await whoAmI(port), 'scram_user');
    assert.ok((await at.reload(postern, { db: at.service, other: at.service })).done);
    assert.equal(await whoAmI(port), 'scram_user');
    assert.equal(login(), 1, 'the unchanged provider logged in again');

    const { address, roleId } = at.openbao;
    const auth = { method: 'approle', roleId, secretIdEnv: 'E2E_SECRET_ID' };
    const providers = { bao: { kind: 'vault', address, auth, retries: 1 } };
    assert.ok((await at.reload(postern, { db: at.service }, { providers })).done);
    assert.equal(await whoAmI(port), 'scram_user');
    assert.equal(login(), 2);
    const dead = { bao: { kind: 'vault', address: 'http://127.0.0.1:1', auth, retries: 0 } };
    assert.ok((await at.reload(postern, { db: at.service }, { providers: dead })).done);
    assert.equal((await refused(port)).code, '57P03');
    assert.ok((await at.reload(postern, { db: at.service })).done);
    assert.equal(await whoAmI(port), 'scram_user');
  });

  it('leaves no token behind when the program ends soon after a provider changed', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const bao = await startOpenBao();
    t.after(() => bao.stop());
    const tokens = async () => {
      const answer = (await bao.request('LIST', 'auth/token/accessors')) as { data: { keys: string[] } };
      return answer.data.keys.length;
    };
    const before = await tokens();
    const service = { ...at.service, credentials: await loginOf(bao, 'scram_user') };
    await using postern = await perform(bao, { db: service });
    assert.equal(await whoAmI(postern.port('db')), 'scram_user');
    const auth = { method: 'approle', roleId: bao.roleId, secretIdEnv: 'E2E_SECRET_ID' };
    const providers = { bao: { kind: 'vault', address: bao.address, auth, retries: 1 } };
    assert.ok((await reload(postern, configuration(bao, { db: service }, { providers }))).done);
    assert.equal(await whoAmI(postern.port('db')), 'scram_user');
    assert.equal(await tokens(), before + 2);
    assert.equal(await postern.stop(), 0);
    assert.equal(await tokens(), before);
  });

  it('takes limits for the whole program over', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start({ db: at.service });
    const port = postern.port('db');
    assert.ok((await at.reload(postern, { db: at.service }, { limits: { maxConnections: 1 } })).done);
    const only = await application(port);
    assert.equal((await refused(port)).code, '53300');
    assert.ok((await at.reload(postern, { db: at.service }, { limits: { maxConnections: 5 } })).done);
    assert.equal(await whoAmI(port), 'scram_user');
    await only.end();
  });

  it('changes the permissions of a unix socket', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const host = mkdtempSync(join(folder, 'socket-'));
    const path = join(host, '.s.PGSQL.5432');
    const on = (socketMode: string) => ({ db: { ...at.service, listenOn: `unix://${path}`, socketMode } });
    await using postern = await at.start(on('0600'));
    const session = await application(5432, { host });
    const { done, error } = await at.reload(postern, on('0660'));
    assert.ok(done, error);
    assert.equal((lstatSync(path).mode & 0o777).toString(8), '660');
    assert.deepEqual(await ask(5432, 'select 1 as one', { host }), { one: 1 });
    assert.equal((await session.query('select 1')).rowCount, 1);
    await session.end();
  });

  it('shows clients the renewed certificate of a service that did not change otherwise', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const { server, sha384 } = await certificates();
    const files = { cert: join(folder, 'listen.crt'), key: join(folder, 'listen.key') };
    const renew = (leaf: typeof server) => {
      copyFileSync(leaf.cert, files.cert);
      copyFileSync(leaf.key, files.key);
    };
    renew(server);
    const services = { db: { ...at.service, listenTls: files } };
    await using postern = await at.start(services);
    const shown = async () => {
      const peer = await Peer.connect(postern.port('db'));
      peer.send(sslRequest);
      assert.equal((await peer.read(1)).toString(), 'S');
      const secure = await peer.startTls();
      const { fingerprint256 } = secure.getPeerCertificate();
      peer.destroy();
      return fingerprint256;
    };
    const before = await shown();
    renew(sha384);
    assert.ok((await at.reload(postern, services)).done);
    assert.notEqual(await shown(), before);
  });

  it('prints no secret of a configuration that it does not understand', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start({ db: at.service });
    const password = 'literal-s3cr3t-in-the-file';
    const { references } = await keep(at.openbao, { username: 'scram_user' });
    const credentials = { ...references, password: { from: 'literal', get: password, extra: 1 } };
    const { done, error } = await at.reload(postern, { db: { ...at.service, credentials } });
    assert.ok(!done);
    assert.match(error, /extra/);
    assert.ok(!postern.output.includes(password), 'the password is in the output');
  });

  it('many times in a row is one reload after the other', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start({ db: at.service });
    for (let i = 0; i < 20; i++) postern.signal('SIGHUP');
    await postern.logged(({ msg }) => msg === DONE);
    // The first answer may be that of a reload that had begun before.
    assert.ok((await at.reload(postern, { db: at.service, late: at.service })).done);
    await postern.logged(({ msg, service }) => msg === 'listening' && service === 'late');
    assert.equal(await whoAmI(postern.port('late')), 'scram_user');
    assert.ok(!postern.lines.some(({ msg }) => msg === FAILED));
  });
});
