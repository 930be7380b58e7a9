import { createServer } from 'node:net';

// A PostgreSQL that trusts everybody and knows one answer: for 10,000 idle sessions, which a real one needs a process
// each for. Run as a process of its own; prints its port.

const message = (type: string, ...body: readonly (string | Buffer)[]): Buffer => {
  const bytes = Buffer.concat(
    body.map((part) => (typeof part === 'string' ? Buffer.from(`${part}\0`) : part)),
  );
  const head = Buffer.alloc(5);
  head.write(type);
  head.writeInt32BE(bytes.length + 4, 1);
  return Buffer.concat([head, bytes]);
};
const idle = message('Z', Buffer.from('I'));
const greeting = Buffer.concat([
  message('R', Buffer.alloc(4)),
  message('S', 'server_version', '18.0'),
  message('S', 'server_encoding', 'UTF8'),
  message('S', 'client_encoding', 'UTF8'),
  message('S', 'standard_conforming_strings', 'on'),
  message('K', Buffer.alloc(8, 7)),
  idle,
]);
const answer = Buffer.concat([message('C', 'SELECT 0'), idle]);

const server = createServer({ noDelay: true }, (client) => {
  // Messages are small and come whole: the first is the start, whatever follows is a query or the end.
  client.once('data', () => {
    client.write(greeting);
    client.on('data', (bytes) => (bytes[0] === 0x58 ? client.end() : client.write(answer)));
  });
  client.on('error', () => client.destroy());
});
server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 }, () => {
  const address = server.address();
  if (address !== null && typeof address === 'object') process.stdout.write(`${address.port}\n`);
});
process.on('disconnect', () => process.exit());
