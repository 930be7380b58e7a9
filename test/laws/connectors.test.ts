import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { describe, it } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

import { connectors } from '../../src/connectors/index.ts';
import { Access, type AccessRules } from '../../src/core/access.ts';
import { canary } from '../support/servers.ts';
import { type Pace, type Peer, paces, Served, type ServedOptions, until } from '../support/session.ts';
import { http } from './connectors/http.ts';
import { mysql } from './connectors/mysql.ts';
import { postgres } from './connectors/postgres.ts';
import { secretlessHttp } from './connectors/secretless-http.ts';

/** A server that a driver has started. Ending it fails when Postern has left a connection to it open. */
export interface Upstream extends AsyncDisposable {
  readonly port: number;
  readonly connections: number;
}

/** All that the laws have to know of one protocol. */
export interface Driver {
  readonly credentials: (password: string) => Readonly<Record<string, string>>;
  readonly settings: (upstream: Upstream) => Readonly<Record<string, unknown>>;
  readonly upstreams: {
    /** Lets in whoever knows the password, and says everything back from then on; ends when the client does. */
    readonly accepting: (password: string, pace: Pace) => Promise<Upstream>;
    /** Rejects the credential. */
    readonly rejecting: (password: string, pace: Pace) => Promise<Upstream>;
    /** Gets hold of the password and puts it into everything it says. */
    readonly echoingSecrets: (password: string, pace: Pace) => Promise<Upstream>;
    /** Accepts connections and says nothing. */
    readonly silent: (password: string, pace: Pace) => Promise<Upstream>;
    /** Says what a server says before a client has said anything, and nothing more. */
    readonly listening: (password: string, pace: Pace) => Promise<Upstream>;
    /** Says these bytes at once, whatever it hears. */
    readonly saying: (bytes: Buffer, pace: Pace) => Promise<Upstream>;
  };
  /** What a client says first. It may say it without waiting for the server's first words. */
  readonly hello: Buffer;
  /** What a server says first. */
  readonly firstFromUpstream: Buffer;
  /** Reads what a client hears when it has been logged in; what is different in every session is blanked out. */
  readonly assertServed: (client: Peer) => Promise<Buffer>;
  /** Checks that these are the words with which the protocol refuses a client that has said its hello, or less than that. */
  readonly assertRefusal: (bytes: Buffer, said?: 'hello' | 'less') => void;
  /** Beginnings of messages that announce the most that can be announced. */
  readonly longestFromClient: readonly Buffer[];
  readonly longestFromUpstream: readonly Buffer[];
}

/** Which driver speaks for which connector: a connector without one fails here. */
const drivers: Readonly<Record<string, Driver>> = {
  postgres,
  pg: postgres,
  mysql,
  http,
  ...secretlessHttp,
};

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

