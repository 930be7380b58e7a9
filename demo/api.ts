import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

/** Starts an HTTP API on this machine that wants `token` and ends with the demo; gives its port. */
export async function startApi(token: string): Promise<number> {
  const server = createServer((request, response) => {
    const known = request.headers.authorization === `Bearer ${token}`;
    response.writeHead(known ? 200 : 401, { 'Content-Type': 'text/plain' });
    response.end(known ? '3 orders are on their way\n' : 'who are you?\n');
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}
