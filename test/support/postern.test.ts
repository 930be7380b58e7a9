import assert from 'node:assert/strict';
import { it } from 'node:test';

import { Postern } from './postern.ts';
import { canary } from './servers.ts';

it('a program that prints a canary, be it as a name in its log, fails the test that stops it', async () => {
  const postern = await Postern.start(
    JSON.stringify({
      version: 2,
      services: {
        [canary.postgres]: {
          connector: 'postgres',
          listenOn: 'tcp://127.0.0.1:0',
          credentials: { username: 'u', password: { from: 'env', get: 'PASSWORD' } },
          config: { host: '127.0.0.1', port: 1 },
        },
      },
    }),
    { env: { PASSWORD: 'x' } },
  );
  await assert.rejects(postern.stop(), /a secret is in the output of postern/);
});
