import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { collide, isLocal, listenAddress } from '../../src/config/listen.ts';
import { formatAddress } from '../../src/core/address.ts';

describe('an address to listen on', () => {
  for (const [written, meant] of [
    ['tcp://127.0.0.1:5432', 'tcp://127.0.0.1:5432'],
    ['tcp://localhost:0', 'tcp://localhost:0'],
    ['tcp://LOCALHOST:1', 'tcp://localhost:1'],
    ['tcp4://localhost:1', 'tcp://127.0.0.1:1'],
    ['tcp6://localhost:1', 'tcp://[::1]:1'],
    ['tcp://[::1]:1', 'tcp://[::1]:1'],
    ['tcp://[0:0:0:0:0:0:0:1]:1', 'tcp://[::1]:1'],
    ['tcp://:1', 'tcp://[::]:1'],
    ['tcp4://:1', 'tcp://0.0.0.0:1'],
    ['unix:///run/a.sock', 'unix:///run/a.sock'],
    ['unix:///run//b/../a.sock', 'unix:///run/a.sock'],
  ] as const)
    it(`may be written ${written}`, () => assert.equal(formatAddress(listenAddress.parse(written)), meant));

  for (const written of [
    '',
    '127.0.0.1:1',
    'tcp://127.0.0.1',
    'tcp://127.0.0.1:',
    'tcp://127.0.0.1:65536',
    'tcp://127.0.0.1:-1',
    'tcp://::1:1',
    'tcp://[127.0.0.1]:1',
    'tcp://a b:1',
    'tcp://[::1:1',
    'tcp://user@host:1',
    'tcp://h:1/x',
    'tcp4://[::1]:1',
    'tcp6://127.0.0.1:1',
    'udp://127.0.0.1:1',
    'http://127.0.0.1:1',
    'tcp://127.0.0.1:postgres',
    'unix://run/a.sock',
    'unix://',
    'unix:///',
    'unix:///a\0b',
    'unix:///a/',
    `unix:///${'a'.repeat(107)}`,
  ])
    it(`may not be written ${JSON.stringify(written).slice(0, 40)}`, () =>
      assert.equal(listenAddress.safeParse(written).success, false));

  it('may be a path of 107 bytes', () => {
    assert.ok(listenAddress.safeParse(`unix:///${'a'.repeat(106)}`).success);
    assert.ok(!listenAddress.safeParse(`unix:///${'ä'.repeat(54)}`).success);
  });

  it('is local when only this machine can reach it', () => {
    const local = (written: string) => isLocal(listenAddress.parse(written));
    for (const written of [
      'tcp://127.9.9.9:1',
      'tcp://localhost:1',
      'tcp://[::1]:1',
      'tcp://[::ffff:127.0.0.1]:1',
      'unix:///a',
    ])
      assert.ok(local(written), written);
    for (const written of [
      'tcp://0.0.0.0:1',
      'tcp://:1',
      'tcp://[::]:1',
      'tcp://10.0.0.1:1',
      'tcp://127.0.0.1.example.com:1',
      'tcp://[::ffff:10.0.0.1]:1',
    ])
      assert.ok(!local(written), written);
  });

  it('collides with itself and with a wildcard that contains it', () => {
    const both = (a: string, b: string) => collide(listenAddress.parse(a), listenAddress.parse(b));
    assert.ok(both('tcp://127.0.0.1:1', 'tcp://127.0.0.1:1'));
    assert.ok(both('tcp://0.0.0.0:1', 'tcp://127.0.0.1:1'));
    assert.ok(both('tcp://[::1]:1', 'tcp://:1'));
    assert.ok(both('unix:///a', 'unix:///b/../a'));
    assert.ok(!both('tcp://0.0.0.0:1', 'tcp://[::1]:1'));
    assert.ok(!both('tcp://127.0.0.1:0', 'tcp://127.0.0.1:0'));
    assert.ok(!both('tcp://127.0.0.1:1', 'tcp://127.0.0.1:2'));
    assert.ok(!both('tcp://127.0.0.1:1', 'unix:///a'));
  });
});
