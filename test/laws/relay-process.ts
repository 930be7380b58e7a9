import { createServer } from 'node:net';

import { dial } from '../../src/core/dial.ts';
import { Relays } from '../../src/core/relay.ts';

// A process that does nothing but relay, for the law about its sudden death: ENGINE UPSTREAM-PORT. Prints its port.
const [engine, upstreamPort] = process.argv.slice(2);
const relays = Relays.start({
  engine: engine === 'native' ? 'native' : 'typescript',
  dedicatedSessions: 0,
});
const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (client) => {
  void (async () => {
    const target = { kind: 'tcp', host: '127.0.0.1', port: Number(upstreamPort) } as const;
    const { socket } = await dial(target, AbortSignal.timeout(5000));
    relays.relay(client, socket, { idleTimeout: 0 });
  })();
});
server.listen(0, '127.0.0.1', () => {
  const address = server.address();
  if (typeof address === 'object') process.stdout.write(`${address?.port}\n`);
});
