import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { authentication, message, readyForQuery, startup } from '../support/fake-postgres.ts';
import { Postern } from '../support/postern.ts';
import { answers, freePort } from '../support/servers/process.ts';
import { Peer } from '../support/session.ts';
import type { Inside } from './inside.ts';
import { eventually } from './stage.ts';

/** `POSTERN_TEST_RELOADS=1000` for the figure that is promised. */
const RELOADS = Number(process.env['POSTERN_TEST_RELOADS'] ?? 40);
/** New connections in a second, as far as the machine can. */
const RATE = 200;
/** Beyond this many at once the machine is too slow for the rate. */
const MOST_AT_ONCE = 50;
/** What a reload may leave behind, in bytes: what is not collected yet, and no service or listener. */
const LEFT_BY_A_RELOAD = 4096;

const DONE = 'configuration reloaded';
const FAILED = 'configuration not reloaded, the old one stays in force';

const folder = mkdtempSync(join(tmpdir(), 'postern-reload-storm-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const hello = startup([
  ['user', 'anybody'],
  ['database', 'app'],
]);
const READY = Buffer.from('5a0000000549', 'hex');
const TERMINATE = message('X');

/** A FAKE that lets everybody in and then says what it hears: real servers would be what takes the time. */
let server: Server;
before(async () => {
  server = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => {
      socket.write(Buffer.concat([authentication(0), readyForQuery]));
      socket.on('data', (bytes: Buffer) => {
        if (bytes.equals(TERMINATE)) socket.end();
        else socket.write(bytes);
      });
    });
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
});
after(() => server.close());

type Entry = Readonly<Record<string, unknown>>;

/** The text of a configuration: each service by what it has beyond the usual. */
function configuration(services: Readonly<Record<string, Entry>>): string {
  const { port } = server.address() as AddressInfo;
  const usual = {
    connector: 'postgres',
    listenOn: 'tcp://127.0.0.1:0',
    credentials: { username: { from: 'env', get: 'E2E_ROLE' } },
    config: { host: '127.0.0.1', port, tls: { mode: 'disable' } },
  };
  const entries = Object.entries(services).map(([name, more]) => [name, { ...usual, ...more }]);
  return JSON.stringify({ version: 2, services: Object.fromEntries(entries) });
}

async function start(services: Readonly<Record<string, Entry>>, report?: string): Promise<Postern> {
  return await Postern.start(configuration(services), {
    env: { E2E_ROLE: 'somebody', ...(report !== undefined && { INSIDE_REPORT: report }) },
    // At `trace` the log of a thousand reloads is what takes the time.
    args: ['--log-level', 'info'],
    ...(report !== undefined && { nodeOptions: `--import=${new URL('inside.ts', import.meta.url).href}` }),
  });
}

function reloads({ lines }: Postern): number {
  return lines.filter(({ msg }) => msg === DONE || msg === FAILED).length;
}

/** Puts it in force, or tries to; gives the error of the log. */
async function reload(
  postern: Postern,
  services: Readonly<Record<string, Entry>>,
): Promise<string | undefined> {
  const seen = reloads(postern);
  await postern.writeConfig(configuration(services));
  postern.signal('SIGHUP');
  await eventually('the reload', () => reloads(postern) > seen);
  const line = postern.lines.findLast(({ msg }) => msg === DONE || msg === FAILED);
  return line?.msg === DONE ? undefined : String(line?.['error']);
}

/** A session that is logged in. Throws when it is not served. */
async function logIn(port: number): Promise<Peer> {
  const peer = await Peer.connect(port);
  try {
    peer.send(hello);
    let heard = Buffer.alloc(0);
    while (!heard.includes(READY)) heard = Buffer.concat([heard, await peer.read(1)]);
    return peer;
  } catch (error) {
    peer.destroy();
    throw error;
  }
}

async function echo(peer: Peer, text: string): Promise<void> {
  peer.send(Buffer.from(text));
  assert.equal((await peer.read(text.length)).toString(), text);
}

