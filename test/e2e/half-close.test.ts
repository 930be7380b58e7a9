import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, type NetConnectOpts, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it, type TestContext } from 'node:test';

import { message, messagesOf, startup } from '../support/fake-postgres.ts';
import type { Postern } from '../support/postern.ts';
import { type PostgresInfo, server, sql } from '../support/servers.ts';
import { eventually, perform, type ServiceOptions, shared, towards } from './stage.ts';

/** The ways from a client to a server, each with its own kind of socket on either side. */
const ways = ['plain', 'tls', 'unix'] as const;
type Way = (typeof ways)[number];

interface Scene {
  readonly postern: Postern;
  readonly servers: Readonly<Record<Way, PostgresInfo>>;
  readonly addresses: Readonly<Record<Way, NetConnectOpts | undefined>>;
}

const cleanups: (() => Promise<unknown>)[] = [];
after(async () => {
  for (const cleanup of cleanups.toReversed()) await cleanup();
});

const scene = shared(async (): Promise<Scene> => {
  const [postgres18, postgres15, bao] = [
    await server('postgres18'),
    await server('postgres15'),
    await server('openbao'),
  ];
  const folder = await mkdtemp(join(tmpdir(), 'postern-half-close-'));
  cleanups.push(() => rm(folder, { recursive: true, force: true }));
  const credentials = { username: { from: 'env', get: 'E2E_ROLE' } };
  const services: Record<string, ServiceOptions> = {
    plain: { credentials, config: towards(postgres15) },
    tls: { credentials, config: towards(postgres18) },
  };
  const socket = join(folder, '.s.PGSQL.5432');
  if (postgres18.socketDir !== undefined)
    services['unix'] = {
      listenOn: `unix://${socket}`,
      credentials,
      config: { host: postgres18.socketDir, port: postgres18.port },
    };
  const postern = await perform(bao, services, { env: { E2E_ROLE: 'trust_user' } });
  cleanups.push(() => postern[Symbol.asyncDispose]());
  const tcp = (service: string) => ({ host: '127.0.0.1', port: postern.port(service) });
  return {
    postern,
    servers: { plain: postgres15, tls: postgres18, unix: postgres18 },
    addresses: {
      plain: tcp('plain'),
      tls: tcp('tls'),
      unix: services['unix'] && { path: socket },
    },
  };
});

/** A client that speaks the protocol itself, because no driver closes half of its connection. */
class RawClient implements Disposable {
  readonly socket: Socket;
  /** Tells its backend from all others in pg_stat_activity. */
  readonly name: string;
  readonly #chunks: Buffer[] = [];
  #ended = false;
  #error: Error | undefined;
  static #count = 0;

