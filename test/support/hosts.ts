// Loaded into the program before its own code (`--import`): answers for the names in TEST_HOSTS, as an entry in /etc/hosts
// would. `a=127.0.0.1,b=10.0.0.1|127.0.0.1`: an answer for each question, the last one for all further ones.
import type { LookupOptions } from 'node:dns';
import dns from 'node:dns/promises';
import { syncBuiltinESMExports } from 'node:module';

const answers = new Map(
  (process.env['TEST_HOSTS'] ?? '')
    .split(',')
    .map((entry) => entry.split('='))
    .map(([name = '', addresses = '']) => [name, addresses.split('|')]),
);
const lookup = dns.lookup.bind(dns);

async function answered(host: string, options: LookupOptions): Promise<unknown> {
  const known = answers.get(host);
  if (!known) return await lookup(host, options);
  const address = (known.length > 1 ? known.shift() : known[0]) ?? '';
  const found = { address, family: address.includes(':') ? 6 : 4 };
  return options.all ? [found] : found;
}

dns.lookup = answered as typeof dns.lookup;
syncBuiltinESMExports();