async function visit(port: number): Promise<void> {
  const peer = await logIn(port);
  peer.send(TERMINATE);
  peer.end();
  await peer.rest();
  peer.destroy();
}

/** Clients that come at a rate until they are told to stop. */
class Crowd {
  served = 0;
  readonly failures: string[] = [];
  readonly #done: Promise<void>;
  readonly #began = performance.now();
  #stopped = false;

  constructor(port: number) {
    this.#done = this.#come(port);
  }

  /** Connections in a second, until now. */
  get rate(): number {
    return (this.served * 1000) / (performance.now() - this.#began);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#done;
  }

  async #come(port: number): Promise<void> {
    const under = new Set<Promise<void>>();
    for (let due = performance.now(); !this.#stopped; due += 1000 / RATE) {
      await sleep(Math.max(0, due - performance.now()));
      if (under.size >= MOST_AT_ONCE) {
        await Promise.race(under);
        due = performance.now();
      }
      const visiting = visit(port).then(
        () => void (this.served += 1),
        (error: unknown) => void this.failures.push(String(error)),
      );
      under.add(visiting);
      void visiting.then(() => under.delete(visiting));
    }
    await Promise.all(under);
  }
}

async function inside(postern: Postern, report: string): Promise<Inside & { readonly descriptors: number }> {
  await eventually(
    'no session to be left',
    async () => (await postern.metric('postern_sessions_active', { service: 'db' })) <= 2,
  );
  rmSync(report, { force: true });
  postern.signal('SIGUSR2');
  await eventually('the report', () => existsSync(report));
  const found = JSON.parse(readFileSync(report, 'utf8')) as Inside;
  return { ...found, descriptors: readdirSync(`/proc/${postern.pid}/fd`).length };
}

describe('reloads one after the other', {
  timeout: 600_000,
  skip: process.platform !== 'linux' && 'needs /proc',
}, () => {
  it('fail nobody who connects, leave sessions alone, and leave nothing behind', async (t) => {
    const report = join(folder, 'report');
    await using postern = await start({ db: {}, same: {} }, report);
    const port = postern.port('db');
    const turn = async (i: number) => {
      const error = await reload(postern, { db: { limits: { maxConnections: 1000 + (i % 2) } }, same: {} });
      assert.equal(error, undefined);
    };
    const living = [await logIn(port), await logIn(postern.port('same'))];
    for (let i = 0; i < 20; i++) await turn(i);
    await visit(port);
    const first = await inside(postern, report);

    const crowd = new Crowd(port);
    for (let i = 0; i < RELOADS; i++) {
      await turn(i);
      // Each of them has clients that come meanwhile.
      const enough = crowd.served + 1;
      await eventually('a client', () => crowd.served >= enough || crowd.failures.length > 0);
    }
    const { rate } = crowd;
    await crowd.stop();
    assert.deepEqual(crowd.failures, []);
    for (const peer of living) {
      await echo(peer, 'still here');
      peer.destroy();
    }
    const last = await inside(postern, report);
    const grown = last.heapObjects + last.external - first.heapObjects - first.external;
    t.diagnostic(
      `${RELOADS} reloads, ${crowd.served} connections (${Math.round(rate)} a second), 0 failures; ` +
        `descriptors ${first.descriptors} and ${last.descriptors}, ${Math.round(grown / 1024)} KiB more in use`,
    );
    assert.ok(
      last.descriptors <= first.descriptors,
      `${first.descriptors} descriptors, then ${last.descriptors}`,
    );
    assert.ok(grown < 512 * 1024 + RELOADS * LEFT_BY_A_RELOAD, `${grown} bytes more in use`);
  });
});

