import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';

import { Metrics } from '../../src/admin/metrics.ts';
import { observeProcess } from '../../src/admin/process-metrics.ts';

const page = readFileSync(new URL('../../docs/metrics.md', import.meta.url), 'utf8');

/** Name, type, labels and sentence of each metric, from a scrape after everything has happened once. */
function scraped(): string[][] {
  const requests = {
    responses: [0, 0, 1, 0, 0, 0],
    failures: new Map([['TIMEOUT', 1] as const]),
    upstreamOpened: 1,
    upstreamReused: 1,
    retries: 1,
    replays: 1,
    tunnelsBlind: 1,
  };
  const live = {
    name: 'db',
    active: 1,
    limit: 1000,
    bytesFromClient: 1,
    bytesFromUpstream: 1,
    credential: { generation: 1, age: 1, stale: false },
    leases: [{ provider: 'vault', secondsLeft: 60 }],
    requests: [requests],
  };
  const metrics = new Metrics('1.2.3', { ready: () => true, services: () => [live] });
  observeProcess(metrics.registry)();
  const report = {
    id: '1',
    client: 'unix',
    facts: {},
    error: undefined,
    outcome: 'ok',
    admitted: true,
    loginSeconds: 0.01,
    seconds: 1,
    bytesFromClient: 1,
    bytesFromUpstream: 1,
  } as const;
  metrics.loggedIn('db', 0.01);
  metrics.sessionEnded('db', report, true);
  const refused = { ...report, outcome: 'LIMIT_REACHED', admitted: false, loginSeconds: undefined } as const;
  metrics.sessionEnded('db', refused, true);
  metrics.providerAsked('vault', 'ok', 0.01);
  metrics.credentialLent('db', 'provider');
  metrics.credentialRejected('db', 'recovered');
  metrics.leaseOperation('vault', 'renew', 'ok');
  metrics.acceptFailed('db');
  metrics.connectionDropped('db');
  metrics.relayEngine('native');
  metrics.configLoaded('ok');
  metrics.configFollowed(true);
  metrics.auditRecords('written', 1);
  metrics.exported('metrics', 'ok');

  const text = metrics.registry.text('prometheus');
  return [...text.matchAll(/^# HELP (\w+) (.*)\n# TYPE \w+ (\w+)$/gm)].map(
    ([, name = '', help = '', type = '']) => {
      const sample = new RegExp(`^${name}(?:_bucket)?(?:\\{(.*?)\\})? `, 'm').exec(text);
      assert.ok(sample, `${name} has no sample: make it happen in this test`);
      const labels = [...(sample[1] ?? '').matchAll(/(\w+)="/g)].map(([, label = '']) => label);
      return [
        name,
        type,
        labels
          .filter((label) => label !== 'le')
          .toSorted()
          .join(),
        help,
      ];
    },
  );
}

function documented(): string[][] {
  return [...page.matchAll(/^\| `(\w+)` \| (counter|gauge|histogram) \|([^|]*)\| (.*) \|$/gm)].map(
    ([, name = '', type = '', labels = '', help = '']) => [
      name,
      type,
      [...labels.matchAll(/`(\w+)`/g)]
        .map(([, label = '']) => label)
        .toSorted()
        .join(),
      help,
    ],
  );
}

describe('docs/metrics.md', () => {
  it('has every metric with its type, its labels and its sentence, and no other', () => {
    const byName = (rows: string[][]) => rows.toSorted(([a = ''], [b = '']) => (a < b ? -1 : 1));
    assert.deepEqual(byName(documented()), byName(scraped()));
  });

  it('asks in its queries only for metrics that exist', () => {
    const names = new Set(documented().map(([name]) => name));
    for (const [, name = ''] of page.matchAll(/\b(postern_[a-z_]+?)(?:_bucket)?\b[{[]/g))
      assert.ok(names.has(name), name);
  });
});
