import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { parse } from 'yaml';

import { Ledger } from '../../src/admin/ledger.ts';
import { Metrics } from '../../src/admin/metrics.ts';
import { observeProcess } from '../../src/admin/process-metrics.ts';
import { errorCodes } from '../../src/core/errors.ts';
import { operation } from '../admin/operation.ts';
import { which } from '../support/servers/install.ts';
import { capture } from '../support/servers/process.ts';

const folder = new URL('../../deploy/grafana/', import.meta.url);
const read = (name: string) => readFileSync(new URL(name, folder), 'utf8');

interface Rules {
  readonly groups: readonly {
    readonly rules: readonly {
      readonly alert: string;
      readonly expr: string;
      readonly labels: Readonly<Record<string, string>>;
      readonly annotations: Readonly<Record<string, string>>;
    }[];
  }[];
}

interface Dashboard {
  readonly panels: readonly {
    readonly id: number;
    readonly type: string;
    readonly title: string;
    readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
    readonly targets?: readonly { readonly expr: string; readonly legendFormat: string }[];
  }[];
  readonly templating: { readonly list: readonly { readonly name: string; readonly definition?: string }[] };
  readonly annotations: { readonly list: readonly { readonly expr: string }[] };
}

const rules = (parse(read('alerts.yaml')) as Rules).groups.flatMap((group) => group.rules);
const dashboard = JSON.parse(read('dashboard.json')) as Dashboard;
const expressions = [
  ...rules.map(({ alert, expr }) => ({ where: alert, expr })),
  ...dashboard.panels.flatMap(({ title, targets = [] }) =>
    targets.map(({ expr }) => ({ where: title, expr })),
  ),
  ...dashboard.annotations.list.map(({ expr }) => ({ where: 'annotation', expr })),
  ...dashboard.templating.list.flatMap(({ name, definition }) =>
    definition === undefined ? [] : [{ where: name, expr: definition }],
  ),
];

/** Labels that whoever scrapes adds. */
const added = ['instance', 'le'];
/** What closed lists of the program may be in a label. */
const values: Readonly<Record<string, readonly string[]>> = {
  outcome: ['ok', 'failed', 'refused', 'recovered', 'written', 'dropped', ...errorCodes],
  operation: ['renew', 'revoke'],
  reason: ['limit', 'policy', 'shutdown', 'dropped'],
  from: ['client', 'upstream', 'provider', 'cache', 'stale'],
};

/** Every metric with its labels, by the names that its samples have. */
const known = (() => {
  const metrics: Metrics = new Metrics('1', { ready: () => true, services: () => live.services() });
  const live = operation(metrics, new Ledger());
  observeProcess(metrics.registry)();
  return new Map(
    [...metrics.registry.families].flatMap(({ name, type, labels }) => {
      const samples = type === 'histogram' ? [`${name}_bucket`, `${name}_count`, `${name}_sum`] : [name];
      return samples.map((sample) => [sample, labels] as const);
    }),
  );
})();

function metricsIn(expr: string): { name: string; matchers: string }[] {
  return [...expr.matchAll(/\b((?:postern|process|nodejs)_\w+)(?:\{([^}]*)\})?/g)].map(
    ([, name = '', matchers = '']) => ({ name, matchers }),
  );
}

describe('deploy/grafana', () => {
  it('asks only for metrics that there are, by labels and values that they have', () => {
    assert.ok(expressions.length > 40);
    for (const { where, expr } of expressions) {
      const asked = metricsIn(expr);
      assert.ok(asked.length > 0, where);
      for (const { name, matchers } of asked) {
        const labels = known.get(name);
        assert.ok(labels, `${where}: there is no ${name}`);
        for (const [, label = '', text = ''] of matchers.matchAll(/(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"/g)) {
          assert.ok([...labels, ...added].includes(label), `${where}: ${name} has no label ${label}`);
          if (text.startsWith('$')) continue;
          for (const value of text.split('|'))
            assert.ok(values[label]?.includes(value), `${where}: ${label} is never ${value}`);
        }
      }
    }
  });

  it('groups and names by labels that the metrics have', () => {
    const groups = (expr: string) =>
      [...expr.matchAll(/\bby \(([^)]*)\)/g)].map(([, list = '']) => list.split(/,\s*/));
    for (const { where, expr } of expressions)
      for (const labels of groups(expr)) {
        const all = metricsIn(expr).flatMap(({ name }) => known.get(name) ?? []);
        for (const label of labels) assert.ok([...all, ...added].includes(label), `${where}: ${label}`);
      }
    for (const { title, targets = [] } of dashboard.panels)
      for (const { expr, legendFormat } of targets)
        for (const [, label = ''] of legendFormat.matchAll(/\{\{(\w+)\}\}/g)) {
          const kept = groups(expr).flat();
          assert.ok(kept.length > 0 ? kept.includes(label) : label === 'instance', `${title}: ${label}`);
        }
    for (const { alert, expr, annotations } of rules)
      for (const [, label = ''] of Object.values(annotations)
        .join(' ')
        .matchAll(/\$labels\.(\w+)/g)) {
        const kept = groups(expr).flat();
        const all = kept.length > 0 ? kept : metricsIn(expr).flatMap(({ name }) => known.get(name) ?? []);
        assert.ok([...all, 'instance'].includes(label), `${alert}: ${label}`);
      }
  });

  it('has an alert for each thing that somebody must see to', () => {
    const about = rules.map(({ expr }) => expr).join('\n');
    for (const metric of [
      'postern_ready',
      'postern_logins_total',
      'postern_provider_up',
      'postern_credential_stale',
      'postern_lease_operations_total',
      'postern_event_loop_delay_seconds',
      'process_open_fds',
      'postern_config_reloads_total',
      'postern_audit_records_total',
    ])
      assert.ok(about.includes(metric), metric);
    for (const { alert, labels, annotations } of rules) {
      assert.match(alert, /^Postern[A-Z]/);
      assert.ok(['critical', 'warning'].includes(labels['severity'] ?? ''), alert);
      assert.ok(annotations['summary'] && annotations['description'], alert);
    }
  });

  it('lays its panels side by side, none over another', () => {
    const { panels } = dashboard;
    assert.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
    for (const [i, { title, gridPos: a }] of panels.entries()) {
      assert.ok(a.x + a.w <= 24, title);
      for (const { gridPos: b, title: other } of panels.slice(i + 1)) {
        const apart = a.x + a.w <= b.x || b.x + b.w <= a.x || a.y + a.h <= b.y || b.y + b.h <= a.y;
        assert.ok(apart, `${title} and ${other}`);
      }
    }
  });

  it("has rules that Prometheus' own tool takes, where it is there", async (t) => {
    const promtool = await which('promtool');
    if (!promtool) return t.skip('promtool (of the Debian package prometheus) is not installed');
    const file = new URL('alerts.yaml', folder).pathname;
    const { code, stdout, stderr } = await capture(promtool, ['check', 'rules', file]);
    assert.equal(code, 0, stdout + stderr);
    return undefined;
  });
});
