import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { localityOf, localityOfHost, mayReach } from '../../../src/connectors/http/addresses.ts';

describe('an address', () => {
  it('is known for what it is', () => {
    for (const [locality, addresses] of [
      ['metadata', ['169.254.169.254', '169.254.170.2', '100.100.100.200', '168.63.129.16', 'fd00:ec2::254']],
      ['loopback', ['127.0.0.1', '127.255.255.255', '0.0.0.0', '0.1.2.3', '::1', '::']],
      ['link-local', ['169.254.0.1', '169.254.255.255', 'fe80::1', 'febf::1', 'fe80::1%eth0']],
      [
        'private',
        ['10.0.0.1', '172.16.0.1', '172.31.255.255', '192.168.1.1', '100.64.0.1', 'fc00::1', 'fd12:3456::1'],
      ],
      [
        'reserved',
        [
          '224.0.0.1',
          '255.255.255.255',
          '240.0.0.1',
          '192.0.2.1',
          'ff02::1',
          '2001:db8::1',
          '2001::1',
          'x',
          '',
        ],
      ],
      [
        undefined,
        [
          '8.8.8.8',
          '172.32.0.1',
          '172.15.0.1',
          '100.128.0.1',
          '169.253.1.1',
          '11.0.0.1',
          '2600::1',
          '193.0.0.1',
        ],
      ],
    ] as const)
      for (const address of addresses) assert.equal(localityOf(address), locality, address);
  });

  it('of IPv4 is the same inside one of IPv6', () => {
    for (const [address, locality] of [
      ['::ffff:127.0.0.1', 'loopback'],
      ['::ffff:a9fe:a9fe', 'metadata'],
      ['::ffff:169.254.169.254', 'metadata'],
      ['0:0:0:0:0:ffff:a00:1', 'private'],
      ['::127.0.0.1', 'loopback'],
      ['::a00:1', 'private'],
      ['::ffff:0:10.0.0.1', 'private'],
      ['64:ff9b::a9fe:a9fe', 'metadata'],
      ['64:ff9b::169.254.169.254', 'metadata'],
      ['64:ff9b:1::1', 'reserved'],
      ['2002:a9fe:a9fe::1', 'metadata'],
      ['2002:7f00:1::', 'loopback'],
      ['2002:808:808::', undefined],
      ['::ffff:8.8.8.8', undefined],
      ['64:ff9b::8.8.8.8', undefined],
    ] as const)
      assert.equal(localityOf(address), locality, address);
  });

  it('is found in a host in every spelling that a resolver takes', () => {
    for (const [host, locality] of [
      ['localhost', 'loopback'],
      ['LOCALHOST.', 'loopback'],
      ['x.localhost', 'loopback'],
      ['127.1', 'loopback'],
      ['2130706433', 'loopback'],
      ['0x7f000001', 'loopback'],
      ['0x7F.0.0.1', 'loopback'],
      ['0177.0.0.1', 'loopback'],
      ['017700000001', 'loopback'],
      ['0', 'loopback'],
      ['0xA9FEA9FE', 'metadata'],
      ['2852039166', 'metadata'],
      ['0251.0376.0251.0376', 'metadata'],
      ['169.254.43518', 'metadata'],
      ['[::ffff:169.254.169.254]', 'metadata'],
      ['[::1]', 'loopback'],
      ['fe80::1%lo', 'link-local'],
      ['metadata.google.internal', 'metadata'],
      ['Metadata.Google.Internal.', 'metadata'],
      ['metadata', 'metadata'],
      ['0x0a.1', 'private'],
      ['api.example.com', undefined],
      ['8.8.8.8', undefined],
      ['134744072', undefined],
      ['metadata.example.com', undefined],
      ['deadbeef', undefined],
    ] as const)
      assert.equal(localityOfHost(host), locality, host);
  });

  it('inside is reached only where a rule names its host, and a metadata service only under its own name', () => {
    for (const [address, host, named, reached] of [
      ['8.8.8.8', 'api.example.com', 'by pattern', true],
      ['2600::1', 'api.example.com', 'exactly', true],
      ['10.0.0.1', 'api.internal.example', 'exactly', true],
      ['10.0.0.1', 'api.internal.example', 'by pattern', false],
      ['127.0.0.1', 'api.example.com', 'by pattern', false],
      ['127.0.0.1', 'api.test', 'exactly', true],
      ['127.0.0.1', 'localhost', 'exactly', true],
      ['169.254.169.254', 'api.example.com', 'exactly', false],
      ['::ffff:169.254.169.254', 'api.example.com', 'exactly', false],
      ['fd00:ec2::254', 'api.example.com', 'exactly', false],
      ['169.254.10.1', 'api.example.com', 'exactly', false],
      ['169.254.169.254', '169.254.169.254', 'exactly', true],
      ['169.254.169.254', 'metadata.google.internal', 'exactly', true],
      ['169.254.169.254', 'metadata.google.internal', 'by pattern', false],
      ['255.255.255.255', 'api.example.com', 'exactly', false],
    ] as const)
      assert.equal(mayReach(address, host, named), reached, `${host} ${address} ${named}`);
  });
});
