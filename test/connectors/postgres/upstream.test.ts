import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { createSecureContext } from 'node:tls';

import { customs } from '../../../src/connectors/postgres/upstream.ts';
import { addressOf } from '../../../src/connectors/upstream.ts';
import {
  authentication,
  broker,
  fieldsOf,
  greeting,
  int32,
  messagesOf,
  packet,
  readUntil,
  type Script,
  type ServerEnd,
  startup,
} from '../../support/fake-postgres.ts';
import { certificates } from '../../support/servers.ts';
import { paces } from '../../support/session.ts';

const { server: leaf } = await certificates();
const secureContext = createSecureContext({ cert: readFileSync(leaf.cert), key: readFileSync(leaf.key) });

const sslRequest = packet(int32(80877103));
const verified = { mode: 'verify-full', ca: leaf.ca };

async function asked(server: ServerEnd): Promise<void> {
  assert.deepEqual(await server.read(8), sslRequest);
}

const logIn: Script = async (server) => {
  await server.startup();
  server.send(authentication(0), ...greeting);
};

for (const pace of paces) {
  const outcomeOf = async (script: Script, settings: Record<string, unknown> = {}) => {
    await using opened = await broker(script, {
      pace,
      loginTimeout: 2000,
      settings: { tls: verified, ...settings },
    });
    const client = await opened.served.connect();
    client.send(startup([['user', 'whoever']]));
    const heard = await readUntil(client, 'ZE');
    const last = heard.at(-1);
    if (last?.type === 'E') {
      assert.equal(heard.length, 1);
      assert.equal((await client.rest()).length, 0);
    }
    client.end();
    const { outcome } = await opened.served.ended();
    const told = last?.type === 'E' ? fieldsOf(messagesOf(last.bytes)[0]?.body ?? last.body) : {};
    return { outcome, told, line: opened.served.endings[0] ?? {} };
  };

  describe(`TLS towards the server, ${pace}`, () => {
    it('is asked for, verified and used', async () => {
      const { outcome, line } = await outcomeOf(async (server) => {
        await asked(server);
        server.send(Buffer.from('S'));
        await server.acceptTls(secureContext);
        await logIn(server);
      });
      assert.equal(outcome, 'ok');
      assert.equal(line['upstreamTls'], 'TLSv1.3');
    });

    it('starts at once with ALPN where the service says so', async () => {
      const { outcome } = await outcomeOf(
        async (server) => {
          const secure = await server.acceptTls(secureContext, ['postgresql']);
          assert.equal(secure.alpnProtocol, 'postgresql');
          await logIn(server);
        },
        { tls: { ...verified, negotiation: 'direct' } },
      );
      assert.equal(outcome, 'ok');
    });

    it('is refused when it started at once and the server agreed to no protocol', async () => {
      const { outcome, told } = await outcomeOf(
        async (server) => {
          await server.acceptTls(secureContext);
          assert.equal(
            (await server.rest()).length,
            0,
            'something was said to a server that speaks another protocol',
          );
        },
        { tls: { ...verified, negotiation: 'direct' } },
      );
      assert.equal(outcome, 'UPSTREAM_TLS');
      assert.equal(told['C'], '08001');
    });

    for (const [what, injected] of Object.entries({
      'one byte': Buffer.from('S\0'),
      'a whole login': Buffer.concat([Buffer.from('S'), authentication(0), ...greeting]),
    }))
      it(`is refused when the server sends ${what} in clear behind its yes (CVE-2021-23222)`, async () => {
        const { outcome, told } = await outcomeOf(async (server) => {
          await asked(server);
          server.send(injected);
          const said = await server.rest();
          assert.ok(!said.includes('user'), 'the login was begun');
        });
        assert.equal(outcome, 'UPSTREAM_TLS');
        assert.equal(told['C'], '08001');
      });

    it('is not given up when the server has none', async () => {
      for (const mode of ['require', 'verify-ca', 'verify-full']) {
        const { outcome, line } = await outcomeOf(
          async (server) => {
            await asked(server);
            server.send(Buffer.from('N'));
            assert.equal((await server.rest()).length, 0, 'something was said in clear');
          },
          { tls: { mode } },
        );
        assert.equal(outcome, 'UPSTREAM_TLS');
        assert.match(String(line['error']), /does not support TLS/);
      }
    });

    it('shows nobody what a server says in place of an answer (CVE-2024-10977)', async () => {
      const { outcome, told, line } = await outcomeOf(async (server) => {
        await asked(server);
        server.send(Buffer.from('Efake error of a man in the middle'));
        await server.rest();
      });
      assert.equal(outcome, 'UPSTREAM_TLS');
      assert.doesNotMatch(JSON.stringify([told, line]), /fake error/);
    });

    for (const said of ['s', '\0', 'HTTP/1.1 400', '\u0016', 'G'])
      it(`fails when the answer is ${JSON.stringify(said)}`, async () => {
        const { outcome, told } = await outcomeOf(async (server) => {
          await asked(server);
          server.send(Buffer.from(said));
          await server.rest();
        });
        assert.equal(outcome, 'UPSTREAM_PROTOCOL');
        assert.equal(told['C'], '08006');
      });

    it('fails at once when the server leaves in place of an answer, or behind it, or in the handshake', async () => {
      for (const said of ['', 'S', 'S\u0016\u0003']) {
        const started = performance.now();
        const { outcome } = await outcomeOf(async (server) => {
          await asked(server);
          server.send(Buffer.from(said));
          if (said.length > 1) await server.read(100);
          server.end();
        });
        assert.ok(['UPSTREAM_CLOSED', 'UPSTREAM_TLS'].includes(outcome), outcome);
        assert.ok(performance.now() - started < 8000);
      }
    });

    it('has the time of connectTimeout, handshake included', async () => {
      for (const said of ['', 'S']) {
        const { outcome, line } = await outcomeOf(
          async (server) => {
            await asked(server);
            server.send(Buffer.from(said));
            await server.rest();
          },
          { connectTimeout: '150ms' },
        );
        assert.equal(outcome, 'UPSTREAM_UNREACHABLE');
        assert.match(String(line['error']), /did not take the connection within 0\.15 s/);
      }
    });
  });
}

describe('the address of a server', () => {
  for (const [host, expected] of [
    ['db', { kind: 'tcp', host: 'db', port: 5432 }],
    ['db:5433', { kind: 'tcp', host: 'db', port: 5433 }],
    ['10.0.0.1:1', { kind: 'tcp', host: '10.0.0.1', port: 1 }],
    ['::1', { kind: 'tcp', host: '::1', port: 5432 }],
    ['[::1]', { kind: 'tcp', host: '::1', port: 5432 }],
    ['[fe80::1]:65535', { kind: 'tcp', host: 'fe80::1', port: 65535 }],
    ['/run/postgresql', { kind: 'unix', path: '/run/postgresql/.s.PGSQL.5432' }],
    ['/run/postgresql/', { kind: 'unix', path: '/run/postgresql/.s.PGSQL.5432' }],
  ] as const)
    it(`is read from ${host}`, () => assert.deepEqual(addressOf(host, 5432, customs), expected));

  it('has a port that exists', () => {
    for (const host of ['db:0', 'db:65536', '[::1]:99999'])
      assert.throws(() => addressOf(host, 5432, customs), { code: 'CONFIG_INVALID' });
  });
});
