import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { Ledger } from '../../src/admin/ledger.ts';
import { Metrics } from '../../src/admin/metrics.ts';
import { observeProcess } from '../../src/admin/process-metrics.ts';
import type { SessionReport } from '../../src/core/session.ts';
import { readTelemetry } from '../support/clients/telemetry.ts';
import { Unavailable } from '../support/servers.ts';
import { operation } from './operation.ts';

function metrics(): Metrics {
  const made: Metrics = new Metrics('1.2.3', { ready: () => true, services: () => live.services() });
  const live = operation(made, new Ledger());
  return made;
}

const report: SessionReport = {
  id: '1',
  client: '127.0.0.1:1',
  facts: {},
  outcome: 'ok',
  error: undefined,
  admitted: true,
  loginSeconds: 0.1,
  seconds: 1,
  bytesFromClient: 3,
  bytesFromUpstream: 5,
};

/** The samples of a metric, without comments. */
function samples(of: Metrics, name: string): string[] {
  return of.registry
    .text('prometheus')
    .split('\n')
    .filter((line) => line.startsWith(name));
}

describe('the metrics', () => {
  for (const format of ['openmetrics', 'prometheus'] as const)
    it(`are read by Prometheus' own parser of ${format}`, async (t) => {
      const all = metrics();
      observeProcess(all.registry)();
      all.loggedIn('orders-db', 0.01);
      all.sessionEnded('orders-db', report, true);
      try {
        const read = await readTelemetry(format, all.registry.text(format));
        const names = [...all.registry.families].map(({ name }) => name.replace(/_total$/, ''));
        assert.deepEqual(Object.keys(read), names);
        assert.deepEqual(read['postern_login_duration_seconds'], {
          type: 'histogram',
          unit: format === 'openmetrics' ? 'seconds' : '',
          samples: 16,
        });
      } catch (error) {
        if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
        t.skip(error.message);
      }
    });

  it('count a login when it is over, and a failed one by its code', () => {
    const all = metrics();
    all.loggedIn('a', 0.002);
    all.sessionEnded('a', report, true);
    all.sessionEnded('a', { ...report, outcome: 'UPSTREAM_REJECTED', loginSeconds: undefined }, true);
    all.sessionEnded('a', { ...report, outcome: 'UPSTREAM_CLOSED' }, true);
    assert.deepEqual(samples(all, 'postern_logins_total'), [
      'postern_logins_total{service="a",outcome="ok"} 1',
      'postern_logins_total{service="a",outcome="UPSTREAM_REJECTED"} 1',
    ]);
    assert.ok(
      samples(all, 'postern_login_duration_seconds_count').includes(
        'postern_login_duration_seconds_count{service="a"} 1',
      ),
    );
  });

  it('count no login where sessions carry many requests', () => {
    const all = metrics();
    all.sessionEnded('web', { ...report, outcome: 'TIMEOUT', loginSeconds: undefined }, false);
    assert.deepEqual(samples(all, 'postern_logins_total'), []);
  });

  it('count who was turned away, by the reason', () => {
    const all = metrics();
    const refused = { ...report, admitted: false, loginSeconds: undefined };
    for (const outcome of [
      'LIMIT_REACHED',
      'CLIENT_REFUSED',
      'SHUTDOWN',
      'CLIENT_CLOSED',
      'TIMEOUT',
    ] as const)
      all.sessionEnded('a', { ...refused, outcome }, true);
    // A session that is cut off at the end was served before.
    all.sessionEnded('a', { ...report, outcome: 'SHUTDOWN' }, true);
    all.connectionDropped('a');
    assert.deepEqual(samples(all, 'postern_refusals_total'), [
      'postern_refusals_total{service="a",reason="limit"} 1',
      'postern_refusals_total{service="a",reason="policy"} 1',
      'postern_refusals_total{service="a",reason="shutdown"} 1',
      'postern_refusals_total{service="a",reason="dropped"} 1',
    ]);
  });

  it('never count bytes twice, whether a session lives or has ended', () => {
    const all = metrics();
    const before = samples(all, 'postern_relayed_bytes_total{service="orders-db"');
    all.sessionEnded('orders-db', report, true);
    const numbers = (lines: readonly string[]) => lines.map((line) => Number(line.split(' ').at(-1)));
    const [fromClient = 0, fromUpstream = 0] = numbers(before);
    const now = numbers(samples(all, 'postern_relayed_bytes_total{service="orders-db"'));
    assert.deepEqual(now, [fromClient + 3, fromUpstream + 5]);
  });

  it('know the descriptors, the memory and the CPU time of the process', () => {
    const all = metrics();
    observeProcess(all.registry)();
    const value = (name: string) => Number(samples(all, `${name} `)[0]?.split(' ')[1]);
    for (const name of [
      'process_open_fds',
      'process_max_fds',
      'process_resident_memory_bytes',
      'process_cpu_seconds_total',
    ])
      assert.ok(value(name) > 0, name);
    assert.ok(Math.abs(value('process_start_time_seconds') - Date.now() / 1000) < 3600);
    assert.ok(value('process_open_fds') < value('process_max_fds'));
  });
});

describe('what is remembered for the status page', () => {
  it('are quantiles of the latest logins, whatever was before', () => {
    const ledger = new Ledger();
    for (let i = 0; i < 1000; i++) ledger.loggedIn('a', 9);
    for (let i = 1; i <= 256; i++) ledger.loggedIn('a', i / 1000);
    const latency = ledger.service('a').latency;
    assert.deepEqual(latency, { p50: 0.129, p90: 0.231, p99: 0.254 });
  });

  it('is the last failure, and none of a client that leaves or of an end in order', () => {
    const ledger = new Ledger();
    ledger.sessionEnded('a', { ...report, outcome: 'CLIENT_CLOSED' }, true);
    ledger.sessionEnded('a', { ...report, outcome: 'SESSION_EXPIRED' }, true);
    assert.equal(ledger.service('a').lastError, undefined);
    ledger.sessionEnded(
      'a',
      { ...report, outcome: 'UPSTREAM_TLS', error: 'one', loginSeconds: undefined },
      true,
    );
    ledger.sessionEnded('a', report, true);
    assert.equal(ledger.service('a').lastError?.code, 'UPSTREAM_TLS');
    assert.equal(ledger.service('a').loginsFailed, 1);
  });

  it('tells a provider that refuses from one that cannot be asked', () => {
    const ledger = new Ledger();
    assert.equal(ledger.provider('vault').up, undefined);
    ledger.providerAsked('vault', 'PROVIDER_FAILED', 0.1, 'permission denied');
    assert.equal(ledger.provider('vault').up, true);
    ledger.providerAsked('vault', 'PROVIDER_UNAVAILABLE', 0.1, 'sealed');
    assert.equal(ledger.provider('vault').up, false);
    assert.equal(ledger.provider('vault').lastError?.message, 'sealed');
  });
});
