import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { lines, readText } from './files.ts';

/** A file with these services, each a line in braces that listens on one address. */
function file(services: Readonly<Record<string, string>>, listenOn = 'tcp://127.0.0.1:8080'): string {
  const entries = Object.entries(services).map(
    ([name, rest]) => `  ${name}: { listenOn: "${listenOn}", ${rest} }`,
  );
  return ['version: 2', 'services:', ...entries, ''].join('\n');
}

async function problems(services: Readonly<Record<string, string>>, listenOn?: string): Promise<string[]> {
  return lines((await readText(file(services, listenOn))).problems);
}

describe('several services on one listener', () => {
  it('are allowed where their connectors say how, also by two names of it', async () => {
    const { config, problems } = await readText(
      file({ a: 'connector: sharing', b: 'connector: mate', c: 'connector: sharing' }),
    );
    assert.deepEqual(lines(problems), []);
    assert.deepEqual(
      config?.services.map(({ name }) => name),
      ['a', 'b', 'c'],
    );
  });

  it('are not where one of them is of another kind, wherever it stands', async () => {
    const strict = 'connector: strict, credentials: { token: x }, config: { target: y }';
    const also =
      'services.c.listenOn: tcp://127.0.0.1:8080 is also the address of the service "a" (c.yaml:3) (tcp://127.0.0.1:8080)';
    assert.deepEqual(await problems({ a: 'connector: sharing', b: 'connector: mate', c: strict }), [
      `c.yaml:5:18: ${also}`,
    ]);
    assert.equal((await problems({ a: strict, b: 'connector: mate', c: 'connector: sharing' })).length, 1);
    assert.equal((await problems({ a: strict, b: strict })).length, 1);
  });

  it('are told what the connector finds in all of them together, each where it stands', async () => {
    const { problems, warnings } = await readText(
      file({
        a: 'connector: sharing, config: { topic: one }',
        b: 'connector: mate, config: { topic: old }',
        c: 'connector: mate, config: { topic: one }',
      }),
    );
    assert.deepEqual(lines(problems), [
      'c.yaml:5:69: services.c.config.topic: is the topic of another service here',
    ]);
    assert.deepEqual(lines(warnings), ['c.yaml:4:69: services.b.config.topic: is old']);
  });

  it('do not share a port that is any free one, nor an address that is written otherwise', async () => {
    const same = 'connector: sharing, config: { topic: one }';
    assert.deepEqual(await problems({ a: same, b: same }, 'tcp://127.0.0.1:0'), []);
    const wide = `version: 2
services:
  a: { listenOn: "tcp://127.0.0.1:8080", connector: sharing }
  b: { listenOn: "tcp://0.0.0.0:8080", exposed: true, connector: sharing }
`;
    assert.match(lines((await readText(wide)).problems).join(), /b\.listenOn: .* is also the address of/);
  });

  it('have the certificate, the permissions and the limits of the first', async () => {
    const taken = 'is taken from the first service of this listener, "a"; give the same or nothing here';
    const unix = 'unix:///run/x.sock';
    assert.deepEqual(
      await problems({ a: 'connector: sharing, socketMode: "0660"', b: 'connector: sharing' }, unix),
      [],
    );
    assert.deepEqual(
      await problems({ a: 'connector: sharing', b: 'connector: sharing, socketMode: "0660"' }, unix),
      [`c.yaml:4:60: services.b.socketMode: ${taken}`],
    );
    const tls = 'listenTls: { cert: a, key: b }';
    const limits = 'limits: { maxConnections: 7 }';
    const first = `connector: sharing, ${tls}, ${limits}`;
    assert.deepEqual(await problems({ a: first, b: first, c: 'connector: mate' }), []);
    assert.deepEqual(await problems({ a: 'connector: sharing', b: first }), [
      `c.yaml:4:62: services.b.listenTls: ${taken}`,
      `c.yaml:4:94: services.b.limits: ${taken}`,
    ]);
    assert.deepEqual(await problems({ a: 'connector: mate', b: 'connector: mate, limits: {}' }), []);
  });
});