describe('SIGHUP', { timeout: 300_000 }, () => {
  it('a thousand times is few reloads: those that would read the same are one', async (t) => {
    await using postern = await start({ db: {} });
    const session = await logIn(postern.port('db'));
    await postern.writeConfig(configuration({ db: {}, late: {} }));
    for (let i = 0; i < 1000; i++) postern.signal('SIGHUP');
    await eventually('the last state of the file', () =>
      postern.lines.some(({ service }) => service === 'late'),
    );
    // One is under way when the last signal comes, and one waits behind it.
    let count = 0;
    await eventually('the reloads to be over', async () => {
      const before = (count = reloads(postern));
      await sleep(500);
      return reloads(postern) === before;
    });
    t.diagnostic(`1000 signals, ${count} reloads`);
    assert.ok(count < 100, `${count} reloads`);
    await visit(postern.port('late'));
    await echo(session, 'still here');
    session.destroy();
  });

  it('moves a service between names of one address without a moment in which it is not there', async () => {
    const port = await freePort();
    const on = (host: string) => ({ db: { listenOn: `tcp://${host}:${port}` } });
    await using postern = await start(on('127.0.0.1'));
    const session = await logIn(port);
    const crowd = new Crowd(port);
    for (let i = 0; i < 6; i++) {
      assert.equal(await reload(postern, on(i % 2 === 0 ? 'localhost' : '127.0.0.1')), undefined);
      const enough = crowd.served + 2;
      await eventually('clients', () => crowd.served >= enough || crowd.failures.length > 0);
    }
    await crowd.stop();
    assert.deepEqual(crowd.failures, []);
    await echo(session, 'still here');
    session.destroy();
  });

  it('moves a service between one address and all of them', async () => {
    const port = await freePort();
    const on = (host: string, more: Entry = {}) => ({ db: { listenOn: `tcp://${host}:${port}`, ...more } });
    await using postern = await start(on('127.0.0.1'));
    const session = await logIn(port);
    const reaches = async (host: string) => {
      const socket: Socket = connect({ host, port });
      const reached = await Promise.race([
        once(socket, 'connect').then(() => true),
        once(socket, 'error').then(() => false),
      ]).catch(() => false);
      socket.destroy();
      return reached;
    };
    assert.equal(await reload(postern, on('0.0.0.0', { exposed: true })), undefined);
    assert.ok(await reaches('127.0.0.2'));
    await visit(port);
    assert.equal(await reload(postern, on('127.0.0.1')), undefined);
    assert.ok(!(await reaches('127.0.0.2')));
    await visit(port);
    await echo(session, 'still here');
    session.destroy();
  });

  it('that fails when listeners have made room already opens them again', async () => {
    const [good, bad] = [await freePort(), await freePort()];
    const taken = createServer();
    await once(taken.listen(bad, '127.0.0.2'), 'listening');
    const on = (host: string, more: Entry = {}) => ({
      one: { listenOn: `tcp://${host}:${good}`, ...more },
      two: { listenOn: `tcp://${host}:${bad}`, ...more },
    });
    await using postern = await start(on('127.0.0.1'));
    const session = await logIn(bad);
    try {
      for (let i = 0; i < 3; i++) {
        const error = await reload(postern, { ...on('0.0.0.0', { exposed: true }), third: {} });
        assert.match(String(error), new RegExp(`cannot listen on tcp://0\\.0\\.0\\.0:${bad}`));
        await visit(good);
        await visit(bad);
        assert.ok(!(await answers(postern.port('third'))), 'what was opened for it is closed again');
      }
    } finally {
      taken.close();
    }
    assert.equal(await reload(postern, on('0.0.0.0', { exposed: true })), undefined);
    await visit(bad);
    await echo(session, 'still here');
    session.destroy();
  });

  it('with a certificate that cannot be used leaves everything as it was', async () => {
    await using postern = await start({ db: {} });
    const port = postern.port('db');
    const listenTls = { cert: join(folder, 'none.crt'), key: join(folder, 'none.key') };
    const error = await reload(postern, {
      first: {},
      db: { limits: { maxConnections: 7 } },
      second: { listenTls },
    });
    assert.match(String(error), /none\.crt/);
    assert.ok(!postern.lines.some(({ msg, service }) => msg === 'listening' && service !== 'db'));
    await visit(port);
  });
});
