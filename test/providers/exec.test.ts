import assert from 'node:assert/strict';
import { ChildProcess, execFileSync } from 'node:child_process';
import type { EventEmitter } from 'node:events';
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { inspect } from 'node:util';

import { PosternError } from '../../src/core/errors.ts';
import { providers } from '../support/plugins.ts';
import { failure, never, type Opened, open, texts } from './opening.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-exec-'));
after(() => rmSync(folder, { recursive: true }));

const PATH = process.env['PATH'] ?? '/usr/bin:/bin';
const shell = (script: string, ...words: string[]) => ['/bin/sh', '-c', script, 'sh', ...words];

/** Opens a provider for the test, and closes it. */
async function using<T>(
  settings: object,
  use: (provider: Opened) => Promise<T>,
  environment: Record<string, string> = {},
): Promise<T> {
  const provider = open('exec', settings, { PATH, ...environment });
  try {
    return await use(provider);
  } finally {
    await provider.close(AbortSignal.timeout(5000));
    assert.equal(provider.logged(), '', 'nothing is logged');
  }
}

const output = (script: string, reference = '-', more: object = {}, environment = {}) =>
  using(
    { command: shell(script), ...more },
    async (provider) => (await texts(provider, reference))[0],
    environment,
  );

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    // A zombie that init has not reaped yet is no living process.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

async function gone(pid: number): Promise<void> {
  for (let turns = 0; isAlive(pid); turns++) {
    assert.ok(turns < 300, `process ${pid} is still there`);
    await sleep(10);
  }
}

async function pidIn(path: string): Promise<number> {
  for (let turns = 0; turns < 500; turns++) {
    const text = existsSync(path) ? readFileSync(path, 'utf8') : '';
    if (text.endsWith('\n')) return Number(text);
    await sleep(10);
  }
  throw new Error(`${path} was not written`);
}

