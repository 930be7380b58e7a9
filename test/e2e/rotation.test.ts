import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import mysql from 'mysql2/promise';

import { mysqlEngine, postgresEngine } from '../support/database-engine.ts';
import type { Postern } from '../support/postern.ts';
import { type OpenBao, type PostgresInfo, sql, startOpenBao, withServer } from '../support/servers.ts';
import {
  application,
  ask,
  eventually,
  keep,
  perform,
  refused,
  type ServiceOptions,
  stage,
  towards,
} from './stage.ts';

const ROTATIONS = Number(process.env['POSTERN_TEST_ROTATIONS'] ?? 100);
const APPLICATIONS = 4;
const CLIENTS = 50;
/** How long one of many clients thinks between two connections, in milliseconds. */
const THINKING = 400;
/**
 * On a machine that is busy with other things a server may take seconds to change a password. That it then
 * fails nobody is the matter of these tests; how long Postern waits by default is that of test/lifecycle.
 */
const patient = { cache: { rotationGrace: '30s' }, limits: { loginTimeout: '60s' } } as const;
const PATIENCE = 60_000;
/**
 * Rotations during one login. It is tried ten times, and on a busy machine the slowest of the clients would be overtaken
 * more often than that by rotations that wait for the fast ones only.
 */
const MOST_OVERTAKEN = 5;

let roles = 0;

/** A role of this test alone, with every password it ever had. */
class Role {
  readonly name: string;
  readonly passwords: string[] = [];
  readonly #postgres: PostgresInfo;

  private constructor(name: string, postgres: PostgresInfo) {
    this.name = name;
    this.#postgres = postgres;
  }

  static async create(t: TestContext, postgres: PostgresInfo): Promise<Role> {
    roles += 1;
    const role = new Role(`rotated_${process.pid}_${roles}`, postgres);
    await sql(postgres, `create role ${role.name} login`);
    t.after(() => sql(postgres, `drop role ${role.name}`));
    await role.set(role.next());
    return role;
  }

  /** The password to be. */
  next(): string {
    const password = `s3cr3t-${randomUUID()}`;
    this.passwords.push(password);
    return password;
  }

  async set(password: string): Promise<void> {
    await sql(this.#postgres, `alter role ${this.name} password '${password}'`);
  }

  /** The login as the store should have it. */
  get login(): { username: string; password: string } {
    return { username: this.name, password: this.passwords.at(-1) ?? '' };
  }
}

/** Fails when any of their passwords was printed. */
function assertUnseen(postern: Postern, ...seen: readonly Role[]): void {
  for (const password of seen.flatMap(({ passwords }) => passwords))
    assert.ok(!postern.output.includes(password), 'a password is in the output');
}

/** A role in the server and in the store, and the program that logs in with it. */
async function scene(t: TestContext, options: Partial<ServiceOptions> = {}) {
  const servers = await stage(t);
  if (!servers) return undefined;
  const { openbao, postgres18 } = servers;
  const role = await Role.create(t, postgres18);
  const { path, references } = await keep(openbao, role.login);
  const postern = await perform(openbao, {
    db: { credentials: references, config: towards(postgres18), ...options },
  });
  const store = (login: Role['login']) => write(openbao, path, login);
  return { postern, port: postern.port('db'), postgres18, openbao, role, store, references };
}

async function write(bao: OpenBao, path: string, login: Role['login']): Promise<void> {
  await bao.write(path, { data: login });
}

interface Attempt {
  readonly started: number;
  readonly ended: number;
  /** SQLSTATE, or undefined for one that was served. */
  readonly failure: string | undefined;
}

/** Applications that connect, ask one thing and leave, all the time, until they are told to stop. */
class Crowd {
  readonly attempts: Attempt[] = [];
  readonly size: number;
  readonly #ask: (port: number, query: string) => Promise<unknown>;
  readonly #underWay = new Set<object>();
  readonly #before: ReadonlySet<object>[] = [];
  #stopped = false;
  readonly #done: Promise<unknown>;

  constructor(port: number, size = APPLICATIONS, asking: typeof askMySql = askPostgres) {
    this.size = size;
    this.#ask = asking;
    this.#done = Promise.all(Array.from({ length: size }, () => this.#run(port)));
  }

  /** Waits until so many connections have come and gone. */
  async another(connections = this.size): Promise<void> {
    const enough = this.attempts.length + connections;
    await eventually('applications to connect', () => this.attempts.length >= enough, PATIENCE);
  }