  constructor(address: NetConnectOpts) {
    RawClient.#count += 1;
    this.name = `half-close-${process.pid}-${RawClient.#count}`;
    this.socket = connect({ ...address, allowHalfOpen: true });
    this.socket.on('data', (chunk) => this.#chunks.push(chunk));
    this.socket.on('end', () => (this.#ended = true));
    this.socket.on('error', (error) => (this.#error = error));
  }

  /** Bytes that have come. */
  get received(): number {
    return this.#chunks.reduce((sum, { length }) => sum + length, 0);
  }

  get hello(): Buffer {
    return startup([
      ['user', 'anybody'],
      ['database', 'app'],
      ['application_name', this.name],
    ]);
  }

  async logIn(): Promise<void> {
    this.socket.write(this.hello);
    await eventually('ReadyForQuery', () => this.types().endsWith('Z'));
  }

  /** Type letters of what has come, whole messages only. */
  types(): string {
    return this.messages()
      .map(({ type }) => type)
      .join('');
  }

  messages(): ReturnType<typeof messagesOf> {
    const bytes = Buffer.concat(this.#chunks);
    let end = 0;
    while (end + 5 <= bytes.length && end + 1 + bytes.readInt32BE(end + 1) <= bytes.length)
      end += 1 + bytes.readInt32BE(end + 1);
    return messagesOf(bytes.subarray(0, end));
  }

  /** Waits for the other end to say that it is done, in order. */
  async end(): Promise<void> {
    await eventually('the end of the connection', () => this.#ended || this.#error !== undefined, 20_000);
    assert.ifError(this.#error);
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

const query = (text: string) => message('Q', Buffer.from(`${text}\0`));

/** Backends of a client by its application_name, seen by the server. */
async function backends(info: PostgresInfo, name: string, state = '%'): Promise<number> {
  const [row] = await sql(
    info,
    `select count(*)::int as n from pg_stat_activity where application_name = '${name}' and state like '${state}'`,
  );
  return Number(row?.['n']);
}

/** Runs a test over one way; skipped where the way cannot be had. */
function over(
  way: Way,
  test: (client: RawClient, info: PostgresInfo, postern: Postern) => Promise<void>,
): (t: TestContext) => Promise<void> {
  return async (t) => {
    const found = await scene(t);
    if (!found) return;
    const address = found.addresses[way];
    if (!address) return t.skip('the server shows no unix socket');
    using client = new RawClient(address);
    await test(client, found.servers[way], found.postern);
  };
}

const gone = (info: PostgresInfo, { name }: RawClient) =>
  eventually('the backend ends', async () => (await backends(info, name)) === 0);

const logged = (postern: Postern, { name }: RawClient) =>
  postern.logged((line) => line['application'] === name && line.msg.startsWith('session'));

for (const way of ways) {
  describe(`a half-closed connection (${way})`, () => {
    it(
      'still brings the whole result of the last query',
      over(way, async (client, info, postern) => {
        await client.logIn();
        const before = client.messages().length;
        client.socket.end(query(`select n, repeat('x', 1000) from generate_series(1, 20000) n`));
        await client.end();
        const answer = client.messages().slice(before);
        assert.equal(answer.filter(({ type }) => type === 'D').length, 20_000);
        assert.equal(answer.at(-2)?.body.toString(), 'SELECT 20000\0');
        assert.equal(answer.at(-1)?.type, 'Z');
        await gone(info, client);
        assert.equal((await logged(postern, client))['outcome'], 'ok');
      }),
    );

    it(
      'brings it to a client that is slow to read',
      over(way, async (client) => {
        await client.logIn();
        const before = client.messages().length;
        client.socket.pause();
        client.socket.end(query(`select n, repeat('x', 1000) from generate_series(1, 20000) n`));
        for (let turn = 0; turn < 10; turn++) {
          await new Promise((resolve) => setTimeout(resolve, 50));
          client.socket.resume();
          await new Promise(setImmediate);
          client.socket.pause();
        }
        client.socket.resume();
        await client.end();
        assert.equal(client.messages().slice(before).at(-2)?.body.toString(), 'SELECT 20000\0');
      }),
    );

    it(
      'waits for a query that takes its time',
      over(way, async (client) => {
        await client.logIn();
        client.socket.end(query('select pg_sleep(1)'));
        await client.end();
        assert.match(client.types(), /TDCZ$/);
      }),
    );

    it(
      'serves a client that has said all it wants with its first packet',
      over(way, async (client, info, postern) => {
        client.socket.end(Buffer.concat([client.hello, query('select 41 + 1')]));
        await client.end();
        assert.match(client.types(), /ZTDCZ$/);
        await gone(info, client);
        assert.equal((await logged(postern, client))['outcome'], 'ok');
      }),
    );

    it(
      'ends the session of a client that is done before it is logged in, and wants nothing',
      over(way, async (client, info, postern) => {
        client.socket.end(client.hello);
        await client.end();
        await gone(info, client);
        await logged(postern, client);
      }),
    );
  });

  describe(`a connection that the client resets (${way})`, () => {
    const reset = ({ socket }: RawClient) => (way === 'unix' ? socket.destroy() : socket.resetAndDestroy());

    it(
      'ends the backend that waits for a query',
      over(way, async (client, info, postern) => {
        await client.logIn();
        assert.equal(await backends(info, client.name), 1);
        reset(client);
        await gone(info, client);
        await logged(postern, client);
      }),
    );

    it(
      'ends the backend in the middle of an endless result',
      over(way, async (client, info, postern) => {
        await client.logIn();
        client.socket.write(query(`select generate_series(1, 2000000000), repeat('x', 1000)`));
        await eventually('rows', () => client.received > 1_000_000);
        reset(client);
        await gone(info, client);
        await logged(postern, client);
      }),
    );

    it(
      'ends a backend that is asked to look out for it, while it computes in silence',
      over(way, async (client, info) => {
        await client.logIn();
        client.socket.write(query(`set client_connection_check_interval = '100ms'`));
        await eventually('the setting', () => client.types().endsWith('CZ'));
        client.socket.write(query('select pg_sleep(120)'));
        await eventually('the query runs', async () => (await backends(info, client.name, 'active')) === 1);
        reset(client);
        await gone(info, client);
      }),
    );
  });
}
