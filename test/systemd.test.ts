import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Client } from 'pg';

import { towards } from './e2e/stage.ts';
import { Postern } from './support/postern.ts';
import { capture } from './support/servers/process.ts';
import { canary, server } from './support/servers.ts';

const root = fileURLToPath(new URL('../', import.meta.url));
const program = join(root, 'bin/postern');
let folder = '';
const children: ChildProcess[] = [];
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'postern-systemd-'));
});
after(async () => {
  for (const child of children) child.kill('SIGKILL');
  await rm(folder, { recursive: true, force: true });
});

async function eventually<T>(what: string, look: () => T | undefined | Promise<T | undefined>): Promise<T> {
  for (const end = Date.now() + 30_000; Date.now() < end; await sleep(20)) {
    const found = await look();
    if (found !== undefined && found !== false) return found;
  }
  throw new Error(`waited in vain for ${what}`);
}

/** The side of the service manager: prints each datagram as a line of JSON, and lets its senders go on (BARRIER=1). */
const manager = `
import json, os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
while True:
    data, fds, _, _ = socket.recv_fds(s, 65536, 16)
    for fd in fds: os.close(fd)
    print(json.dumps(data.decode().split("\\n")), flush=True)
`;

const idle = `version: 2
services:
  db: { connector: postgres, listenOn: "tcp://127.0.0.1:0", credentials: { username: x }, config: { host: 127.0.0.1 } }
`;

describe('Type=notify', { timeout: 120_000 }, () => {
  it('hears of readiness, of each reload with its moment, of the end, and of life in between', async (t) => {
    if (!existsSync('/usr/bin/systemd-notify')) return t.skip('there is no systemd-notify on this machine');
    const socket = join(folder, 'notify');
    const listening = spawn('python3', ['-c', manager, socket], { stdio: ['ignore', 'pipe', 'inherit'] });
    children.push(listening);
    let heard = '';
    listening.stdout.on('data', (chunk) => (heard += String(chunk)));
    await eventually('the socket', () => existsSync(socket) || undefined);
    const messages = () =>
      heard
        .split('\n')
        .filter(Boolean)
        .map((line) => JSON.parse(line) as string[]);
    const about = (word: string) => messages().filter((message) => message.includes(word));

    await using postern = await Postern.start(idle, {
      env: { NOTIFY_SOCKET: socket, WATCHDOG_USEC: '1000000', A_SECRET: canary.postgres },
    });
    await eventually('READY=1', () => about('READY=1')[0]);
    assert.ok(about('READY=1')[0]?.includes('STATUS=serving 1 service(s)'));
    await eventually('two signs of life', () => about('WATCHDOG=1').length > 1 || undefined);

    const before = process.hrtime.bigint() / 1000n;
    postern.signal('SIGHUP');
    const reloading = await eventually('RELOADING=1', () => about('RELOADING=1')[0]);
    const moment = BigInt(/^MONOTONIC_USEC=(\d+)$/m.exec(reloading.join('\n'))?.[1] ?? 0);
    assert.ok(moment >= before && moment <= process.hrtime.bigint() / 1000n, 'the moment of CLOCK_MONOTONIC');
    await eventually('READY=1 again', () => about('READY=1').length > 1 || undefined);
    const order = messages()
      .filter(([first = '']) => !/^(WATCHDOG|BARRIER)=/.test(first))
      .map(([first]) => first);
    assert.deepEqual(order, ['READY=1', 'RELOADING=1', 'READY=1']);

    assert.equal(await postern.stop(), 0);
    await eventually('STOPPING=1', () => about('STOPPING=1')[0]);
    assert.ok(!heard.includes(canary.postgres));
  });

  it('does without a manager that cannot be reached', async () => {
    await using postern = await Postern.start(idle, { env: { NOTIFY_SOCKET: join(folder, 'nobody') } });
    await postern.logged(
      ({ msg }) => msg === 'systemd could not be told' || msg.startsWith('NOTIFY_SOCKET'),
      30_000,
    );
    assert.equal(await postern.stop(20_000), 0);
  });
});

/** Starts a program as systemd does: with listening sockets from descriptor 3 on, and its own number in LISTEN_PID. */
const activator = `
import os, socket, sys
kinds, names, command = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]
sockets = []
for kind in kinds:
    if kind == "file":
        sockets.append(open("/dev/null"))
    elif kind.startswith("/"):
        s = socket.socket(socket.AF_UNIX); s.bind(kind); s.listen(16); sockets.append(s)
    else:
        s = socket.socket(); s.bind((kind, 0)); s.listen(16); sockets.append(s)
        print("port", s.getsockname()[1], file=sys.stderr, flush=True)
for i, s in enumerate(sockets):
    os.dup2(s.fileno(), 100 + i)
for i in range(len(sockets)):
    os.dup2(100 + i, 3 + i); os.close(100 + i)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sockets)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
`;

