import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { contentTypes, formatFor, Registry } from '../../src/admin/registry.ts';

function sample(): Registry {
  const registry = new Registry();
  const counter = registry.counter({ name: 'orders_total', help: 'Orders.', labels: ['who'] });
  counter.inc({ who: 'a "b"\\c\nd' });
  counter.inc({ who: 'a "b"\\c\nd' }, 2);
  registry.gauge({ name: 'heat', help: 'Says "hot"\nor\\not.' }).set({}, 1.5);
  const histogram = registry.histogram({ name: 'wait_seconds', help: 'Waits.', labels: ['who'] }, [0.5, 1]);
  for (const value of [0.5, 0.7, 1, 9]) histogram.observe({ who: 'x' }, value);
  return registry;
}

describe('the registry of metrics', () => {
  it("writes Prometheus' text format, with everything escaped that needs it", () => {
    assert.deepEqual(sample().text('prometheus').split('\n'), [
      '# HELP orders_total Orders.',
      '# TYPE orders_total counter',
      'orders_total{who="a \\"b\\"\\\\c\\nd"} 3',
      '# HELP heat Says "hot"\\nor\\\\not.',
      '# TYPE heat gauge',
      'heat 1.5',
      '# HELP wait_seconds Waits.',
      '# TYPE wait_seconds histogram',
      'wait_seconds_bucket{who="x",le="0.5"} 1',
      'wait_seconds_bucket{who="x",le="1"} 3',
      'wait_seconds_bucket{who="x",le="+Inf"} 4',
      'wait_seconds_sum{who="x"} 11.2',
      'wait_seconds_count{who="x"} 4',
      '',
    ]);
  });

  it('writes OpenMetrics with families, units, bounds as floats and an end', () => {
    const text = sample().text('openmetrics');
    assert.match(text, /^# TYPE orders counter\norders_total\{/m);
    assert.match(text, /^# UNIT wait_seconds seconds$/m);
    assert.match(text, /^# HELP heat Says \\"hot\\"\\nor\\\\not\.$/m);
    assert.match(text, /le="1\.0"\} 3$/m);
    assert.match(text, /\n# EOF\n$/);
  });

  it('adds up what is looked up with the same labels', () => {
    const registry = new Registry();
    registry.lookup('gauge', { name: 'leases', help: 'L.', labels: ['who'] }, () => [
      [{ who: 'x' }, 1],
      [{ who: 'y' }, 1],
      [{ who: 'x' }, 1],
    ]);
    assert.match(registry.text('prometheus'), /^leases\{who="x"\} 2\nleases\{who="y"\} 1$/m);
  });

  it('says 0 of what has no labels and has not happened yet', () => {
    const registry = new Registry();
    registry.counter({ name: 'a_total', help: 'A.' });
    registry.histogram({ name: 'b', help: 'B.' }, [1]);
    const text = registry.text('prometheus');
    assert.match(text, /^a_total 0$/m);
    assert.match(text, /^b_count 0$/m);
  });

  it('does not take numbers for what they are not', () => {
    const registry = new Registry();
    const gauge = registry.gauge({ name: 'odd', help: 'O.', labels: ['of'] });
    gauge.set({ of: 'a' }, Number.POSITIVE_INFINITY);
    gauge.set({ of: 'b' }, Number.NEGATIVE_INFINITY);
    gauge.set({ of: 'c' }, Number.NaN);
    assert.match(registry.text('prometheus'), /\{of="a"\} \+Inf\nodd\{of="b"\} -Inf\nodd\{of="c"\} NaN\n/);
  });

  it('refuses a second metric of the same name', () => {
    const registry = new Registry();
    registry.gauge({ name: 'one', help: 'O.' });
    assert.throws(() => registry.gauge({ name: 'one', help: 'O.' }), /two metrics/);
  });
});

describe('the format of a scrape', () => {
  const prometheus3 =
    'application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2';
  for (const [accept, format] of [
    [undefined, 'prometheus'],
    ['*/*', 'prometheus'],
    ['text/html,application/xhtml+xml', 'prometheus'],
    [prometheus3, 'openmetrics'],
    ['application/openmetrics-text', 'openmetrics'],
    ['application/openmetrics-text; version=1.0.0; q=0', 'prometheus'],
    ['text/plain;version=0.0.4, application/openmetrics-text;q=0.2', 'prometheus'],
    ['application/openmetrics-text;version=0.0.1', 'prometheus'],
    [',;q=,application/openmetrics-text;q=high', 'prometheus'],
  ] as const)
    it(`is ${format} for ${accept ?? 'no Accept'}`, () => {
      assert.equal(formatFor(accept), format);
      assert.ok(contentTypes[format].length > 0);
    });
});
