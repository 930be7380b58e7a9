import type { Ledger } from '../../src/admin/ledger.ts';
import type { Metrics } from '../../src/admin/metrics.ts';
import type { OperatedService, Operation } from '../../src/admin/status.ts';
import type { SessionReport } from '../../src/core/session.ts';
import type { SourceState } from '../../src/lifecycle/source.ts';

/** What would be a script on the page, if it were not text. */
export const escaping = '<img src=x onerror=alert(1)>';

const leases: SourceState['leases'] = [
  {
    provider: 'vault',
    id: 'database/creds/orders/4kPqQmR7xJdE2nWb9TzVu1Hs',
    secondsLeft: 2710,
    renewable: true,
    current: true,
    sessions: 14,
  },
];

function service(given: Partial<OperatedService> & { readonly name: string }): OperatedService {
  return {
    connector: 'postgres',
    address: 'tcp://127.0.0.1:5432',
    active: 14,
    limit: 200,
    bytesFromClient: 48_211_233,
    bytesFromUpstream: 1_931_220_114,
    credential: { generation: 3, age: 4, stale: false },
    leases: [],
    requests: [],
    source: {
      state: 'fresh',
      providers: ['vault'],
      generation: 3,
      versions: 'vault@12',
      age: 4,
      failing: undefined,
      rejected: false,
      leases: [],
    },
    ...given,
  };
}

/** A program in the middle of its work, with a failure of each kind. */
export function operation(metrics: Metrics, ledger: Ledger): Operation {
  const base = service({ name: '' }).source;
  const requests = {
    responses: [0, 0, 8123, 12, 60, 3],
    failures: new Map([['TIMEOUT', 2] as const]),
    upstreamOpened: 3,
    upstreamReused: 4,
    retries: 0,
    replays: 0,
    tunnelsBlind: 0,
  };
  const services = [
    service({ name: 'orders-db', leases, source: { ...base, leases } }),
    service({
      name: 'billing',
      connector: 'mysql',
      address: 'unix:///run/postern/billing.sock',
      source: {
        ...base,
        state: 'stale',
        providers: ['conjur'],
        versions: 'conjur@2',
        age: 912,
        rejected: true,
      },
    }),
    service({ name: 'github', connector: 'http', requests: [requests] }),
    service({ name: 'former', address: undefined, active: 1 }),
  ];
  const report: SessionReport = {
    id: '1',
    client: '127.0.0.1:1',
    facts: {},
    outcome: 'PROVIDER_UNAVAILABLE',
    error: `provider "conjur" cannot be asked ${escaping}`,
    admitted: true,
    loginSeconds: undefined,
    seconds: 1,
    bytesFromClient: 0,
    bytesFromUpstream: 0,
  };
  for (let i = 0; i < 300; i++) ledger.loggedIn('orders-db', 0.004 + (i % 10) / 1000);
  ledger.sessionEnded('billing', report, true);
  ledger.providerAsked('vault', 'ok', 0.004, undefined);
  ledger.providerAsked('conjur', 'PROVIDER_UNAVAILABLE', 0.8, 'connection refused');
  return {
    version: '1.2.3',
    metrics,
    ledger,
    state: () => 'serving',
    services: () => services,
    providers: () => [
      { name: 'vault', kind: 'vault' },
      { name: 'conjur', kind: 'conjur' },
      { name: 'unasked', kind: 'file' },
    ],
    configuration: () => ({ loadedAt: Date.now() - 60_000, lastFailure: undefined }),
  };
}
