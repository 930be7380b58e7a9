import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it, type TestContext } from 'node:test';

import {
  authentication,
  cancelRequest,
  message,
  readyForQuery,
  sslRequest,
  startup,
} from '../support/fake-postgres.ts';
import { Postern } from '../support/postern.ts';
import { server } from '../support/servers.ts';
import type { Inside } from './inside.ts';
import { configuration, environment, eventually, loginOf, refused, shared, towards } from './stage.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-resources-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const CLIENTS = 8;

/**
 * A FAKE that lets everybody in and says nothing: to fork a process for each of thousands of connections is what takes
 * the time of this test, and is no work of Postern's. Real servers are in the mix.
 */
const doorman = createServer((socket) => {
  socket.on('error', () => {});
  socket.once('data', () => {
    socket.write(Buffer.concat([authentication(0), readyForQuery]));
    socket.on('data', () => socket.end());
  });
});
after(() => doorman.close());

const scene = shared(async () => {
  doorman.listen(0, '127.0.0.1');
  await once(doorman, 'listening');
  const { port } = doorman.address() as AddressInfo;
  const [postgres18, postgres15, bao] = [
    await server('postgres18'),
    await server('postgres15'),
    await server('openbao'),
  ];
  const trusted = { username: { from: 'env', get: 'E2E_ROLE' } };
  const services = {
    trust: { credentials: trusted, config: towards(postgres15) },
    doorman: { credentials: trusted, config: { host: '127.0.0.1', port, tls: { mode: 'disable' } } },
    scram: { credentials: await loginOf(bao, 'scram_user'), config: towards(postgres18) },
    rejected: { credentials: await loginOf(bao, 'reject_user'), config: towards(postgres15) },
    closed: { credentials: trusted, config: { ...towards(postgres15), port: 1 } },
  };
  return async (name: string) => {
    const report = join(folder, name);
    const postern = await Postern.start(configuration(bao, services), {
      env: { ...environment(bao), E2E_ROLE: 'trust_user', INSIDE_REPORT: report },
      nodeOptions: `--import=${new URL('inside.ts', import.meta.url).href}`,
    });
    return { postern, report };
  };
});

const hello = startup([
  ['user', 'anybody'],
  ['database', 'app'],
]);
const READY = Buffer.from('5a0000000549', 'hex');

/** Connects, says something, and gives what came when `until` is in it, or when the other end closed. */
async function converse(port: number, words: Buffer | undefined, until?: Buffer): Promise<[Socket, Buffer]> {
  const socket = connect({ host: '127.0.0.1', port });
  // Some of what follows breaks the connection; what matters is what it leaves behind in the program.
  socket.on('error', () => {});
  let heard = Buffer.alloc(0);
  await once(socket, 'connect');
  const { promise, resolve } = Promise.withResolvers<void>();
  socket.on('close', () => resolve());
  socket.on('data', (chunk: Buffer) => {
    heard = Buffer.concat([heard, chunk]);
    if (until && heard.includes(until)) resolve();
  });
  if (words) socket.write(words);
  if (until) await promise;
  return [socket, heard];
}

async function closed(socket: Socket): Promise<void> {
  if (!socket.closed) await once(socket, 'close');
}

/** An application that connects, is ready to ask, and leaves. */
async function visit(port: number): Promise<void> {
  const [socket, heard] = await converse(port, hello, READY);
  assert.ok(heard.includes(READY), 'was logged in');
  socket.end(message('X'));
  await closed(socket);
}

/** Every other way in which a connection may go. */
const oddities: Readonly<Record<string, (port: (service: string) => number) => Promise<void>>> = {
  'a port probe': async (port) => {
    const [socket] = await converse(port('trust'), undefined);
    socket.end();
    await closed(socket);
  },
  'leaves after asking for TLS': async (port) => {
    const [socket] = await converse(port('trust'), sslRequest, Buffer.from('N'));
    socket.destroy();
  },
  'leaves in the middle of its first packet': async (port) => {
    const [socket] = await converse(port('trust'), hello.subarray(0, 11));
    socket.resetAndDestroy();
  },
  'is gone while it is logged in': async (port) => {
    const [socket] = await converse(port('trust'), hello);
    socket.resetAndDestroy();
  },
  'resets a session': async (port) => {
    const [socket] = await converse(port('trust'), hello, READY);
    socket.resetAndDestroy();
  },
  'cancels with a key that nobody has': async (port) => {
    const [socket] = await converse(
      port('trust'),
      cancelRequest(4711, Buffer.alloc(4)),
      Buffer.from('never'),
    );
    await closed(socket);
  },
  'speaks another protocol': async (port) => {
    const [socket] = await converse(
      port('trust'),
      Buffer.from('GET / HTTP/1.1\r\n\r\n'),
      Buffer.from('never'),
    );
    await closed(socket);
  },
  'a credential that is rejected': async (port) => {
    assert.equal((await refused(port('rejected'))).code, '28000');
  },
  'a server that is not there': async (port) => {
    assert.equal((await refused(port('closed'))).code, '57P03');
  },
};

/** Does `work` `times` times, by several clients at once. */
async function repeat(times: number, work: (turn: number) => Promise<void>): Promise<void> {
  let turn = 0;
  const client = async () => {
    while (turn < times) await work(turn++);
  };
  await Promise.all(Array.from({ length: CLIENTS }, client));
}

