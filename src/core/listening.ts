import type { Server } from 'node:net';

import { type Address, formatAddress } from './address.ts';
import { PosternError, reasonOf } from './errors.ts';

/** Has a server of HTTP listen on an address, `purpose` being what it is for in words. Throws LISTEN_FAILED. */
export async function listening(server: Server, address: Address, purpose: string): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once('listening', resolve);
  server.once('error', reject);
  server.listen(
    address.kind === 'unix' ? { path: address.path } : { host: address.host, port: address.port },
  );
  try {
    await promise;
  } catch (cause) {
    const message = `cannot listen on ${formatAddress(address)} for ${purpose}: ${reasonOf(cause)}`;
    throw new PosternError('LISTEN_FAILED', message, { cause });
  }
  server.off('error', reject);
  server.on('error', () => {});
}