for (const name of Object.keys(connectors)) {
  const driver = drivers[name];
  if (!driver) throw new Error(`the connector ${name} has no driver, and the laws are for all`);

  describe(`the connector ${name}`, () => {
    for (const pace of paces) {
      const start = async (
        kind: keyof Omit<Driver['upstreams'], 'saying'>,
        options: Partial<ServedOptions> = {},
      ) => {
        const upstream = await driver.upstreams[kind](canary.postgres, pace);
        return await inFrontOf(name, driver, upstream, { pace, ...options });
      };

      describe(pace, () => {
        it('serves a client', async () => {
          await using both = await start('accepting');
          const client = await both.served.connect();
          client.send(driver.hello);
          await driver.assertServed(client);
          client.send(Buffer.from('anything'));
          assert.equal((await client.read(8)).toString(), 'anything');
          client.end();
          assert.equal((await both.served.ended()).outcome, 'ok');
        });

        it('answers a failed login in its own protocol', async () => {
          await using both = await start('rejecting');
          const client = await both.served.connect();
          client.send(driver.hello);
          driver.assertRefusal(await client.rest());
          client.end();
          assert.equal((await both.served.ended()).outcome, 'UPSTREAM_REJECTED');
        });

        it('answers in its own protocol when there is no place, no credential or no server', async () => {
          const nobody: Upstream = { port: 1, connections: 0, [Symbol.asyncDispose]: async () => {} };
          for (const options of [{ maxConnections: 0 }, {}]) {
            await using both = await inFrontOf(name, driver, nobody, { pace, ...options });
            const client = await both.served.connect();
            client.send(driver.hello);
            driver.assertRefusal(await client.rest());
            client.end();
            const { outcome } = await both.served.ended();
            assert.equal(outcome, options.maxConnections === 0 ? 'LIMIT_REACHED' : 'UPSTREAM_UNREACHABLE');
          }
          let asked = 0;
          const credentials = () => {
            asked += 1;
            if (asked > 1) throw new Error(`the provider says ${canary.postgres}`);
            return driver.credentials(canary.postgres);
          };
          await using both = await inFrontOf(name, driver, nobody, { pace, credentials });
          const client = await both.served.connect();
          client.send(driver.hello);
          const told = await client.rest();
          driver.assertRefusal(told);
          assert.ok(!told.includes(canary.postgres));
          client.end();
          assert.equal((await both.served.ended()).outcome, 'PROVIDER_FAILED');
        });

        it('tells a client that access refuses so in its own protocol, and touches nothing upstream', async () => {
          const rules = { uids: new Set([1]), gids: undefined, executables: undefined };
          for (const [more, code] of [
            [{}, 'ACCESS_DENIED'],
            [{ uids: undefined, maxConnectionsPerPeer: 0 }, 'LIMIT_REACHED'],
            [{ uids: undefined, loginRate: { perSecond: 1e-9, burst: 0 } }, 'RATE_LIMITED'],
          ] as const) {
            const limits = {
              maxConnectionsPerPeer: undefined,
              loginRate: undefined,
              loginRatePerPeer: undefined,
            };
            const all: AccessRules = { ...rules, ...limits, ...more };
            const access = new Access('test', all, undefined, async () => ({
              uid: 2,
              gids: undefined,
              pid: undefined,
              executables: undefined,
            }));
            const upstream = await driver.upstreams.accepting(canary.postgres, pace);
            await using both = await inFrontOf(name, driver, upstream, { pace, access });
            const client = await both.served.connect();
            client.send(driver.hello);
            driver.assertRefusal(await client.rest());
            client.end();
            assert.equal((await both.served.ended()).outcome, code);
            assert.equal(both.served.fetches, 0);
            assert.equal(upstream.connections, 0);
          }
        });

        it('shows no byte of a secret to the client or in the log, not even when the server does', async () => {
          for (const kind of ['accepting', 'rejecting', 'echoingSecrets'] as const) {
            await using both = await start(kind);
            const client = await both.served.connect();
            client.send(driver.hello);
            if (kind === 'accepting') {
              const heard = await driver.assertServed(client);
              client.end();
              assert.ok(!Buffer.concat([heard, await client.rest()]).includes(canary.postgres));
            } else assert.ok(!(await client.rest()).includes(canary.postgres));
            client.end();
            await both.served.ended();
            assert.ok(both.served.lent.length > 0);
            assert.ok(both.served.lent.every((bytes) => bytes.every((byte) => byte === 0)));
            assert.ok(!both.served.log.includes(canary.postgres));
          }
        });

        it('does not wait for a silent client longer than its time', async () => {
          await using both = await start('accepting', { loginTimeout: 150 });
          const half = driver.hello.subarray(0, driver.hello.length - 1);
          for (const said of [Buffer.alloc(0), driver.hello.subarray(0, 2), half]) {
            const client = await both.served.connect();
            client.send(said);
            driver.assertRefusal(await client.rest(), 'less');
            client.end();
          }
          await both.served.ended(3);
          assert.deepEqual(
            both.served.reports.map(({ outcome }) => outcome),
            ['TIMEOUT', 'TIMEOUT', 'TIMEOUT'],
          );
        });

        it('does not wait for a silent server longer than its time', async () => {
          for (const kind of ['silent', 'listening'] as const) {
            await using both = await start(kind, { loginTimeout: 150 });
            const client = await both.served.connect();
            client.send(driver.hello);
            driver.assertRefusal(await client.rest());
            client.end();
            const { outcome, seconds } = await both.served.ended();
            assert.equal(outcome, 'TIMEOUT');
            assert.ok(seconds < 3);
          }
        });

        it('passes a half-close on and what comes after it', async () => {
          await using both = await start('accepting');
          const client = await both.served.connect();
          client.send(driver.hello);
          await driver.assertServed(client);
          client.send(Buffer.from('last words'));
          client.end();
          assert.equal((await client.rest()).toString(), 'last words');
          assert.equal((await both.served.ended()).outcome, 'ok');
        });

        it('leaves nothing behind', async () => {
          const left = () =>
            process
              .getActiveResourcesInfo()
              .filter((kind) => /TCPSocketWrap|PipeWrap|Timeout|TLSWrap/.test(kind)).length;
          for (const kind of ['accepting', 'rejecting', 'echoingSecrets'] as const) {
            const before = left();
            {
              await using both = await start(kind);
              for (let i = 0; i < 5; i += 1) {
                const client = await both.served.connect();
                client.send(driver.hello);
                if (kind === 'accepting') await driver.assertServed(client);
                else await client.rest();
                client.end();
              }
              await both.served.ended(5);
              await until(
                'the sockets of clients to close',
                async () => (await both.served.openSockets()) === 0,
              );
              assert.equal(both.served.admission.active, 0);
            }
            await until('everything to be gone', () => left() <= before);
          }
        });
      });
    }

    it('hears the same whole and byte by byte', async () => {
      const heard: Buffer[] = [];
      for (const pace of paces) {
        const upstream = await driver.upstreams.accepting(canary.postgres, pace);
        await using both = await inFrontOf(name, driver, upstream, { pace });
        const client = await both.served.connect();
        client.send(driver.hello);
        heard.push(await driver.assertServed(client));
        client.end();
        await both.served.ended();
      }
      assert.deepEqual(heard[0], heard[1]);
    });

    it('keeps no more of a hostile peer than a little, however much it announces', async () => {
      const chunk = Buffer.alloc(64 * 1024, 0x41);
      const pressed = async (send: (peer: Peer) => Promise<void>, upstream: Upstream) => {
        await using both = await inFrontOf(name, driver, upstream, { loginTimeout: 400 });
        const before = memory();
        let most = before;
        const watch = setInterval(() => (most = Math.max(most, memory())), 30);
        const clients = await Promise.all(Array.from({ length: 10 }, () => both.served.connect()));
        await Promise.all(clients.map(send));
        clearInterval(watch);
        const grown = Math.max(most, memory()) - before;
        assert.ok(grown < 10 * 1024 * 1024, `grew by ${grown} bytes for ${clients.length} peers`);
        await both.served.ended(clients.length);
      };
      for (const head of driver.longestFromClient)
        await pressed(
          async (client) => {
            client.send(head);
            for (let i = 0; i < 64 && !client.ended; i += 1) {
              client.socket.write(chunk);
              await new Promise((resolve) => setImmediate(resolve));
            }
            await until('the client to be ended', () => client.ended);
            client.destroy();
          },
          await driver.upstreams.listening(canary.postgres, 'as they come'),
        );
      for (const head of driver.longestFromUpstream)
        await pressed(
          async (client) => {
            client.send(driver.hello);
            driver.assertRefusal(await client.rest());
            client.end();
          },
          await driver.upstreams.saying(
            Buffer.concat([head, Buffer.alloc(4 * 1024 * 1024, 0x41)]),
            'as they come',
          ),
        );
    });

    it('answers noise from a client, or ends it, and lives', async () => {
      await using both = await inFrontOf(
        name,
        driver,
        await driver.upstreams.listening(canary.postgres, 'as they come'),
        { loginTimeout: 200 },
      );
      const noises = Array.from({ length: 60 }, (_, i) => {
        const noise = randomBytes(1 + ((i * 37) % 300));
        if (i % 3 === 0) driver.hello.copy(noise, 0, 0, Math.min(noise.length, i));
        return noise;
      });
      await Promise.all(
        noises.map(async (noise) => {
          const client = await both.served.connect();
          client.send(noise);
          await client.rest();
          client.end();
        }),
      );
      await both.served.ended(noises.length);
      assert.ok(
        both.served.reports.every(({ outcome }) => outcome !== 'INTERNAL'),
        both.served.log,
      );
    });

    it('refuses its client in its own protocol when the server talks noise', async () => {
      for (let i = 0; i < 40; i += 1) {
        const noise = randomBytes(1 + ((i * 37) % 300));
        if (i % 3 === 0) driver.firstFromUpstream.copy(noise, 0, 0, Math.min(noise.length, 2 * i));
        const upstream = await driver.upstreams.saying(noise, 'as they come');
        await using both = await inFrontOf(name, driver, upstream, { loginTimeout: 150 });
        const client = await both.served.connect();
        client.send(driver.hello);
        const told = await client.rest();
        driver.assertRefusal(told);
        client.end();
        assert.notEqual((await both.served.ended()).outcome, 'INTERNAL', noise.toString('hex'));
      }
    });
  });
}

/** Bytes that are alive. */
function memory(): number {
  collectGarbage();
  const { heapUsed, external, arrayBuffers } = process.memoryUsage();
  return heapUsed + external + arrayBuffers;
}

/** A service of the connector in front of a server. */
async function inFrontOf(
  connector: string,
  driver: Driver,
  upstream: Upstream,
  options: Partial<ServedOptions>,
): Promise<AsyncDisposable & { readonly served: Served }> {
  const served = await Served.open({
    connector,
    credentials: driver.credentials(canary.postgres),
    settings: driver.settings(upstream),
    ...options,
  });
  return {
    served,
    [Symbol.asyncDispose]: async () => {
      await served[Symbol.asyncDispose]();
      await upstream[Symbol.asyncDispose]();
    },
  };
}