interface Activated {
  readonly child: ChildProcess;
  readonly output: () => string;
  readonly port: () => number;
}

async function activate(config: object, kinds: string, names: string): Promise<Activated> {
  const path = join(folder, `${Math.random()}.yaml`);
  await writeFile(path, JSON.stringify({ version: 2, admin: 'off', ...config }));
  const child = spawn('python3', ['-c', activator, kinds, names, program, 'run', '-f', path], {
    env: { PATH: process.env['PATH'], HOME: folder, PASSWORD: canary.postgres },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  children.push(child);
  let output = '';
  child.stdout.on('data', (chunk) => (output += String(chunk)));
  child.stderr.on('data', (chunk) => (output += String(chunk)));
  return { child, output: () => output, port: () => Number(/^port (\d+)$/m.exec(output)?.[1]) };
}

describe('socket activation', { timeout: 120_000 }, () => {
  it('serves on the sockets that systemd has opened, by their address or their name, also who came before', async () => {
    const postgres = await server('postgres18');
    const service = (listenOn: string) => ({
      connector: 'postgres',
      listenOn,
      credentials: { username: 'scram_user', password: { from: 'env', get: 'PASSWORD' } },
      config: { ...towards(postgres), database: 'app' },
    });
    const path = join(folder, '.s.PGSQL.5432');
    const services = { 'by-name': service('tcp://127.0.0.1:1'), 'by-path': service(`unix://${path}`) };
    const running = await activate(
      { services },
      `127.0.0.1,${path},file,127.0.0.1`,
      'by-name:sockets::nobodys',
    );
    // The socket listens before the program does: this client waits for it.
    await eventually('the socket', () => existsSync(path) || undefined);
    const early = new Client({ host: folder, port: 5432, user: 'me', database: 'app' });
    await early.connect();
    const answer = await early.query('select session_user as who');
    assert.deepEqual(answer.rows, [{ who: 'scram_user' }]);
    const named = new Client({ host: '127.0.0.1', port: running.port(), user: 'me', database: 'app' });
    await named.connect();
    await early.end();
    await named.end();
    for (const text of [
      'a descriptor from systemd is no listening socket, and is not used',
      'no service wants a socket from systemd',
      `unix://${path}`,
    ])
      await eventually(text, () => running.output().includes(text) || undefined);
    running.child.kill('SIGTERM');
    await eventually('the end', () => (running.child.exitCode === null ? undefined : true));
    assert.equal(running.child.exitCode, 0, running.output());
    assert.ok(existsSync(path), "the socket is systemd's, and stays");
    assert.ok(!running.output().includes(canary.postgres));
  });

  it('does not open to other machines what the configuration keeps to this one', async () => {
    const running = await activate(
      {
        services: {
          db: {
            connector: 'postgres',
            listenOn: 'tcp://127.0.0.1:1',
            credentials: { username: 'x' },
            config: { host: 'h' },
          },
        },
      },
      '0.0.0.0',
      'db',
    );
    await eventually('the end', () => (running.child.exitCode === null ? undefined : true));
    assert.equal(running.child.exitCode, 3, running.output());
    assert.match(running.output(), /other machines can reach it/);
  });

  it('takes no descriptor that was meant for another process', async () => {
    await using postern = await Postern.start(idle, { env: { LISTEN_PID: '1', LISTEN_FDS: '3' } });
    assert.ok(postern.lines.every(({ msg }) => !msg.includes('systemd')));
  });
});

describe('deploy/systemd', () => {
  it('holds units that systemd understands', async (t) => {
    const found = await capture('sh', ['-c', 'command -v systemd-analyze']);
    if (found.code !== 0) return t.skip('there is no systemd-analyze on this machine');
    const names = ['postern.service', 'postern.socket'].map((name) => join(folder, name));
    for (const path of names) {
      const text = readFileSync(join(root, 'deploy/systemd', path.slice(folder.length + 1)), 'utf8');
      // What it starts need not be on this machine.
      await writeFile(path, text.replaceAll(/^ExecStart=\S+/gm, 'ExecStart=/bin/true'));
    }
    const { code, stdout, stderr } = await capture('systemd-analyze', ['verify', ...names]);
    assert.equal(code, 0, stderr);
    assert.equal(stdout + stderr, '');
  });
});
