import { BlockList, isIP } from 'node:net';

import { normalHost } from './target.ts';

// Addresses that a client outside must not reach through a broker inside: a cloud's metadata service hands out
// credentials to whoever asks from the right place, and this program is in the right place (server-side request forgery).

/** What an address is, where it is not one of the open Internet. */
export type Locality = 'loopback' | 'private' | 'link-local' | 'metadata' | 'reserved';

/** How exactly a rule named the host that turned out to have an address. */
export type Named =
  /** This very host. */
  | 'exactly'
  /** A pattern that fits it, or no rule at all. */
  | 'by pattern';

const ranges: readonly (readonly [Locality, readonly string[]])[] = [
  [
    'metadata',
    [
      '169.254.169.254/32', // AWS, Azure, Google Cloud, OpenStack, DigitalOcean, Oracle
      '169.254.170.2/32', // AWS ECS task credentials
      '169.254.170.23/32', // AWS EKS pod identity
      '169.254.169.123/32', // AWS time
      '100.100.100.200/32', // Alibaba Cloud
      '168.63.129.16/32', // Azure, host agent
      '192.0.0.192/32', // Oracle Cloud, old
      'fd00:ec2::254/128', // AWS
      'fd00:ec2::23/128', // AWS EKS pod identity
      'fd20:ce::254/128', // Google Cloud
      'fd00:42::42/128', // Scaleway
    ],
  ],
  ['loopback', ['127.0.0.0/8', '0.0.0.0/8', '::1/128', '::/128']],
  ['link-local', ['169.254.0.0/16', 'fe80::/10']],
  ['private', ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10', 'fc00::/7', 'fec0::/10']],
  [
    'reserved',
    [
      '192.0.0.0/24',
      '192.0.2.0/24',
      '192.88.99.0/24',
      '198.18.0.0/15',
      '198.51.100.0/24',
      '203.0.113.0/24',
      '224.0.0.0/4',
      '240.0.0.0/4',
      'ff00::/8',
      '100::/64',
      '2001:db8::/32',
      '2001::/32', // Teredo: an IPv4 address in disguise
      '64:ff9b:1::/48', // translated to IPv4 by local rules
    ],
  ],
];

const lists = ranges.map(([locality, networks]) => {
  const list = new BlockList();
  for (const network of networks) {
    const [address = '', bits] = network.split('/');
    list.addSubnet(address, Number(bits), isIP(address) === 6 ? 'ipv6' : 'ipv4');
  }
  return [locality, list] as const;
});

/** Names by which metadata services are known to those who run inside. */
const metadataNames: ReadonlySet<string> = new Set([
  'metadata',
  'metadata.google.internal',
  'metadata.goog',
  'instance-data',
  'instance-data.ec2.internal',
  'metadata.azure.internal',
  'metadata.tencentyun.com',
]);

/** What a host is by its spelling alone: an address in any form that a resolver takes, or a well-known name. */
export function localityOfHost(host: string): Locality | undefined {
  const name = (normalHost(host) ?? host).toLowerCase().replace(/\.$/, '');
  if (metadataNames.has(name)) return 'metadata';
  if (name === 'localhost' || name.endsWith('.localhost') || name === 'ip6-localhost') return 'loopback';
  const address = numericAddress(name);
  return address === undefined ? undefined : localityOf(address);
}

/** What an IP address is; undefined: one of the open Internet. An IPv4 address inside an IPv6 one counts as itself. */
export function localityOf(address: string): Locality | undefined {
  const version = isIP(address);
  if (version === 0) return 'reserved';
  const embedded = version === 6 ? embeddedIpv4(address) : undefined;
  if (embedded !== undefined) return localityOf(embedded);
  const family = version === 6 ? 'ipv6' : 'ipv4';
  return lists.find(([, list]) => list.check(address, family))?.[0];
}

/**
 * Whether a service may be taken to this address, which is that of `host` or what it resolves to. Whom a rule names is the
 * administrator's to say, and a name inside a network has a private address. But metadata and link-local addresses
 * have to be written as such: no honest name leads there, so one that does was changed.
 */
export function mayReach(address: string, host: string, named: Named): boolean {
  const locality = localityOf(address);
  if (locality === undefined) return true;
  if (named === 'by pattern') return false;
  if (localityOfHost(host) === locality) return true;
  return locality === 'private' || locality === 'loopback';
}

/** The address that a resolver makes of a host that is one in some spelling: `0x7f.1`, `2130706433`, `[::1]`. */
function numericAddress(host: string): string | undefined {
  const bare = host.startsWith('[') && host.endsWith(']') ? host.slice(1, -1) : host;
  const zoneless = bare.replace(/%.*$/, '');
  if (isIP(zoneless) !== 0) return zoneless;
  if (!/^[0-9a-fx.]+$/.test(bare) || !URL.canParse(`http://${bare}/`)) return undefined;
  const { hostname } = new URL(`http://${bare}/`);
  return isIP(hostname) === 4 ? hostname : undefined;
}

/** IPv4-mapped, IPv4-compatible, 6to4 and NAT64 addresses lead to the IPv4 address that they hold. */
function embeddedIpv4(address: string): string | undefined {
  const words = wordsOf(address);
  const at = (i: number) => words[i] ?? 0;
  const quad = (i: number) => [at(i) >> 8, at(i) & 255, at(i + 1) >> 8, at(i + 1) & 255].join('.');
  const zeros = (count: number) => words.slice(0, count).every((word) => word === 0);
  if (zeros(5) && at(5) === 0xffff) return quad(6);
  if (zeros(4) && at(4) === 0xffff && at(5) === 0) return quad(6);
  if (zeros(6) && !(at(6) === 0 && at(7) <= 1)) return quad(6);
  if (at(0) === 0x64 && at(1) === 0xff9b && words.slice(2, 6).every((word) => word === 0)) return quad(6);
  if (at(0) === 0x2002) return quad(1);
  return undefined;
}

function wordsOf(address: string): number[] {
  const { hostname } = new URL(`http://[${address.replace(/%.*$/, '')}]/`);
  const [head = '', tail] = hostname.slice(1, -1).split('::');
  const words = (text: string) =>
    text === '' ? [] : text.split(':').map((word) => Number.parseInt(word, 16));
  const first = words(head);
  if (tail === undefined) return first;
  const last = words(tail);
  return [...first, ...Array.from({ length: 8 - first.length - last.length }, () => 0), ...last];
}