describe('the provider exec', () => {
  it('gives what the program prints, without one line end', async () => {
    assert.equal(await output('printf secret'), 'secret');
    assert.equal(await output('echo secret'), 'secret');
    assert.equal(await output("printf 'secret\\r\\n'"), 'secret');
    assert.equal(await output("printf 'two\\nlines\\n\\n'"), 'two\nlines\n');
    assert.equal(await output('echo secret', '-', { trim: false }), 'secret\n');
    assert.equal(await output(':'), '');
  });

  it('gives bytes that are no text as they are', async () => {
    const { secrets } = await using({ command: shell("printf '\\377\\000\\201'") }, (provider) =>
      provider.fetch(['-'], never),
    );
    assert.deepEqual(secrets[0]?.reveal(), Buffer.from([0xff, 0x00, 0x81]));
  });

  it('gives fields of JSON from one run for all references', async () => {
    const counter = join(folder, 'runs');
    const script = `echo run >> ${counter}; echo '{"user":"u\\u00e9","data":{"password":"p\\"w"},"port":5432}'`;
    const values = await using({ command: shell(script) }, (provider) =>
      texts(provider, '#user', '#data.password', '#port', '-#user'),
    );
    assert.deepEqual(values, ['ué', 'p"w', '5432', 'ué']);
    assert.equal(readFileSync(counter, 'utf8'), 'run\n');
  });

  it('runs the command once for each argument, and puts it where {} stands', async () => {
    const command = shell('echo "{\\"args\\":\\"$*\\",\\"n\\":$#}"', '--vault={}', '{}');
    const values = await using({ command }, (provider) =>
      texts(provider, 'a b#args', 'a b#n', '$(id);$&#args', 'op://x/y#args'),
    );
    assert.deepEqual(values, [
      '--vault=a b a b',
      '2',
      '--vault=$(id);$& $(id);$&',
      '--vault=op://x/y op://x/y',
    ]);
  });

  it('takes no reference that would become an option, and no argument where the command has no place', async () => {
    const kind = providers['exec'];
    assert.match(kind?.checkReference('--config=/tmp/mine') ?? '', /must not begin with "-"/);
    assert.match(kind?.checkReference('-v#x') ?? '', /must not begin with "-"/);
    assert.match(kind?.checkReference('') ?? '', /write "-"/);
    assert.match(kind?.checkReference('a#') ?? '', /field after "#"/);
    assert.match(kind?.checkReference('a\0b') ?? '', /NUL/);
    for (const fine of ['-', '#field', '-#field', 'name', 'name#field.x', 'op://vault/item'])
      assert.equal(kind?.checkReference(fine), undefined, fine);

    const without = await using({ command: ['true'] }, (provider) =>
      failure(provider.fetch(['name#field'], never)),
    );
    assert.equal(without.code, 'PROVIDER_FAILED');
    assert.match(without.message, /"name#field" has an argument, but the command has no "\{\}"/);
    const missing = await using({ command: ['echo', '{}'] }, (provider) =>
      failure(provider.fetch(['#field'], never)),
    );
    assert.match(missing.message, /"#field" has no argument/);
  });

  it('refuses a program by a relative path, an empty command, and a program that a reference would choose', () => {
    for (const command of [['./helper'], ['bin/helper'], [''], [], ['{}'], ['/bin/{}'], ['x', 'a\0b']])
      assert.equal(providers['exec']?.settings.safeParse({ command }).success, false, inspect(command));
    for (const command of [['helper'], ['/usr/bin/helper', '{}']])
      assert.equal(providers['exec']?.settings.safeParse({ command }).success, true);
  });

  it('passes only the variables that are named, and no secret of its own', async () => {
    const environment = { VAULT_TOKEN: 'CANARY-token', ORDERS_PASSWORD: 'CANARY-password', PROFILE: 'prod' };
    const more = { passEnv: ['PROFILE', 'NOT_SET'], env: { REGION: 'eu' } };
    const seen = await output('env | sort', '-', more, { ...environment, HOME: '/home/app' });
    assert.doesNotMatch(seen ?? '', /CANARY|NOT_SET/);
    const names = seen?.split('\n').map((line) => line.split('=')[0]);
    assert.deepEqual(
      names?.filter((name) => !['_', 'PWD', 'SHLVL', 'OLDPWD'].includes(name ?? '')),
      ['HOME', 'PATH', 'PROFILE', 'REGION'],
    );
    assert.match(seen ?? '', /^PROFILE=prod$/m);
    assert.match(seen ?? '', /^REGION=eu$/m);
  });

  it('gives the program no input, no terminal and no descriptor of Postern', async () => {
    assert.equal(await output('cat; readlink /proc/self/fd/2'), '/dev/null');
    const secretFile = join(folder, 'open');
    const held = openSync(secretFile, 'w');
    const listener = createServer().listen(0, '127.0.0.1');
    try {
      const open = (await output('ls -l /proc/self/fd')) ?? '';
      assert.match(open, / 1 -> (socket|pipe):/);
      assert.equal(open.includes(secretFile), false);
      assert.equal([...open.matchAll(/socket:/g)].length, 1, 'no socket but its own output');
    } finally {
      closeSync(held);
      listener.close();
    }
  });

  it('says how a program failed by its exit code, and nothing of what it said', async () => {
    const script = 'echo CANARY-out; echo CANARY-err >&2; exit $((3))';
    const error = await using({ command: shell(script) }, (provider) =>
      failure(provider.fetch(['-'], never)),
    );
    assert.equal(error.code, 'PROVIDER_FAILED');
    assert.equal(error.message, 'provider "exec": "-": /bin/sh ended with exit code 3');
    assert.doesNotMatch(inspect(error, { depth: null, showHidden: true }), /CANARY/);
  });

  it('takes exit code 75 and a signal for a failure that passes', async () => {
    const temporary = await failure(output('exit 75'));
    assert.equal(temporary.code, 'PROVIDER_UNAVAILABLE');
    const killed = await failure(output('kill -9 $$'));
    assert.equal(killed.code, 'PROVIDER_UNAVAILABLE');
    assert.match(killed.message, /was ended by SIGKILL/);
  });

  it('says that a program is not there or may not be run, when it is asked and when it is checked', async () => {
    const plain = join(folder, 'plain');
    writeFileSync(plain, '#!/bin/sh\necho x\n', { mode: 0o644 });
    for (const [program, said] of [
      ['/nonexistent/helper', /is not there/],
      ['no-such-helper-anywhere', /is not there/],
      [plain, /permission denied/],
    ] as const) {
      await using({ command: [program] }, async (provider) => {
        const error = await failure(provider.fetch(['-'], never));
        assert.equal(error.code, 'PROVIDER_FAILED');
        assert.match(error.message, said);
        assert.equal((await failure(provider.check(never))).code, 'PROVIDER_FAILED');
      });
    }
    await using({ command: ['sh', '-c', 'exit 9'] }, (provider) => provider.check(never));
  });

  it('says which field is missing or is no value, and that an output is no JSON', async () => {
    const missing = await failure(output('echo \'{"a":"CANARY"}\'', '#b'));
    assert.match(missing.message, /"#b": the output of \/bin\/sh: there is no field "b"/);
    const object = await failure(output('echo \'{"a":{"x":"CANARY"}}\'', '#a'));
    assert.match(object.message, /an object, not a text/);
    const text = await failure(output('echo CANARY', '#a'));
    assert.match(text.message, /not valid JSON/);
    for (const { message } of [missing, object, text]) assert.doesNotMatch(message, /CANARY/);
  });

  it('says until when the values of a credential process work', async () => {
    const soon = new Date(Date.now() + 3_600_000).toISOString();
    const later = new Date(Date.now() + 7_200_000).toISOString();
    const aws = (end: string) =>
      `echo '{"Version":1,"AccessKeyId":"AK","SecretAccessKey":"sk","SessionToken":"t","Expiration":"${end}"}'`;
    const grant = await using({ command: shell(aws(soon)) }, (provider) =>
      provider.fetch(['#AccessKeyId', '#SecretAccessKey', '#SessionToken'], never),
    );
    assert.equal(grant.secrets[1]?.reveal().toString(), 'sk');
    assert.equal(grant.expiresAt?.toISOString(), soon);

    const nested = shell(`echo '{"status":{"token":"t","end":"'$1'"}}'`, '{}');
    const earliest = await using({ command: nested, expiration: 'status.end' }, (provider) =>
      provider.fetch([`${later}#status.token`, `${soon}#status.token`], never),
    );
    assert.equal(earliest.expiresAt?.toISOString(), soon);

    const none = await using({ command: shell('echo \'{"a":"b"}\'') }, (provider) =>
      provider.fetch(['#a'], never),
    );
    assert.equal(none.expiresAt, undefined);
    const expired = await failure(output(aws('2020-01-01T00:00:00Z'), '#AccessKeyId'));
    assert.equal(expired.code, 'PROVIDER_UNAVAILABLE');
    assert.match(expired.message, /expired already/);
    const noTime = await failure(output(aws('tomorrow'), '#AccessKeyId'));
    assert.equal(noTime.code, 'PROVIDER_FAILED');
    assert.match(noTime.message, /"Expiration" is no time/);
  });

  it('stops a program that takes too long, with what it has started, also where SIGTERM is ignored', async () => {
    for (const trap of ['', "trap '' TERM; "]) {
      const pids = [join(folder, `leader-${trap.length}`), join(folder, `child-${trap.length}`)] as const;
      const script = `${trap}echo $$ > ${pids[0]}; (sleep 600; :) & echo $! > ${pids[1]}; printf CANARY; wait; sleep 600`;
      await using({ command: shell(script), timeout: '300ms' }, async (provider) => {
        const started = performance.now();
        const error = await failure(provider.fetch(['-'], never));
        assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
        assert.match(error.message, /did not end within 300 ms/);
        assert.ok(performance.now() - started < 20_000);
        for (const path of pids) await gone(await pidIn(path));
      });
    }
  });

  it('ends with the signal, and stops the program', async () => {
    const path = join(folder, 'aborted');
    await using({ command: shell(`echo $$ > ${path}; sleep 600`) }, async (provider) => {
      const caller = new AbortController();
      const answer = failure(provider.fetch(['-'], caller.signal));
      const pid = await pidIn(path);
      const abortedAt = performance.now();
      caller.abort(new PosternError('TIMEOUT', 'too late'));
      assert.equal((await answer).code, 'TIMEOUT');
      assert.ok(performance.now() - abortedAt < 4000);
      await gone(pid);
    });
  });

  it('stops what runs when it is closed, and starts nothing more', async () => {
    const path = join(folder, 'closed');
    const provider = open('exec', { command: shell(`echo $$ > ${path}; sleep 600`) }, { PATH });
    const answer = failure(provider.fetch(['-'], never));
    const pid = await pidIn(path);
    await provider.close(AbortSignal.timeout(5000));
    assert.equal((await answer).code, 'SHUTDOWN');
    await gone(pid);
    assert.equal((await failure(provider.fetch(['-'], never))).code, 'SHUTDOWN');
  });

  it('stops a program that prints more than 64 KiB', async () => {
    const path = join(folder, 'endless');
    const endless = await failure(output(`echo $$ > ${path}; while :; do echo CANARY; done`));
    assert.equal(endless.code, 'PROVIDER_FAILED');
    assert.match(endless.message, /more than 64 KiB/);
    await gone(await pidIn(path));
    const most = await output('head -c 65536 /dev/zero | tr "\\0" x', '-', { trim: false });
    assert.equal(most?.length, 65_536);
  });

  it('does not wait for a process that the program leaves behind with its output open', async () => {
    const path = join(folder, 'left');
    const started = performance.now();
    const error = await failure(output(`sleep 600 & echo $! > ${path}; echo secret`));
    assert.equal(error.code, 'PROVIDER_FAILED');
    assert.match(error.message, /left a process behind/);
    assert.ok(performance.now() - started < 20_000);
    await gone(await pidIn(path));
    // One that has closed it is the program's own affair: agents live on.
    assert.equal(await output(`sleep 600 > /dev/null & echo $! > ${path}; echo secret`), 'secret');
    const agent = await pidIn(path);
    assert.ok(isAlive(agent));
    process.kill(agent);
  });

  it('takes what is in the pipe, however long the event loop had no time to look', async () => {
    // Its 'exit' is heard, and then nothing for longer than an output may stay open.
    // oxlint-disable-next-line typescript/unbound-method -- called with its `this`, and put back as it was
    const { emit } = ChildProcess.prototype;
    ChildProcess.prototype.emit = function (this: ChildProcess, ...event: Parameters<EventEmitter['emit']>) {
      const heard = (emit as EventEmitter['emit']).apply(this, event);
      const end = performance.now() + (event[0] === 'exit' ? 1300 : 0);
      while (performance.now() < end);
      return heard;
    } as typeof emit;
    try {
      for (let runs = 0; runs < 3; runs++)
        assert.equal(await output('head -c 60000 /dev/zero; echo'), '\0'.repeat(60_000));
    } finally {
      ChildProcess.prototype.emit = emit;
    }
  });

  it('runs at most eight at once, and lets no one wait beyond its signal', async () => {
    const log = join(folder, 'log');
    writeFileSync(log, '');
    const script = `echo + >> ${log}; sleep 0.2; echo - >> ${log}; echo secret`;
    await using({ command: shell(`: "$1"; ${script}`, '{}') }, async (provider) => {
      const caller = new AbortController();
      const running = Array.from({ length: 20 }, (_, i) => texts(provider, `n${i}`));
      const waiting = failure(provider.fetch(['late'], caller.signal));
      await sleep(50);
      caller.abort(new PosternError('TIMEOUT', 'too late'));
      assert.equal((await waiting).code, 'TIMEOUT');
      assert.deepEqual(new Set((await Promise.all(running)).flat()), new Set(['secret']));
    });
    let [now, most] = [0, 0];
    for (const sign of readFileSync(log, 'utf8').trim().split('\n')) {
      now += sign === '+' ? 1 : -1;
      most = Math.max(most, now);
    }
    assert.ok(most > 1 && most <= 8, `${most} at once`);
  });

  it('leaves no zombie and no descriptor behind, whatever happens', async () => {
    const descriptors = () => readdirSync('/proc/self/fd').length;
    await output('echo warm');
    const before = descriptors();
    for (let i = 0; i < 5; i++) {
      await output('echo x');
      await failure(output('exit 1'));
      await failure(output('kill -9 $$'));
      await failure(output('sleep 600', '-', { timeout: '20ms' }));
      await failure(output('head -c 100000 /dev/zero'));
      await failure(using({ command: ['/nonexistent'] }, (provider) => provider.fetch(['-'], never)));
    }
    for (let turns = 0; descriptors() > before && turns < 1000; turns++) await sleep(10);
    assert.equal(descriptors(), before);
    const children = execFileSync('ps', ['-o', 'stat=,comm=', '--ppid', String(process.pid)], {
      encoding: 'utf8',
    });
    const left = children.split('\n').filter((line) => line !== '' && !line.endsWith(' ps'));
    assert.deepEqual(left, []);
  });

  it('wipes what one program gave when another fails', async () => {
    const script = 'test "$1" = good && { echo CANARY; exit; }; sleep 0.3; exit 1';
    const error = await using({ command: shell(script, '{}') }, (provider) =>
      failure(provider.fetch(['good', 'bad'], never)),
    );
    assert.match(error.message, /"bad": .* exit code 1/);
  });

  it('finds a name on the PATH that it was given', async () => {
    writeFileSync(join(folder, 'my-helper'), '#!/bin/sh\necho found\n');
    chmodSync(join(folder, 'my-helper'), 0o755);
    const environment = { PATH: `${folder}:${PATH}` };
    await using(
      { command: ['my-helper'] },
      async (provider) => {
        await provider.check(never);
        assert.deepEqual(await texts(provider, '-'), ['found']);
      },
      environment,
    );
  });
});
