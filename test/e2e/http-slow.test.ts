import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import type { Postern } from '../support/postern.ts';
import { which } from '../support/servers/install.ts';
import { performHttp } from './http-stage.ts';
import { eventually } from './stage.ts';

const SLOW = 1000;
const MiB = 1024 * 1024;
/** What each of them asks for: more than Postern may keep of it, and no more, as the kernel keeps the rest. */
const SIZE = 2 * MiB;
/** How long a busy machine may take for what has to happen, in milliseconds. */
const PATIENCE = 60_000;
/** Requests on one connection. */
const ASKS = 2000;
/** How long a client may wait at most whom the slow ones do not hold up. */
const PROMPT = 10_000;

/**
 * Many connections whose kernels take as little as they can: Node cannot ask for a small window. Each writes `said`, and
 * then takes `sip` bytes now and then, or writes one byte more if that is 0. A line is printed when all have begun, and one
 * when all were closed; the count of those that were is printed at the end of its input.
 */
const crowd = `
import resource, select, socket, sys
port, count, sip, said = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode('latin1').decode('unicode_escape').encode('latin1')
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
sockets = []
for _ in range(count):
    each = socket.socket()
    each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    each.connect(('127.0.0.1', port))
    each.sendall(said)
    each.setblocking(False)
    sockets.append(each)
print('begun', flush=True)
closed = set()
heard = {}
while not select.select([sys.stdin], [], [], 0.1)[0]:
    for each in sockets:
        if each in closed: continue
        try:
            if sip == 0: each.send(b'x')
            got = each.recv(sip or 4096)
            if not got: closed.add(each)
            elif each not in heard: heard[each] = got[:15].decode('latin1')
        except BlockingIOError: pass
        except OSError: closed.add(each)
    if len(closed) == count:
        print('closed', flush=True)
        sys.stdin.read()
        break
print(len(closed), '|'.join(sorted(set(heard.values()))), flush=True)
`;