  /** Waits, before a rotation, for whoever was connecting already that many rotations ago. */
  async notOvertaken(): Promise<void> {
    this.#before.push(new Set(this.#underWay));
    if (this.#before.length < MOST_OVERTAKEN) return;
    const late = this.#before.shift();
    await eventually(
      'applications to be served',
      () => late?.isDisjointFrom(this.#underWay) ?? true,
      PATIENCE,
    );
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#done;
  }

  async #run(port: number): Promise<void> {
    while (!this.#stopped) {
      const started = performance.now();
      let failure: string | undefined;
      const attempt = {};
      this.#underWay.add(attempt);
      try {
        await this.#ask(port, 'select 1');
      } catch (error) {
        failure = String((error as { code?: unknown }).code);
      }
      this.#underWay.delete(attempt);
      this.attempts.push({ started, ended: performance.now(), failure });
      if (this.size > APPLICATIONS) await sleep(THINKING * Math.random());
    }
  }
}

async function askPostgres(port: number, query: string): Promise<void> {
  await ask(port, query, { connectionTimeoutMillis: PATIENCE });
}

/** Connects, asks one thing of a MySQL, leaves. */
async function askMySql(port: number, query: string): Promise<void> {
  const client = await mysql.createConnection({
    host: '127.0.0.1',
    port,
    user: 'anybody',
    database: 'app',
    connectTimeout: PATIENCE,
  });
  try {
    await client.query(query);
  } finally {
    client.destroy();
  }
}

/** Fails when anybody was refused; prints what there was. */
async function told(t: TestContext, crowd: Crowd, postern: Postern, more: string): Promise<void> {
  const failed = crowd.attempts.filter(({ failure }) => failure !== undefined);
  const recovered = await postern.metric('postern_credential_rejections_total', { outcome: 'recovered' });
  const slowest = Math.max(...crowd.attempts.map(({ started, ended }) => ended - started));
  t.diagnostic(
    `${ROTATIONS} rotations, ${crowd.attempts.length} connections of ${crowd.size} clients, ${failed.length} failed; ${recovered} met a rejection and were served all the same; the slowest took ${Math.round(slowest)} ms; ${more}`,
  );
  assert.deepEqual(failed, []);
  assert.ok(recovered > 0, 'nobody came while a rotation was under way: the test proves nothing');
}

/** Hands connections on to a server, as soon as it is told to. */
class Gate implements AsyncDisposable {
  readonly #server = createServer({ allowHalfOpen: true });
  readonly #sockets: Socket[] = [];
  readonly #open = Promise.withResolvers<void>();
  waiting = 0;

