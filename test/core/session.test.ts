import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { pino } from 'pino';

import { Admission } from '../../src/core/admission.ts';
import { Credentials } from '../../src/core/credentials.ts';
import { PosternError } from '../../src/core/errors.ts';
import { Relays } from '../../src/core/relay.ts';
import { Secret } from '../../src/core/secret.ts';
import { ClientSession, type ServiceRuntime, type Session } from '../../src/core/session.ts';
import type { Retirement, Tenure } from '../../src/core/tenure.ts';
import { socketPair, until } from '../support/session.ts';

const relays = Relays.start({ engine: 'auto', dedicatedSessions: 4 });

/** A session that runs `serve` for a connected client. */
async function running(serve: (session: Session) => Promise<void>, options: Partial<ServiceRuntime> = {}) {
  const [near, far] = await socketPair();
  const lines: string[] = [];
  const admission = new Admission('test', 1);
  const session = new ClientSession(near, {
    name: 'test',
    log: pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) }),
    localTls: undefined,
    loginTimeout: 5000,
    idleTimeout: 0,
    maxSessionAge: 0,
    drainTimeout: 1000,
    onRotation: 'keep',
    admission,
    relay: relays.relay,
    serve,
    lend: async (use, signal, onLent) => {
      using credentials = new Credentials(new Map([['password', new Secret(Buffer.from('s3cr3t'))]]));
      onLent(tenure());
      return await use(credentials, signal);
    },
    ...options,
  });
  far.resume();
  far.on('end', () => far.end());
  const last = () => JSON.parse(lines.at(-1) ?? '{}') as Record<string, unknown>;
  return { session, ended: session.run(), admission, client: far, near, last };
}

/** Of the first generation; says whether it was released, and retires on demand. */
function tenure(more: Partial<Tenure> = {}) {
  const callbacks: ((why: Retirement) => void)[] = [];
  let released = 0;
  return {
    generation: 1,
    versions: 'test@1',
    leases: [],
    retired: () => undefined,
    onRetired: (callback: (why: Retirement) => void) => void callbacks.push(callback),
    release: () => void (released += 1),
    retire: (why: Retirement) => callbacks.forEach((callback) => callback(why)),
    get released() {
      return released;
    },
    ...more,
  };
}

/** Waits for the signal and throws its reason, as a connector's reads do. */
async function stalled(signal: AbortSignal): Promise<never> {
  const { promise, reject } = Promise.withResolvers<never>();
  if (signal.aborted) throw signal.reason;
  signal.addEventListener('abort', () => reject(signal.reason as Error));
  return await promise;
}

const done = async ({ client }: Session): Promise<void> => void client.end();

describe("a session's tenure of its credentials", () => {
  const lendUnder = (mine: Tenure): Partial<ServiceRuntime> => ({
    lend: async (use, signal, onLent) => {
      onLent(mine);
      return await use(new Credentials(new Map()), signal);
    },
  });

  it('lasts until its end, and is told in its line', async () => {
    const mine = tenure({ generation: 7, versions: 'vault@3', leases: ['database/creds/app/1', 'pki/2'] });
    const { ended, last } = await running(async (session) => {
      session.admit();
      await session.withCredentials(async () => {});
      assert.equal(mine.released, 0);
      await done(session);
    }, lendUnder(mine));
    await ended;
    assert.equal(mine.released, 1);
    const { credential, generation, lease } = last();
    assert.deepEqual(
      { credential, generation, lease },
      {
        credential: 'vault@3',
        generation: 7,
        lease: 'database/creds/app/1, pki/2',
      },
    );
  });

  it('of a former login of the same session is given up for that of the next', async () => {
    const [first, second] = [tenure(), tenure()];
    const lending = [first, second];
    const { ended } = await running(
      async (session) => {
        session.admit();
        await session.withCredentials(async () => {});
        await session.withCredentials(async () => assert.equal(first.released, 0));
        assert.deepEqual([first.released, second.released], [1, 0]);
        await done(session);
      },
      {
        lend: async (use, signal, onLent) => {
          onLent(lending.shift() ?? assert.fail('asked too often'));
          return await use(new Credentials(new Map()), signal);
        },
      },
    );
    await ended;
    assert.deepEqual([first.released, second.released], [1, 1]);
  });

  for (const onRotation of ['keep', 'drain'] as const)
    it(`that ends under it ${onRotation === 'drain' ? 'ends it' : 'leaves it alone'} where the service says ${onRotation}`, async () => {
      const mine = tenure();
      const [upstream, server] = await socketPair();
      server.resume();
      const { ended, client } = await running(
        async (session) => {
          session.admit();
          await session.withCredentials(async () => {});
          mine.retire('replaced');
          await session.relay(session.client, upstream);
        },
        { ...lendUnder(mine), onRotation, drainTimeout: 50 },
      );
      if (onRotation === 'keep') setTimeout(() => client.end(), 200);
      server.on('end', () => server.end());
      assert.equal((await ended).outcome, onRotation === 'drain' ? 'SESSION_EXPIRED' : 'ok');
    });
});

