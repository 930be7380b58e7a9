import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { encodeMessage, int32 } from '../../../src/connectors/postgres/messages.ts';
import { Access, type LocalPassword } from '../../../src/core/access.ts';
import { Credentials } from '../../../src/core/credentials.ts';
import { Secret } from '../../../src/core/secret.ts';
import { fieldsOf, messagesOf, startup } from '../../support/fake-postgres.ts';
import { type Peer, paces, Served } from '../../support/session.ts';

const lent: Buffer[] = [];
const password: LocalPassword = {
  username: undefined,
  lend: async (use) => {
    const bytes = Buffer.from('local password');
    lent.push(bytes);
    using credentials = new Credentials(new Map([['password', new Secret(bytes)]]));
    return await use(credentials);
  },
  prepared: undefined as never,
};

function served(pace: (typeof paces)[number]): Promise<Served> {
  const rules = {
    uids: undefined,
    gids: undefined,
    executables: undefined,
    maxConnectionsPerPeer: undefined,
    loginRate: undefined,
    loginRatePerPeer: undefined,
  };
  return Served.open({
    credentials: { username: 'app', password: 'of the server' },
    settings: { host: '127.0.0.1', port: 1, tls: { mode: 'disable' } },
    access: new Access('test', rules, password, async () => undefined),
    pace,
  });
}

function initial(first: string, mechanism = 'SCRAM-SHA-256'): Buffer {
  return encodeMessage('p', Buffer.from(`${mechanism}\0`), int32(first.length), Buffer.from(first));
}

/** Reads AuthenticationSASL, which offers one mechanism. */
async function asked(client: Peer): Promise<void> {
  assert.equal((await client.read(24)).toString('latin1', 9), 'SCRAM-SHA-256\0\0');
}

for (const pace of paces)
  describe(`the local login of PostgreSQL, ${pace}`, () => {
    for (const [what, bytes, told] of [
      ['a query', encodeMessage('Q', Buffer.from('select 1\0')), /another kind or length/],
      ['a message without end', Buffer.of(0x70, 0x7f, 0xff, 0xff, 0xff), /another kind or length/],
      ['a negative length', Buffer.of(0x70, 0xff, 0xff, 0xff, 0xff), /another kind or length/],
      ['a password in clear', encodeMessage('p', Buffer.from('guess\0')), /mechanism is not/],
      ['another mechanism', initial('n,,n=,r=abc', 'SCRAM-SHA-256-PLUS'), /mechanism is not/],
      ['a binding to a channel', initial('p=tls-unique,,n=,r=abc'), /was not offered/],
      ['another identity', initial('n,a=admin,n=,r=abc'), /not a nonce/],
      ['no nonce', initial('n,,n=,r='), /not a nonce/],
      ['an extension', initial('n,,m=1,n=,r=abc'), /not a nonce/],
      [
        'a length that is wrong',
        encodeMessage('p', Buffer.from('SCRAM-SHA-256\0'), int32(5000), Buffer.from('n,,n=,r=abc')),
        /cut off/,
      ],
    ] as const)
      it(`refuses ${what}, and asks neither provider nor server`, async () => {
        await using both = await served(pace);
        const client = await both.connect();
        client.send(
          startup([
            ['user', 'me'],
            ['database', 'app'],
          ]),
        );
        await asked(client);
        client.send(bytes);
        const [error] = messagesOf(await client.rest());
        assert.ok(error);
        assert.match(fieldsOf(error.body)['M'] ?? '', told);
        client.end();
        assert.equal((await both.ended()).outcome, 'CLIENT_PROTOCOL');
        assert.equal(both.fetches, 0);
      });

    it('refuses a last message that does not belong to the first, and a proof that is none', async () => {
      for (const [final, outcome] of [
        [(nonce: string) => `c=eSws,r=${nonce},p=${Buffer.alloc(32).toString('base64')}`, 'CLIENT_PROTOCOL'],
        [(nonce: string) => `c=biws,r=${nonce}x,p=${Buffer.alloc(32).toString('base64')}`, 'CLIENT_PROTOCOL'],
        [(nonce: string) => `c=biws,r=${nonce},p=AAAA`, 'CLIENT_PROTOCOL'],
        [(nonce: string) => `c=biws,r=${nonce},p=${Buffer.alloc(32).toString('base64')}`, 'ACCESS_DENIED'],
      ] as const) {
        await using both = await served(pace);
        const client = await both.connect();
        client.send(
          startup([
            ['user', 'me'],
            ['database', 'app'],
          ]),
        );
        await asked(client);
        client.send(initial('n,,n=,r=abc'));
        const head = await client.read(9);
        const first = (await client.read(head.readInt32BE(1) - 8)).toString();
        client.send(encodeMessage('p', Buffer.from(final(/^r=([^,]+)/.exec(first)?.[1] ?? ''))));
        await client.rest();
        client.end();
        assert.equal((await both.ended()).outcome, outcome);
        assert.equal(both.fetches, 0);
      }
    });

    it('lets go of the password when the client leaves in the middle', async () => {
      await using both = await served(pace);
      const client = await both.connect();
      client.send(
        startup([
          ['user', 'me'],
          ['database', 'app'],
        ]),
      );
      await asked(client);
      client.reset();
      assert.equal((await both.ended()).outcome, 'CLIENT_CLOSED');
      assert.ok(lent.every((bytes) => bytes.every((byte) => byte === 0)));
    });
  });