  static async before(port: number): Promise<Gate> {
    const gate = new Gate();
    gate.#server.on('connection', (near) => void gate.#pass(near, port));
    await once(gate.#server.listen(0, '127.0.0.1'), 'listening');
    return gate;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  open(): void {
    this.#open.resolve();
  }

  async #pass(near: Socket, port: number): Promise<void> {
    this.waiting += 1;
    this.#sockets.push(near);
    near.on('error', () => {});
    await this.#open.promise;
    const far = connect({ host: '127.0.0.1', port, allowHalfOpen: true });
    this.#sockets.push(far);
    far.on('error', () => near.destroy());
    near.pipe(far).pipe(near);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

describe('a rotation', { timeout: 180_000 + ROTATIONS * 5000 }, () => {
  it('is not noticed by who connects after both the server and the store have the new password', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const { postern, port, role, store } = at;
    await using running = postern;
    for (let turn = 0; turn < ROTATIONS; turn++) {
      const password = role.next();
      const changes = [() => role.set(password), () => store(role.login)];
      for (const change of turn % 2 === 0 ? changes : changes.toReversed()) await change();
      assert.deepEqual(await ask(port, 'select session_user as who'), { who: role.name });
    }
    assertUnseen(running, role);
  });

  it('is not noticed at all when two roles take turns, as the store then changes in one step', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao, postgres18 } = servers;
    const [blue, green] = [await Role.create(t, postgres18), await Role.create(t, postgres18)];
    const { path, references } = await keep(openbao, blue.login);
    await using postern = await perform(openbao, {
      db: { credentials: references, config: towards(postgres18) },
    });
    const crowd = new Crowd(postern.port('db'));
    for (let turn = 0; turn < ROTATIONS; turn++) {
      const idle = turn % 2 === 0 ? green : blue;
      await idle.set(idle.next());
      await write(openbao, path, idle.login);
      await crowd.another();
    }
    await crowd.stop();
    assert.deepEqual(
      crowd.attempts.filter(({ failure }) => failure !== undefined),
      [],
    );
    t.diagnostic(`${ROTATIONS} rotations, ${crowd.attempts.length} connections, 0 failures`);
    assertUnseen(postern, blue, green);
  });

  for (const [order, serverFirst] of [
    ['the server first, then the store', true],
    ['the store first, then the server', false],
  ] as const)
    it(`of one role fails none of ${CLIENTS} clients, who connect and ask all the time (${order})`, async (t) => {
      const at = await scene(t, patient);
      if (!at) return;
      const { postern, port, role, store } = at;
      await using running = postern;
      const crowd = new Crowd(port, CLIENTS);
      let disagreed = 0;
      for (let turn = 0; turn < ROTATIONS; turn++) {
        const password = role.next();
        const changes = [() => role.set(password), () => store(role.login)];
        await crowd.another(10);
        await crowd.notOvertaken();
        const from = performance.now();
        for (const change of serverFirst ? changes : changes.toReversed()) await change();
        disagreed += performance.now() - from;
      }
      await crowd.another();
      await crowd.stop();
      await told(t, crowd, running, `server and store disagreed for ${Math.round(disagreed)} ms in all`);
      assertUnseen(running, role);
    });

  for (const [name, engineOf] of [
    ['postgres18', postgresEngine],
    ['mysql9', mysqlEngine],
  ] as const)
    it(`of a static role of the store, which changes the server itself, fails none of ${CLIENTS} clients (${name})`, async (t) => {
      const servers = await stage(t);
      const database = servers && (await withServer(t, name));
      if (!servers || !database) return;
      const bao = await startOpenBao();
      t.after(() => bao.stop());
      await bao.request('PUT', 'sys/policies/acl/app', {
        policy: 'path "database/static-creds/*" { capabilities = ["read"] }',
      });
      // oxlint-disable-next-line typescript/no-unsafe-argument -- each engine is called with its own server
      const engine = await engineOf(bao, database as never);
      const role = await engine.static();
      const onPostgres = name === 'postgres18';
      const config = onPostgres
        ? towards(database as PostgresInfo)
        : { host: 'localhost', port: database.port, tls: { ca: database.ca } };
      await using postern = await perform(bao, {
        db: {
          connector: onPostgres ? 'postgres' : 'mysql',
          credentials: {
            username: { from: 'bao', get: `${role.path}#username` },
            password: { from: 'bao', get: `${role.path}#password` },
          },
          config,
          ...patient,
        },
      });
      const crowd = new Crowd(postern.port('db'), CLIENTS, onPostgres ? askPostgres : askMySql);
      for (let turn = 0; turn < ROTATIONS; turn++) {
        await crowd.another(10);
        await crowd.notOvertaken();
        await role.rotate();
      }
      await crowd.another();
      await crowd.stop();
      await told(t, crowd, postern, 'rotated by the store');
    });

  it('between the fetch of the password and the login is mended by one more fetch', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const { openbao, postgres18, role, store, references } = at;
    await at.postern.stop();
    await using gate = await Gate.before(postgres18.port);
    await using postern = await perform(openbao, {
      db: { credentials: references, config: { ...towards(postgres18), port: gate.port } },
    });
    const asking = ask(postern.port('db'), 'select session_user as who');
    await eventually('Postern to dial', () => gate.waiting === 1);
    await role.set(role.next());
    await store(role.login);
    gate.open();
    assert.deepEqual(await asking, { who: role.name });
    const asked = { provider: 'bao', outcome: 'ok' };
    assert.equal(await postern.metric('postern_provider_requests_total', asked), 2);
    const line = await postern.logged(({ msg }) => msg === 'session ended');
    assert.equal(line['credential'], 'bao@2');
    assertUnseen(postern, role);
  });

  it('leaves sessions alone that are already there', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const { postern, port, role, store } = at;
    await using running = postern;
    const client = await application(port);
    await role.set(role.next());
    await store(role.login);
    assert.deepEqual(await ask(port, 'select session_user as who'), { who: role.name });
    assert.equal((await client.query('select 1')).rowCount, 1);
    await client.end();
    assertUnseen(running, role);
  });

  it('that reached only the server refuses a storm with few questions to the store, and heals by itself', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const { postern, port, role, store } = at;
    await using running = postern;
    await role.set(role.next());
    const storm = await Promise.all(Array.from({ length: 40 }, () => refused(port)));
    assert.deepEqual([...new Set(storm.map(({ code }) => code))], ['28000']);
    const asked = { provider: 'bao', outcome: 'ok' };
    const questions = await running.metric('postern_provider_requests_total', asked);
    t.diagnostic(`40 rejected at once: ${questions} questions to the store`);
    assert.ok(questions <= 40, `${questions} questions to the store`);
    await store(role.login);
    await Promise.all(Array.from({ length: 40 }, () => ask(port, 'select 1')));
    assertUnseen(running, role);
  });
});