describe('a session', () => {
  it('ends with the report of what was served, and one line that has every fact', async () => {
    const { ended, last, admission } = await running(async (session) => {
      session.admit();
      session.note({ database: 'orders' });
      await session.withCredentials(async (credentials) =>
        assert.equal(credentials.text('password'), 's3cr3t'),
      );
      await done(session);
    });
    const report = await ended;
    assert.deepEqual([report.outcome, report.admitted], ['ok', true]);
    const { level, msg, database, credential, outcome } = last();
    assert.deepEqual(
      [level, msg, database, credential, outcome],
      [30, 'session ended', 'orders', 'test@1', 'ok'],
    );
    assert.equal(admission.active, 0);
  });

  it('never rejects, whatever its connector throws, and logs no message that is not ours', async () => {
    for (const thrown of [new TypeError('s3cr3t'), 's3cr3t', undefined]) {
      const { ended, last } = await running(async ({ client }) => {
        client.destroy();
        throw thrown;
      });
      assert.equal((await ended).outcome, 'INTERNAL');
      assert.doesNotMatch(JSON.stringify(last()), /s3cr3t/);
      assert.equal(last()['level'], 40);
    }
  });

  it('gives its place back however it ends', async () => {
    for (const serve of [
      done,
      async ({ client }: Session) => {
        client.destroy();
        throw new PosternError('UPSTREAM_REJECTED', 'no');
      },
    ]) {
      const { ended, admission } = await running(async (session) => {
        session.admit();
        await serve(session);
      });
      await ended;
      assert.equal(admission.active, 0);
    }
  });

  it('does not take a place back that it never got', async () => {
    const full = new Admission('full', 0);
    const { ended } = await running(
      async (session) => {
        try {
          session.admit();
        } finally {
          session.client.end();
        }
      },
      { admission: full },
    );
    const report = await ended;
    assert.deepEqual([report.outcome, report.admitted], ['LIMIT_REACHED', false]);
    assert.equal(full.active, 0);
  });

  it('cuts off a client that does not follow when its connector has ended it', async () => {
    const { ended, client, near } = await running(done);
    client.removeAllListeners('end');
    assert.equal((await ended).outcome, 'ok');
    assert.equal(near.destroyed, true);
    client.destroy();
  });

  it('names the step that took too long, and gives each step its own time', async () => {
    const steps: AbortSignal[] = [];
    const { ended, last } = await running(
      async (session) => {
        try {
          steps.push(session.deadline('the first step'));
          await new Promise((resolve) => setTimeout(resolve, 60));
          steps.push(session.deadline('the second step'));
          await new Promise((resolve) => setTimeout(resolve, 60));
          await session.withCredentials(async (_credentials, signal) => await stalled(signal));
        } finally {
          session.client.destroy();
        }
      },
      { loginTimeout: 100 },
    );
    assert.equal((await ended).outcome, 'TIMEOUT');
    assert.equal(last()['error'], 'the login took longer than 0.1 s');
    assert.deepEqual(
      steps.map(({ aborted }) => aborted),
      [false, false],
    );
  });

  for (const [stage, serve] of Object.entries({
    'reads the start-up message': (session: Session) => stalled(session.deadline('the start-up message')),
    'logs in': (session: Session) =>
      session.withCredentials(async (_credentials, signal) => await stalled(signal)),
    relays: async (session: Session) => {
      const [near] = await socketPair();
      await session.relay(session.client, near);
    },
  }))
    it(`ends with SHUTDOWN when it is stopped while it ${stage}`, async () => {
      let begun = false;
      const { session, ended, admission } = await running(async (session) => {
        session.admit();
        begun = true;
        try {
          await serve(session);
        } finally {
          session.client.destroy();
        }
      });
      await until('the session to be under way', () => begun);
      await new Promise((resolve) => setImmediate(resolve));
      session.stop();
      const report = await ended;
      assert.equal(report.outcome, 'SHUTDOWN');
      assert.equal(admission.active, 0);
    });

  it('gets neither a place nor time nor a relay once it is stopped', async () => {
    for (const serve of [
      async (session: Session) => session.admit(),
      (session: Session) => stalled(session.deadline('anything')),
      (session: Session) => session.withCredentials(async (_credentials, signal) => await stalled(signal)),
      async (session: Session) => {
        const [near] = await socketPair();
        await session.relay(session.client, near);
      },
    ]) {
      const { promise: stopped, resolve: stop } = Promise.withResolvers<void>();
      const { session, ended } = await running(async (session) => {
        await stopped;
        try {
          await serve(session);
        } finally {
          session.client.destroy();
        }
      });
      session.stop();
      stop();
      assert.equal((await ended).outcome, 'SHUTDOWN');
    }
  });
});