class Crowd {
  readonly #child: ChildProcess;
  #said = '';

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.stdout?.setEncoding('utf8').on('data', (text: string) => (this.#said += text));
  }

  static async gather(t: TestContext, port: number, count: number, sip: number, said: string) {
    const args = ['-c', crowd, String(port), String(count), String(sip), said];
    const child = spawn('python3', args, { stdio: ['pipe', 'pipe', 'inherit'] });
    t.after(() => child.kill('SIGKILL'));
    const gathered = new Crowd(child);
    await eventually('the clients to begin', () => gathered.#said.startsWith('begun'), PATIENCE);
    return gathered;
  }

  /** Waits until all were closed. */
  async closed(): Promise<void> {
    await eventually('the clients to be closed', () => this.#said.includes('closed\n'), PATIENCE);
  }

  /** How many were closed by then, and what they heard first. */
  async disperse(): Promise<{ closed: number; heard: string }> {
    this.#child.stdin?.end();
    await once(this.#child, 'close');
    const last = this.#said.trimEnd().split('\n').at(-1) ?? '';
    return { closed: Number(last.split(' ', 1)[0]), heard: last.slice(last.indexOf(' ') + 1) };
  }
}

function residentMiB({ pid }: Postern): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;
}

/** The most that it had while something lasted. */
async function peakOf(postern: Postern, milliseconds: number): Promise<number> {
  let peak = 0;
  for (const end = Date.now() + milliseconds; Date.now() < end; await sleep(50))
    peak = Math.max(peak, residentMiB(postern));
  return peak;
}

async function bulkOrigin(t: TestContext) {
  const body = Buffer.alloc(SIZE, 'b');
  const asked = { bulk: 0, pages: 0 };
  const server = createServer((request, response) => {
    request.resume();
    if (request.url === '/bulk') asked.bulk += 1;
    if (request.url === '/page') asked.pages += 1;
    if (request.url === '/quick') return void response.end('quick');
    const length = request.url === '/page' ? 60_000 : SIZE;
    response.setHeader('content-length', length);
    response.end(body.subarray(0, length));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { server, asked };
}

async function scene(t: TestContext, config: object = {}, limits: object = {}) {
  if (process.platform !== 'linux' || !(await which('python3'))) {
    t.skip('needs Linux and python3');
    return undefined;
  }
  const { server, asked } = await bulkOrigin(t);
  const { port: upstream } = server.address() as AddressInfo;
  const postern = await performHttp(
    {
      api: {
        config: {
          upstream: `http://127.0.0.1:${upstream}`,
          allowPlainHttp: true,
          pool: { maxConnections: SLOW + 100 },
          ...config,
        },
        limits: { maxConnections: SLOW + 100, ...limits },
      },
    },
    {},
  );
  t.after(() => postern[Symbol.asyncDispose]());
  const port = postern.port('api');
  const quick = async () => {
    const began = performance.now();
    const response = await fetch(`http://127.0.0.1:${port}/quick`);
    assert.equal(await response.text(), 'quick');
    return performance.now() - began;
  };
  for (let i = 0; i < 20; i += 1) await quick();
  const connections = async () =>
    await new Promise<number>((resolve) => server.getConnections((_error, count) => resolve(count)));
  return { postern, port, quick, connections, asked };
}

describe('an HTTP service whose clients are slow on purpose', { timeout: 400_000 }, () => {
  it(`has ${SLOW} of them read a few bytes of a large body now and then: memory is bounded, others are served`, async (t) => {
    const at = await scene(t);
    if (!at) return;
    const { postern, port, quick, connections, asked } = at;
    const before = residentMiB(postern);
    const said = 'GET /bulk HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n';
    const slow = await Crowd.gather(t, port, SLOW, 100, said);
    await eventually('all to be under way', () => asked.bulk >= SLOW, PATIENCE);
    const peak = await peakOf(postern, 2500);
    t.diagnostic(`${before.toFixed()} MiB before, ${peak.toFixed()} MiB with ${SLOW} slow readers`);
    assert.ok((await quick()) < PROMPT);
    const { closed, heard } = await slow.disperse();
    assert.equal(closed, 0);
    assert.equal(heard, 'HTTP/1.1 200 OK');
    await eventually('the server to be left alone', async () => (await connections()) <= 2, PATIENCE);
    assert.ok(peak - before < 200, `${peak - before} MiB more`);
  });

  it('has a client ask and ask on one connection, and read nothing: it waits for its answers to be read', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const { postern, port, quick, asked } = at;
    const before = residentMiB(postern);
    // Each page is taken whole by the connection, which could be used for the next one at once.
    const asks = 'GET /page HTTP/1.1\\r\\nHost: x.localhost\\r\\n\\r\\n'.repeat(ASKS);
    const slow = await Crowd.gather(t, port, 20, 100, asks.replaceAll('x.localhost', 'localhost'));
    const peak = await peakOf(postern, 2500);
    let pages: number;
    do {
      pages = asked.pages;
      await sleep(1000);
    } while (asked.pages > pages);
    t.diagnostic(
      `${before.toFixed()} MiB before, ${peak.toFixed()} MiB with 20 that do not read; ${pages} of ${20 * ASKS} pages`,
    );
    assert.ok((await quick()) < PROMPT);
    const { closed, heard } = await slow.disperse();
    assert.equal(closed, 0);
    assert.equal(heard, 'HTTP/1.1 200 OK');
    // The kernel takes up to 4 MiB of each, which is 70 pages.
    assert.ok(pages < 20 * 100, `${pages} pages were asked for`);
    assert.ok(peak - before < 200, `${peak - before} MiB more`);
  });

  for (const [what, said] of [
    ['head', 'GET /quick HTTP/1.1\\r\\nHost: localhost\\r\\nX-Slow: '],
    ['body', 'POST /quick HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: 100000\\r\\n\\r\\n'],
  ] as const)
    it(`has ${SLOW} of them send a ${what} byte by byte: others are served, and those that stop are told`, async (t) => {
      const at = await scene(t, { timeouts: { requestBody: '5s' } }, { loginTimeout: '3s' });
      if (!at) return;
      const { postern, port, quick, connections } = at;
      const before = residentMiB(postern);
      const slow = await Crowd.gather(t, port, SLOW, 0, said);
      const watched = peakOf(postern, 8000);
      for (let i = 0; i < 5; i += 1) assert.ok((await quick()) < PROMPT);
      const peak = await watched;
      t.diagnostic(`${before.toFixed()} MiB before, ${peak.toFixed()} MiB with ${SLOW} slow senders`);
      if (what === 'head') await slow.closed();
      const { closed, heard } = await slow.disperse();
      // The head has one limit as a whole; a body may take as long as it does not stop.
      if (what === 'head') {
        assert.equal(closed, SLOW);
        assert.equal(heard, 'HTTP/1.1 408 Re');
      } else assert.equal(closed, 0);
      await eventually('the server to be left alone', async () => (await connections()) <= 2, PATIENCE);
      assert.ok(peak - before < 100, `${peak - before} MiB more`);
    });
});
