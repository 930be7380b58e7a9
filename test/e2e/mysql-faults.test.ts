import assert from 'node:assert/strict';
import { createServer, connect as dial } from 'node:net';
import { before, describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import mysql, { type Connection, type RowDataPacket } from 'mysql2/promise';
import { mysqlCli } from '../support/clients/mysql-cli.ts';
import { accountOf, fromVault, serviceFor, startServices, store } from '../support/mysql-services.ts';
import { Postern } from '../support/postern.ts';
import {
  canary,
  type MySqlInfo,
  mysqlQuery,
  type OpenBao,
  server,
  startMySql,
  startOpenBao,
  Unavailable,
} from '../support/servers.ts';

interface Failure {
  readonly code?: string;
  readonly errno?: number;
  readonly sqlState?: string;
  readonly message: string;
}

function connect(port: number): Promise<Connection> {
  return mysql.createConnection({
    host: '127.0.0.1',
    port,
    user: 'nobody',
    database: 'app',
    connectTimeout: 20_000,
  });
}

/** The error of a login that must fail, and how long it took. */
async function refusal(port: number): Promise<Failure & { readonly ms: number }> {
  const started = performance.now();
  try {
    await (await connect(port)).end();
  } catch (error) {
    const { code = '', errno = 0, sqlState = '', message } = error as Failure;
    return { code, errno, sqlState, message, ms: performance.now() - started };
  }
  throw new assert.AssertionError({ message: 'was let in' });
}

async function whoAmI(port: number): Promise<string> {
  const connection = await connect(port);
  try {
    const [rows] = await connection.query<RowDataPacket[]>('select current_user() as user');
    return String(rows[0]?.['user']);
  } finally {
    await connection.end();
  }
}

describe('MySQL through Postern, when something is wrong or changes', () => {
  let info: MySqlInfo;
  let bao: OpenBao;
  let missing = '';

  before(async () => {
    try {
      info = await server('mysql9');
      bao = await server('openbao');
    } catch (error) {
      if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
      missing = error.message;
    }
  });

  /** A test that needs the servers. */
  function test(title: string, body: (t: TestContext) => Promise<void>): void {
    void it(title, async (t) => {
      if (missing) return t.skip(`not here: ${missing}`);
      await body(t);
    });
  }

  async function single(
    t: TestContext,
    service: Record<string, unknown>,
    more: Readonly<Record<string, unknown>> = {},
  ): Promise<Postern> {
    const postern = await startServices(bao, { db: { ...(await usual()), ...service } }, more);
    t.after(() => postern.stop());
    return postern;
  }

  const usual = () => serviceFor(bao, info, accountOf(info, 'sha2_user'));

  test('a wrong password in the store is told at once, without the name of the real user', async (t) => {
    const path = await store(bao, 'sha2_user', 'not the password');
    const postern = await single(t, { credentials: fromVault(path) });
    const { errno, sqlState, message, ms } = await refusal(postern.port('db'));
    assert.deepEqual([errno, sqlState], [1045, '28000']);
    assert.doesNotMatch(message, /sha2_user/);
    assert.ok(ms < 8000, `${ms} ms`);
  });

  test('a provider that is down is an error of its own, and passes', async (t) => {
    const own = await startOpenBao();
    t.after(own.stop);
    const service = await serviceFor(own, info, accountOf(info, 'sha2_user'));
    const postern = await startServices(own, { db: service });
    t.after(() => postern.stop());
    assert.equal(await whoAmI(postern.port('db')), 'sha2_user@%');
    await own.kill();
    const { errno, sqlState, message } = await refusal(postern.port('db'));
    assert.deepEqual([errno, sqlState], [1158, '08S01']);
    assert.match(message, /vault/i);
  });

  test('a server that is down is an error, and passes when it comes back', async (t) => {
    const own = await startMySql({ kind: 'mariadb11' });
    t.after(own.stop);
    const postern = await single(t, await serviceFor(bao, own, accountOf(own, 'parsec_user')));
    assert.equal(await whoAmI(postern.port('db')), 'parsec_user@%');
    await own.down();
    const { errno, sqlState, message } = await refusal(postern.port('db'));
    assert.deepEqual([errno, sqlState], [1158, '08S01']);
    assert.match(message, /cannot be reached/);
    await own.up();
    assert.equal(await whoAmI(postern.port('db')), 'parsec_user@%');
  });

  test('a restart of the server under load fails the sessions of that moment and no later one', async (t) => {
    const own = await startMySql({ kind: 'mysql9' });
    t.after(own.stop);
    const postern = await single(t, await serviceFor(bao, own, accountOf(own, 'sha2_user')));
    const port = postern.port('db');
    const failures: string[] = [];
    let done = false;
    let answered = 0;
    const workers = Array.from({ length: 12 }, async () => {
      while (!done) {
        try {
          await whoAmI(port);
          answered += 1;
        } catch (error) {
          const { code, errno } = error as Failure;
          failures.push(String(code ?? errno));
          await sleep(20);
        }
      }
    });
    await sleep(500);
    await own.kill();
    await sleep(200);
    await own.up();
    const [before, failed] = [answered, failures.length];
    await sleep(1000);
    done = true;
    await Promise.all(workers);
    assert.ok(before > 0 && answered > before, `${before}, then ${answered} answers`);
    assert.ok(failed > 0, 'nobody noticed');
    // Those who had begun to log in while the server came up may fail yet.
    assert.ok(failures.length - failed <= workers.length, failures.slice(failed).join(' '));
    const clear = /^(PROTOCOL_CONNECTION_LOST|ECONNRESET|ER_\w+)$/;
    for (const failure of failures) assert.match(failure, clear);
    assert.equal(await whoAmI(port), 'sha2_user@%');
  });

  test('500 sessions at once each get their own answer', async (t) => {
    const postern = await single(t, {});
    const port = postern.port('db');
    const connections: Connection[] = [];
    t.after(() => {
      for (const connection of connections) connection.destroy();
    });
    for (let round = 0; round < 10; round += 1) {
      connections.push(...(await Promise.all(Array.from({ length: 50 }, () => connect(port)))));
    }
    const answers = await Promise.all(
      connections.map(async (connection, n) => {
        const [rows] = await connection.query<RowDataPacket[]>('select connection_id() as id, ? as n', [n]);
        return [rows[0]?.['id'] as number, rows[0]?.['n'] as number] as const;
      }),
    );
    assert.deepEqual(
      answers.map(([, n]) => n),
      connections.map((_, n) => n),
    );
    assert.deepEqual(
      answers.map(([id]) => id),
      connections.map(({ threadId }) => threadId),
    );
    assert.equal(new Set(answers.map(([id]) => id)).size, 500);
    await Promise.all(connections.map((connection) => connection.end()));
  });

  test('one session too many is told so by Postern', async (t) => {
    const postern = await single(t, { limits: { maxConnections: 2 } });
    const port = postern.port('db');
    const two = [await connect(port), await connect(port)];
    const { errno, sqlState } = await refusal(port);
    assert.deepEqual([errno, sqlState], [1040, '08004']);
    await Promise.all(two.map((connection) => connection.end()));
  });

  test('one session too many is told so by the server', async (t) => {
    const own = await startMySql({ kind: 'mysql9', settings: { 'max-connections': '2' } });
    t.after(own.stop);
    const postern = await single(t, await serviceFor(bao, own, accountOf(own, 'sha2_user')));
    const port = postern.port('db');
    const two = [await connect(port), await connect(port)];
    const { errno, message } = await refusal(port);
    assert.equal(errno, 1040, message);
    await Promise.all(two.map((connection) => connection.end()));
  });

  test('a server that says nothing ends at the deadline with an error', async (t) => {
    const silent = createServer((socket) => socket.on('error', () => {}));
    await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
    t.after(() => silent.close());
    const { port } = silent.address() as { port: number };
    const postern = await single(t, {
      config: { host: '127.0.0.1', port, tls: { mode: 'disable' } },
      limits: { loginTimeout: '1s' },
    });
    const { errno, sqlState, ms } = await refusal(postern.port('db'));
    assert.deepEqual([errno, sqlState], [1159, '08S01']);
    assert.ok(ms > 900 && ms < 10_000, `${ms} ms`);
  });

  test('a client that says nothing hears why it is left, and one that goes leaves the server in order', async (t) => {
    const own = await startMySql({ kind: 'mysql9' });
    t.after(own.stop);
    const service = await serviceFor(bao, own, accountOf(own, 'sha2_user'));
    const postern = await single(t, { ...service, limits: { loginTimeout: '1s' } });
    const heard = await new Promise<Buffer>((resolve, reject) => {
      const chunks: Buffer[] = [];
      const socket = dial({ host: '127.0.0.1', port: postern.port('db') });
      socket.on('data', (chunk) => chunks.push(chunk));
      socket.on('end', () => resolve(Buffer.concat(chunks)));
      socket.on('error', reject);
      socket.setTimeout(8000, () => reject(new Error('nobody hung up')));
    });
    const error = heard.subarray(4 + heard.readUIntLE(0, 3));
    assert.deepEqual([error[3], error[4], error.readUInt16LE(5)], [1, 0xff, 1159]);

    for (let round = 0; round < 20; round += 1) {
      await new Promise<void>((resolve, reject) => {
        const socket = dial({ host: '127.0.0.1', port: postern.port('db') });
        socket.once('data', () => socket.destroy());
        socket.on('close', () => resolve());
        socket.on('error', reject);
      });
    }
    await sleep(500);
    // The server counts logins that are begun and not ended, and blocks the host after a hundred.
    const status = await mysqlQuery(own, `show global status like 'Aborted_connects'`);
    assert.ok(Number(status[0]?.['Value']) <= 1, JSON.stringify(status));
    assert.equal(await whoAmI(postern.port('db')), 'sha2_user@%');
  });

  test('an unchanged Secretless file runs', async (t) => {
    const secretless = `version: "2"
services:
  mysql-db:
    protocol: mysql
    listenOn: tcp://127.0.0.1:0
    credentials:
      host: localhost
      port: ${info.port}
      username:
        from: env
        get: DB_USER
      password:
        from: env
        get: DB_PASSWORD
      sslmode: require
`;
    for (const text of [secretless, secretless.replace('      sslmode: require\n', '')]) {
      const postern = await Postern.start(text, {
        env: { DB_USER: 'sha2_user', DB_PASSWORD: canary.mysql },
      });
      t.after(() => postern.stop());
      assert.equal(await whoAmI(postern.port('mysql-db')), 'sha2_user@%');
      await postern.stop();
    }
  });

  test('a password that changes between connects fails nobody', async (t) => {
    const { password } = accountOf(info, 'rotate_user');
    const set = (value: string) => mysqlQuery(info, 'ALTER USER rotate_user IDENTIFIED BY ?', [value]);
    const path = await store(bao, 'rotate_user', password);
    t.after(() => set(password));
    const postern = await single(t, { credentials: fromVault(path) });
    for (let round = 0; round < 10; round += 1) {
      const next = `${canary.mysql}-${round}`;
      await set(next);
      await bao.write(path.replace('secret/', 'secret/data/'), {
        data: { username: 'rotate_user', password: next },
      });
      assert.equal(await whoAmI(postern.port('db')), 'rotate_user@%');
      assert.equal(await whoAmI(postern.port('db')), 'rotate_user@%');
    }
  });

  test('a login that meets a rotation halfway takes the new password, and the client sees nothing of it', async (t) => {
    const { password } = accountOf(info, 'rotate_user');
    const set = (value: string) => mysqlQuery(info, 'ALTER USER rotate_user IDENTIFIED BY ?', [value]);
    const path = await store(bao, 'rotate_user', password);
    t.after(() => set(password));
    const postern = await single(t, { credentials: fromVault(path) });
    const port = postern.port('db');
    let done = false;
    let logins = 0;
    const workers = Array.from({ length: 4 }, async () => {
      while (!done) {
        assert.equal(await whoAmI(port), 'rotate_user@%');
        logins += 1;
      }
    });
    for (let round = 0; round < 10; round += 1) {
      const next = `${canary.mysql}-halfway-${round}`;
      // As a rotation does that cares for those who log in meanwhile: the old password lives on beside the new one.
      await mysqlQuery(info, 'ALTER USER rotate_user IDENTIFIED BY ? RETAIN CURRENT PASSWORD', [next]);
      await bao.write(path.replace('secret/', 'secret/data/'), {
        data: { username: 'rotate_user', password: next },
      });
      await sleep(50);
      await mysqlQuery(info, 'ALTER USER rotate_user DISCARD OLD PASSWORD');
    }
    done = true;
    await Promise.all(workers);
    assert.ok(logins >= 10, `${logins} logins`);
  });

  for (const kind of ['mysql9', 'mariadb11'] as const) {
    test(`the reason why ${kind} hangs up reaches a client that is still sending`, async (t) => {
      const own = await startMySql({ kind, settings: { 'max-allowed-packet': '1M' } });
      t.after(own.stop);
      const postern = await single(t, await serviceFor(bao, own, accountOf(own, 'admin')));
      for (let round = 0; round < 10; round += 1) {
        const connection = await connect(postern.port('db'));
        connection.on('error', () => {});
        const error = await connection.query(`select '${'x'.repeat(24 * 1024 * 1024)}'`).then(
          () => undefined,
          (failure: unknown) => failure as Failure,
        );
        connection.destroy();
        assert.equal(error?.errno, 1153, error?.message);
      }
    });
  }

  test('the server is told who came, with a name in front', async (t) => {
    const service = await serviceFor(bao, info, accountOf(info, 'admin'), { programName: 'orders' });
    const postern = await single(t, service);
    const target = { host: '127.0.0.1', port: postern.port('db'), user: 'x', database: 'app' };
    const { stdout } = await mysqlCli('mysql9', target, [
      '-e',
      `select attr_value from performance_schema.session_account_connect_attrs
       where processlist_id = connection_id() and attr_name = 'program_name'`,
    ]);
    assert.match(stdout, /^orders.*mysql$/m);
  });
});
