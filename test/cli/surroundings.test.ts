import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { givesSecretsAway } from '../../src/cli/surroundings.ts';
import { capture } from '../support/servers/process.ts';

const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));
const path = { PATH: process.env['PATH'] };

describe('the surroundings of the program', () => {
  it('keep it from starting where Node.js would show or write down secrets', async () => {
    for (const [name, value] of [
      ['NODE_DEBUG', 'net'],
      ['NODE_DEBUG_NATIVE', 'http2'],
      ['NODE_TLS_REJECT_UNAUTHORIZED', '0'],
      ['NODE_OPTIONS', '--inspect=127.0.0.1:0'],
    ] as const) {
      const refused = await capture(program, ['run', '-f', '/nonexistent/postern.yaml'], {
        env: { ...path, [name]: value },
      });
      assert.equal(refused.code, 2, `${name}=${value}: ${refused.stderr}`);
      assert.match(refused.stderr, /^postern: /m);
      // Whatever it is refused for is named, so that it can be removed.
      assert.ok(refused.stderr.includes(value.startsWith('--') ? '--inspect,' : name), refused.stderr);
      assert.equal(refused.stdout, '');
    }
  });

  it('may hold what gives nothing away', async () => {
    const started = await capture(program, ['version'], {
      env: {
        ...path,
        NODE_DEBUG: '',
        NODE_TLS_REJECT_UNAUTHORIZED: '1',
        NODE_OPTIONS: '--max-old-space-size=96',
        HTTPS_PROXY: 'http://127.0.0.1:9',
        NODE_USE_ENV_PROXY: '1',
      },
    });
    assert.equal(started.code, 0, started.stderr);
  });

  it('are read as Node.js reads them: underscores for hyphens, words in quotes, flags of the command line', () => {
    const options = (text: string) => givesSecretsAway({ NODE_OPTIONS: text }, []);
    for (const text of [
      '--tls-keylog=/tmp/x',
      '--tls_keylog=/tmp/x',
      '"--tls-keylog=/tmp/a b"',
      '--max-old-space-size=96   --trace-tls',
      '--heapsnapshot-signal=SIGUSR2',
      '--report-on-signal',
    ])
      assert.match(options(text) ?? '', /^Node\.js was started with --/, text);
    assert.match(givesSecretsAway({}, ['--inspect-brk=0']) ?? '', /--inspect-brk, which opens a debugger/);
    assert.equal(options('--max-old-space-size=96 --import=file:///inspect.js --use-system-ca'), undefined);
    assert.equal(givesSecretsAway({}, ['--use-system-ca', '--inspector']), undefined);
  });
});

/** What the check is for: if Node.js ever stops printing these, the check can go. */
it('Node.js prints header fields when NODE_DEBUG says so', async () => {
  const server = createServer((socket) => socket.on('error', () => {}).end());
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  try {
    const { port } = server.address() as { port: number };
    const script = `require('http').get({ port: ${port}, headers: { authorization: 'Bearer shown-' + 1 } }).on('error', () => {})`;
    const { stderr } = await capture(process.execPath, ['-e', script], { env: { NODE_DEBUG: 'net' } });
    assert.ok(stderr.includes('Bearer shown-1'), stderr);
  } finally {
    server.close();
  }
});
