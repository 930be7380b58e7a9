import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { loadNative } from '../../src/core/native.ts';
import { Relays } from '../../src/core/relay.ts';
import { proveDirect } from '../../src/core/relay-trial.ts';
import { socketPair, until } from '../support/session.ts';

const nowhere = () => ({ native: undefined, reason: 'there is no binary for this' });
const unexpected = () => assert.fail('the addon was looked for');

describe('the engine of the relay', () => {
  it('is TypeScript without a look at the addon where that is asked for', () => {
    const relays = Relays.start({ engine: 'typescript', dedicatedSessions: 32 }, unexpected);
    assert.equal(relays.engine, 'typescript');
    assert.equal(relays.fellBack, undefined);
    relays.close();
  });

  it('is TypeScript where there is no addon, and says why', async () => {
    const relays = Relays.start({ engine: 'auto', dedicatedSessions: 32 }, nowhere);
    assert.equal(relays.engine, 'typescript');
    assert.equal(relays.fellBack, 'there is no binary for this');
    const [[client, inner], [upstream, server]] = await Promise.all([socketPair(), socketPair()]);
    const relay = relays.relay(inner, upstream, { idleTimeout: 0 });
    client.write('hello');
    await until('the bytes', () => server.read()?.toString() === 'hello');
    relay.close();
    assert.equal(await relay.done, 'closed');
    for (const socket of [client, server]) socket.destroy();
    relays.close();
  });

  it('keeps Postern from starting where the native one is asked for and there is none', () => {
    assert.throws(() => Relays.start({ engine: 'native', dedicatedSessions: 32 }, nowhere), {
      code: 'CONFIG_INVALID',
      message: 'relay.engine is "native": there is no binary for this',
    });
  });

  const missing = loadNative().native === undefined && process.env['CI'] !== 'true';
  it('leaves sockets that cannot be handed over to TypeScript', { skip: missing }, async () => {
    const relays = Relays.start({ engine: 'native', dedicatedSessions: 0 });
    await proveDirect();
    assert.equal(relays.engine, 'native');
    const [[client, inner], [upstream, server]] = await Promise.all([socketPair(), socketPair()]);
    // More than the kernel takes at once: Node's queue could not be handed over.
    const greeting = Buffer.alloc(32 * 1024 * 1024, 'g');
    inner.write(greeting);
    const relay = relays.relay(inner, upstream, { idleTimeout: 0 });
    assert.equal(inner.destroyed, false);
    let received = 0;
    client.on('data', (bytes: Buffer) => (received += bytes.length));
    server.end('answer');
    await until('all of it', () => client.readableEnded);
    assert.equal(received, greeting.length + 'answer'.length);
    client.end();
    server.resume();
    assert.equal(await relay.done, 'done');
    relays.close();
  });
});
