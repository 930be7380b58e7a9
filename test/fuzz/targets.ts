import assert from 'node:assert/strict';
import { isUtf8 } from 'node:buffer';
import { readdirSync, readFileSync } from 'node:fs';

import { tlsServerEndPoint } from '../../src/connectors/postgres/auth/channel-binding.ts';
import { saslprep } from '../../src/connectors/postgres/auth/saslprep.ts';
import { chooseMechanism, ScramClient } from '../../src/connectors/postgres/auth/scram.ts';
import { postgresTargets } from './postgres.ts';

/** Something that reads bytes of a stranger. One entry in `targets` is all that a new one needs. */
export interface FuzzTarget {
  /** Also the name of its folder under `corpus/`. */
  readonly name: string;
  /** Well-formed inputs and some that are nearly so: mutation starts from them, and they are replayed as tests. */
  readonly seedInputs: readonly Buffer[];
  /** Reads `bytes` and asserts what must be true of the result. May throw a PosternError; anything else is a finding. */
  run(bytes: Buffer): void | Promise<void>;
}

const auth = new URL('../connectors/postgres/auth/fixtures/', import.meta.url);
const certificates = readdirSync(new URL('certificates/', auth))
  .filter((name) => name.endsWith('.der'))
  .map((name) => readFileSync(new URL(`certificates/${name}`, auth)));
const passwords = JSON.parse(readFileSync(new URL('saslprep-postgres-18.json', auth), 'utf8')) as {
  password: string;
}[];

const afterServerFirst = async () => {
  const client = new ScramClient({ mechanism: 'SCRAM-SHA-256', gs2Flag: 'n' }, { nonce: 'ours' });
  await client.clientFinal(Buffer.from('r=ours+theirs,s=QQ==,i=1'), Buffer.from('pencil'), scramOptions);
  return client;
};
const scramOptions = {
  maxIterations: 20,
  derive: (_label: string, compute: () => Promise<Buffer>) => compute(),
};
/** What a server that knows the password answers to `afterServerFirst`. */
const rightSignature = 'v=RuVBqAD+p/+MDdLaTdNy/v6iRReJonqR3/6FT6NYDxk=';

export const targets: readonly FuzzTarget[] = [
  ...postgresTargets,
  {
    name: 'scram-mechanisms',
    seedInputs: text('SCRAM-SHA-256\0SCRAM-SHA-256-PLUS\0', 'SCRAM-SHA-256\0', 'OAUTHBEARER\0', ''),
    run(bytes) {
      const offered = bytes.toString('latin1').split('\0');
      const choice = chooseMechanism({
        offered,
        tls: true,
        bindingData: undefined,
        channelBinding: 'prefer',
      });
      assert.deepEqual(choice, { mechanism: 'SCRAM-SHA-256', gs2Flag: 'n' });
      assert.ok(offered.includes('SCRAM-SHA-256'));
    },
  },
  {
    name: 'scram-server-first',
    seedInputs: text(
      'r=ours+theirs,s=QQ==,i=1',
      'r=ours%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=20',
      'm=ext,r=ours+theirs,s=QQ==,i=1',
      'r=ours+theirs,s=QQ==,i=4096,x=y',
    ),
    async run(bytes) {
      const client = new ScramClient({ mechanism: 'SCRAM-SHA-256', gs2Flag: 'n' }, { nonce: 'ours' });
      const final = await client.clientFinal(bytes, Buffer.from('pencil'), scramOptions);
      assert.match(final.toString('latin1'), /^c=biws,r=ours[\x21-\x2b\x2d-\x7e]+,p=[A-Za-z0-9+/]{43}=$/);
      assert.match(bytes.toString('latin1'), /^r=ours[^,]+,s=[A-Za-z0-9+/]+={0,2},i=[0-9]+$/);
      assert.ok(client.iterations && client.iterations <= scramOptions.maxIterations);
    },
  },
  {
    name: 'scram-server-final',
    seedInputs: text(
      rightSignature,
      'v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=',
      'e=invalid-proof',
      'e=other-error',
    ),
    async run(bytes) {
      const client = await afterServerFirst();
      try {
        client.verify(bytes);
      } finally {
        assert.equal(client.verified, bytes.equals(Buffer.from(rightSignature)));
      }
    },
  },
  {
    name: 'channel-binding-der',
    seedInputs: certificates,
    run(bytes) {
      const data = tlsServerEndPoint(bytes);
      assert.ok(data === undefined || [28, 32, 48, 64].includes(data.length));
    },
  },
  {
    name: 'saslprep',
    seedInputs: text(...passwords.map(({ password }) => password)),
    run(bytes) {
      const given = Buffer.from(bytes);
      const prepared = saslprep(bytes);
      assert.deepEqual(bytes, given);
      if (isUtf8(bytes)) assert.ok(isUtf8(prepared));
      else assert.deepEqual(prepared, bytes);
      if (!prepared.equals(bytes)) assert.deepEqual(saslprep(prepared), prepared);
    },
  },
];

function text(...inputs: string[]): Buffer[] {
  return inputs.map((input) => Buffer.from(input));
}
