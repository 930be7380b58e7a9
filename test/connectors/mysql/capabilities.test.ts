import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import {
  agreedCapabilities,
  type Capabilities,
  capability,
  has,
  offeredCapabilities,
  upstreamCapabilities,
} from '../../../src/connectors/mysql/capabilities.ts';

/** What real servers said of themselves. */
const mysql9 = { flags: 0xdfffffff, extended: 0 };
const mariadb11 = { flags: 0x81fffffe, extended: 0x3d };

/** What real clients answered to a MySQL 9.7. */
const clients = {
  'mysql CLI 9.7': 0x19bfa285,
  mysql2: 0x08baf3cf,
  mysqljs: 0x0006f3cf,
  PyMySQL: 0x003aa205,
  'mysql-connector-python': 0x083ba20d,
  asyncmy: 0x013ba205,
  'go-sql-driver': 0x013aa285,
  'MariaDB CLI 10.11': 0x00bfa285,
  'Connector/J': 0x093ea207,
  'MariaDB Connector/J': 0x01bea382,
  'mariadb npm': 0x01bea302,
  PHP: 0x001aa285,
} as const;

/** Bits that change what either side sends after the login. */
const changesBytes =
  capability.foundRows |
  capability.interactive |
  capability.multiStatements |
  capability.multiResults |
  capability.preparedMultiResults |
  capability.expiredPasswords |
  capability.sessionTrack |
  capability.deprecateEof |
  capability.optionalMetadata |
  capability.queryAttributes;

const nothing = { tls: false, database: false, attributes: false };

const flags = fc.integer({ min: 0, max: 0xffffffff });
const capabilities: fc.Arbitrary<Capabilities> = fc.record({
  flags,
  extended: fc.integer({ min: 0, max: 0xff }),
});
const needs = fc.record({ tls: fc.boolean(), database: fc.boolean(), attributes: fc.boolean() });
const policy = fc.record({ tls: fc.boolean(), localFiles: fc.boolean() });

describe('capabilities', () => {
  it('offered are those of the server, without what cannot pass through', () => {
    assert.deepEqual(offeredCapabilities(mysql9, { tls: false, localFiles: true }), {
      flags: 0xcbfff7df,
      extended: 0,
    });
    // Bit 28 is not in a MariaDB, nor are compression by zstd and query attributes.
    assert.deepEqual(offeredCapabilities(mariadb11, { tls: false, localFiles: true }), {
      flags: 0x81fff7de,
      extended: 0x3d,
    });
  });

  it('offer TLS by what the service has, not by what the server has', () => {
    const withoutTls = { flags: mysql9.flags - capability.ssl, extended: 0 };
    for (const server of [mysql9, withoutTls])
      for (const tls of [true, false])
        assert.equal(has(offeredCapabilities(server, { tls, localFiles: false }).flags, capability.ssl), tls);
  });

  it('offer files of the client only where the service allows that', () => {
    for (const localFiles of [true, false])
      assert.equal(
        has(offeredCapabilities(mysql9, { tls: false, localFiles }).flags, capability.localFiles),
        localFiles,
      );
  });

  it('are for every known client on both legs the same, in all that changes a byte after the login', () => {
    const offered = offeredCapabilities(mysql9, { tls: false, localFiles: true });
    for (const [name, said] of Object.entries(clients)) {
      const agreed = agreedCapabilities({ flags: said, extended: 0 }, offered);
      const upstream = upstreamCapabilities(agreed, mysql9, nothing);
      assert.equal((upstream.flags & changesBytes) >>> 0, (said & changesBytes) >>> 0, name);
      assert.ok(has(upstream.flags, capability.protocol41 | capability.secureConnection), name);
      assert.ok(has(upstream.flags, capability.pluginAuth | capability.longAuthData), name);
    }
  });

  it('of the mysql CLI include a second factor that was not offered, and the server is not told of it', () => {
    const said = clients['mysql CLI 9.7'];
    assert.ok(has(said, capability.multiFactor));
    const offered = offeredCapabilities(mysql9, { tls: false, localFiles: true });
    const agreed = agreedCapabilities({ flags: said, extended: 0 }, offered);
    assert.ok(!has(agreed.flags, capability.multiFactor));
    assert.ok(!has(upstreamCapabilities(agreed, mysql9, nothing).flags, capability.multiFactor));
  });

  it('of MariaDB pass as both ends have them, and only between two that are MariaDB', () => {
    const offered = offeredCapabilities(mariadb11, { tls: false, localFiles: false });
    const theirs = agreedCapabilities({ flags: clients['mariadb npm'], extended: 0x3f }, offered);
    assert.equal(upstreamCapabilities(theirs, mariadb11, nothing).extended, 0x3d);
    assert.ok(!has(upstreamCapabilities(theirs, mariadb11, nothing).flags, capability.longPassword));

    const ours = agreedCapabilities({ flags: clients.mysql2, extended: 0x3f }, offered);
    assert.equal(upstreamCapabilities(ours, mariadb11, nothing).extended, 0);
    assert.ok(has(upstreamCapabilities(ours, mariadb11, nothing).flags, capability.longPassword));

    const toMysql = offeredCapabilities(mysql9, { tls: false, localFiles: false });
    const connector = agreedCapabilities({ flags: clients['MariaDB Connector/J'], extended: 0x3f }, toMysql);
    assert.equal(connector.extended, 0);
  });

  it('of the login are what it needs and the server has, whatever the client said', () => {
    fc.assert(
      fc.property(capabilities, capabilities, policy, needs, (client, server, allowed, need) => {
        const agreed = agreedCapabilities(client, offeredCapabilities(server, allowed));
        const upstream = upstreamCapabilities(agreed, server, need);
        const is = (flag: number) => has(upstream.flags, flag);
        const serverHas = (flag: number) => has(server.flags, flag);
        assert.equal(is(capability.ssl), need.tls && serverHas(capability.ssl));
        assert.equal(
          is(capability.connectWithDatabase),
          need.database && serverHas(capability.connectWithDatabase),
        );
        assert.equal(
          is(capability.connectAttributes),
          need.attributes && serverHas(capability.connectAttributes),
        );
        assert.equal(is(capability.pluginAuth), serverHas(capability.pluginAuth));
      }),
    );
  });

  it('never hold on one leg only, where the other would send other bytes', () => {
    fc.assert(
      fc.property(capabilities, capabilities, policy, needs, (client, server, allowed, need) => {
        const offered = offeredCapabilities(server, allowed);
        const agreed = agreedCapabilities(client, offered);
        const upstream = upstreamCapabilities(agreed, server, need);
        assert.equal((agreed.flags & changesBytes) >>> 0, (upstream.flags & changesBytes) >>> 0);
        assert.equal(agreed.extended, upstream.extended);
        for (const { flags } of [offered, agreed, upstream]) {
          assert.ok(flags >= 0 && flags <= 0xffffffff);
          for (const masked of ['compress', 'zstdCompression', 'multiFactor', 'capabilityExtension'] as const)
            assert.ok(!has(flags, capability[masked]), masked);
        }
        assert.ok(
          has(server.flags | capability.longPassword, upstream.flags),
          'the server has all it is asked for',
        );
        assert.ok(has(server.extended, upstream.extended));
        assert.ok(allowed.localFiles || !has(upstream.flags, capability.localFiles));
      }),
    );
  });
});