interface Left extends Inside {
  readonly descriptors: number;
}

/** What the program holds once its sessions are over and its garbage is collected. */
async function leftIn(postern: Postern, report: string): Promise<Left> {
  rmSync(report, { force: true });
  postern.signal('SIGUSR2');
  let inside: Inside | undefined;
  await eventually('a report from inside', () => {
    inside = reportIn(report);
    return inside !== undefined;
  });
  assert.ok(inside);
  return { ...inside, descriptors: readdirSync(`/proc/${postern.pid}/fd`).length };
}

function reportIn(path: string): Inside | undefined {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as Inside;
  } catch {
    return undefined;
  }
}

const handles = ({ resources }: Inside) => Object.values(resources).reduce((sum, count) => sum + count, 0);

/**
 * The same once it holds no more descriptors and handles than `before`, or after some patience: connections of the test
 * itself, to the metrics, and of the program to the secret store live on for a few seconds.
 */
async function settled(postern: Postern, report: string, before: Left | undefined): Promise<Left> {
  await eventually('all sessions end', async () => (await postern.metric('postern_sessions_active{')) === 0);
  const end = performance.now() + 10_000;
  for (;;) {
    const left = await leftIn(postern, report);
    const more = before && (left.descriptors > before.descriptors || handles(left) > handles(before));
    if (!more || performance.now() > end) return left;
  }
}

function table(rows: readonly Left[]): string {
  const kilobytes = (bytes: number) => `${Math.round(bytes / 1024)} K`;
  return rows
    .map((row, i) => {
      const { descriptors, heapObjects, external, arrayBuffers, rss } = row;
      return `batch ${i}: ${descriptors} descriptors, ${handles(row)} handles, heap ${kilobytes(heapObjects)}, external ${kilobytes(external)}, buffers ${kilobytes(arrayBuffers)}, resident ${kilobytes(rss)}`;
    })
    .join('\n');
}

/** Growth in bytes from the earlier batches to the later ones, by the least of each: what chance leaves behind is left out. */
function growth(rows: readonly Left[], field: 'heapObjects' | 'external' | 'arrayBuffers' | 'rss'): number {
  const [, ...warm] = rows;
  const half = Math.ceil(warm.length / 2);
  const least = (some: readonly Left[]) => Math.min(...some.map((row) => row[field]));
  return least(warm.slice(half)) - least(warm.slice(0, half));
}

/** Runs batches, prints what was left after each, and holds the last against the first. */
async function watch(
  t: TestContext,
  name: string,
  batches: number,
  batch: (postern: Postern) => Promise<void>,
): Promise<Left[] | undefined> {
  const start = await scene(t);
  if (!start) return undefined;
  const { postern, report } = await start(name);
  await using running = postern;
  const began = performance.now();
  const rows: Left[] = [];
  for (let i = 0; i < batches; i++) {
    await batch(running);
    rows.push(await settled(running, report, rows[0]));
  }
  for (const line of table(rows).split('\n')) t.diagnostic(line);
  t.diagnostic(`${Math.round((performance.now() - began) / 1000)} s`);
  const [first, ...later] = rows;
  assert.ok(first);
  for (const row of later) {
    assert.ok(row.descriptors <= first.descriptors, 'descriptors are closed');
    assert.ok(handles(row) <= handles(first), 'sockets and timers are gone');
  }
  return rows;
}

describe('resources', { skip: process.platform !== 'linux' && 'needs /proc' }, () => {
  it('are flat over 5,000 connections that come and go, and over every odd one beside them', {
    timeout: 600_000,
  }, async (t) => {
    const others = Object.values(oddities);
    const rows = await watch(t, 'cycles', 10, async (postern) => {
      const port = (service: string) => postern.port(service);
      await repeat(400, () => visit(port('doorman')));
      await repeat(100, () => visit(port('trust')));
      await repeat(5 * others.length, async (turn) => await others[turn % others.length]?.(port));
    });
    if (!rows) return;
    // Half of the batches are nearly 3,000 connections: a hundred bytes kept of each would be seen.
    assert.ok(
      growth(rows, 'heapObjects') < 256 * 1024,
      `the heap grew by ${growth(rows, 'heapObjects')} bytes`,
    );
    assert.ok(growth(rows, 'external') < 128 * 1024, `external memory by ${growth(rows, 'external')}`);
    assert.ok(growth(rows, 'arrayBuffers') < 128 * 1024, `buffers by ${growth(rows, 'arrayBuffers')}`);
  });

  it('are flat with TLS, SCRAM and a credential fetched for each login', { timeout: 600_000 }, async (t) => {
    const rows = await watch(t, 'logins', 7, async (postern) => {
      await repeat(100, () => visit(postern.port('scram')));
    });
    if (!rows) return;
    assert.ok(
      growth(rows, 'heapObjects') < 256 * 1024,
      `the heap grew by ${growth(rows, 'heapObjects')} bytes`,
    );
    // What OpenSSL keeps is not JavaScript's: a context for each connection was a hundred kilobytes of it.
    assert.ok(growth(rows, 'rss') < 16 * 2 ** 20, `resident memory grew by ${growth(rows, 'rss')} bytes`);
  });
});
