import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { type AddressInfo, connect } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { createServer } from 'node:tls';

import { httpConfiguration, Papers } from '../../../e2e/http-stage.ts';
import { Postern } from '../../../support/postern.ts';
import { smuggling } from './cases.ts';
import { fateOf, RecordingOrigin, type Stage, token, Wire } from './stage.ts';

// What holds for a plain server and for one way of reading has to hold for all of them.

for (const reads of ['onread', 'data'] as const)
  for (const secure of [false, true])
    describe(`smuggling to a server ${secure ? 'under TLS' : 'in clear'}, clients read by ${reads}`, () => {
      const stack = new AsyncDisposableStack();
      let stage: Stage;
      before(async () => {
        const origin = stack.use(await RecordingOrigin.start());
        const papers = stack.use(await Papers.make());
        const { cert, key } = await papers.leaf('127.0.0.1');
        const tls = createServer({ cert: readFileSync(cert), key: readFileSync(key) }, (near) => {
          const far = connect(origin.port, '127.0.0.1');
          near.on('error', () => far.destroy()).on('close', () => far.destroy());
          far.on('error', () => near.destroy()).on('close', () => near.destroy());
          near.pipe(far).pipe(near);
        });
        await once(tls.listen(0, '127.0.0.1'), 'listening');
        stack.defer(() => void tls.close());
        const { port: tlsPort } = tls.address() as AddressInfo;
        const upstream = secure ? `https://127.0.0.1:${tlsPort}` : `http://127.0.0.1:${origin.port}`;
        const config = { upstream, reads, allowPlainHttp: true, tls: { ca: papers.serversCa } };
        const text = httpConfiguration({ api: { config } });
        const postern = stack.use(await Postern.start(text, { env: { TOKEN: token } }));
        const port = postern.port('api');
        stage = {
          origin,
          postern,
          port,
          connect: () => Wire.connect(port),
          [Symbol.asyncDispose]: async () => {},
        };
      });
      after(() => stack.disposeAsync());

      for (const each of smuggling)
        it(`${each.refused === undefined ? 'is understood alike on both sides' : 'is refused'}: ${each.name}`, async () => {
          const { statuses, requests, received } = await fateOf(stage, each.bytes, 'as they come');
          if (each.refused !== undefined) {
            assert.equal(statuses.length, 1, received);
            assert.ok([each.refused].flat().includes(statuses[0] as number), received);
            assert.deepEqual(requests, []);
            return;
          }
          const { head = [], without = [], body, closes } = each.passes ?? {};
          assert.equal(requests.length, closes ? 1 : 2, received);
          const [first, marker] = requests;
          if (!closes) assert.ok(marker?.head.startsWith('GET /marker HTTP/1.1\r\n'));
          for (const part of head) assert.ok(first?.head.includes(part), part);
          for (const part of without) assert.ok(!first?.head.includes(part), part);
          if (body !== undefined) assert.equal(first?.body, body);
        });
    });
