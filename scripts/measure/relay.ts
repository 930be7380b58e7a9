// What docs/decisions/0011 is based on. Run: node scripts/measure/relay.ts questions [tls]   or   node scripts/measure/relay.ts idle [sessions]
// (Linux; each way in a process of its own, in turn, and medians of CPU or memory: the machine need not be quiet, the ways share its noise.)
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { createServer as createTlsServer, connect as tlsConnect } from 'node:tls';

import { Relays } from '../../src/core/relay.ts';
import { proveDirect } from '../../src/core/relay-trial.ts';
import { TypeScriptRelay } from '../../src/core/relay-typescript.ts';
import { certificates } from '../../test/support/servers.ts';

const ways = ['streams', 'direct', 'native', 'native, two threads each'] as const;
type Way = (typeof ways)[number];

const CLIENTS = 8;
const ROUNDS = 5;
/** About as much as a prepared statement and its row. */
const QUESTION = Buffer.alloc(60, 'q');

const [, script = '', task, argument = '', port = ''] = process.argv;
if (task === 'relay') await relay(argument as Way, Number(port), process.argv[5] === 'tls');
else if (task === 'idle') await measureIdle(Number(argument || 2000));
else await measureQuestions(argument === 'tls');

/** The child: says its port, and then its CPU time in seconds and its memory in KiB each time it is asked. */
async function relay(way: Way, upstream: number, tls: boolean): Promise<void> {
  const native = way.startsWith('native')
    ? Relays.start({ engine: 'native', dedicatedSessions: way === 'native' ? 0 : 1024 })
    : undefined;
  if (way === 'direct' && !(await proveDirect())) throw new Error('this version of Node has no direct way');
  const server = createServer({ allowHalfOpen: true, noDelay: true, pauseOnConnect: true }, (client) => {
    client.on('error', () => {});
    const plain = connect({ port: upstream, host: '127.0.0.1', noDelay: true, allowHalfOpen: true });
    const socket: Socket = tls ? tlsConnect({ socket: plain, rejectUnauthorized: false }) : plain;
    socket.on('error', () => {});
    socket.once(tls ? 'secureConnect' : 'connect', () => {
      if (native) native.relay(client, socket, { idleTimeout: 0 });
      else void new TypeScriptRelay(client, socket, { idleTimeout: 0 });
    });
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  process.on('message', () => {
    const { user, system } = process.cpuUsage();
    const [, resident] = /VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
    process.send?.([(user + system) / 1e6, Number(resident)]);
  });
  process.on('disconnect', () => process.exit());
  process.send?.((server.address() as AddressInfo).port);
}

async function measureQuestions(tls: boolean): Promise<void> {
  const upstream = await echoServer(tls);
  const tried = tls ? (['streams', 'direct'] as const) : ways;
  const children = await Promise.all(tried.map((way) => start(way, upstream, tls)));
  const results = tried.map((): { cpu: number; rate: number }[] => []);
  for (let round = 0; round <= ROUNDS; round += 1)
    for (const [index, child] of children.entries()) {
      const [before] = await ask(child.process);
      const started = performance.now();
      const count = 16_000;
      await Promise.all(Array.from({ length: CLIENTS }, () => question(child.port, count / CLIENTS)));
      const seconds = (performance.now() - started) / 1000;
      const [after] = await ask(child.process);
      // The first round warms up.
      if (round > 0) results[index]?.push({ cpu: ((after - before) / count) * 1e5, rate: count / seconds });
    }
  console.log(`${CLIENTS} clients, ${tls ? 'TLS' : 'plain'} towards the server, median (least to most):`);
  for (const [index, way] of tried.entries()) {
    const cpu = sorted(results[index] ?? [], 'cpu');
    const rate = sorted(results[index] ?? [], 'rate');
    console.log(
      `${way}: ${middle(cpu).toFixed(2)} (${cpu[0]?.toFixed(2)} to ${cpu.at(-1)?.toFixed(2)}) CPU seconds for 100,000 questions, ${Math.round(middle(rate))} a second`,
    );
  }
  process.exit();
}

async function measureIdle(sessions: number): Promise<void> {
  const upstream = await echoServer(false);
  for (const way of ways.slice(0, 3)) {
    const child = await start(way, upstream, false);
    const open: Socket[] = [];
    let last = 0;
    for (const goal of [1000, sessions]) {
      while (open.length < goal)
        open.push(...(await Promise.all(Array.from({ length: 100 }, () => opened(child.port)))));
      await new Promise((resolve) => setTimeout(resolve, 3000));
      const [, memory] = await ask(child.process);
      if (goal > 1000)
        console.log(
          `${way}: ${((memory - last) / (goal - 1000)).toFixed(2)} KiB for each session beyond 1,000, of ${goal}`,
        );
      last = memory;
    }
    for (const socket of open) socket.destroy();
    child.process.disconnect();
  }
  process.exit();
}

/** A session that has asked once and says nothing more. */
async function opened(port: number): Promise<Socket> {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true });
  socket.on('error', () => {});
  socket.write(QUESTION);
  await once(socket, 'data');
  socket.pause();
  return socket;
}

async function question(port: number, count: number): Promise<void> {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true });
  let left = count;
  const { promise, resolve } = Promise.withResolvers<void>();
  socket.on('data', () => {
    left -= 1;
    if (left > 0) socket.write(QUESTION);
    else resolve();
  });
  socket.write(QUESTION);
  await promise;
  socket.destroy();
}

async function echoServer(tls: boolean): Promise<number> {
  const answer = (socket: Socket) => {
    socket.on('error', () => {});
    socket.setNoDelay(true);
    socket.on('data', (bytes: Buffer) => socket.write(bytes));
  };
  const { server: leaf } = await certificates();
  const server = tls
    ? createTlsServer({ cert: readFileSync(leaf.cert), key: readFileSync(leaf.key) }, answer)
    : createServer(answer);
  await once(server.listen(0, '127.0.0.1'), 'listening');
  return (server.address() as AddressInfo).port;
}

async function start(
  way: Way,
  upstream: number,
  tls: boolean,
): Promise<{ process: ChildProcess; port: number }> {
  const child = fork(script, ['relay', way, String(upstream), tls ? 'tls' : 'plain']);
  const [port] = (await once(child, 'message')) as [number];
  return { process: child, port };
}

async function ask(child: ChildProcess): Promise<readonly [cpu: number, memory: number]> {
  child.send('');
  const [answer] = (await once(child, 'message')) as [[number, number]];
  return answer;
}

function sorted<Key extends string>(results: readonly Record<Key, number>[], key: Key): number[] {
  return results.map((result) => result[key]).sort((a, b) => a - b);
}

function middle(values: readonly number[]): number {
  return values[Math.floor(values.length / 2)] ?? 0;
}
