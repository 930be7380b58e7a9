import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';

import { Ledger } from '../../src/admin/ledger.ts';
import { Metrics } from '../../src/admin/metrics.ts';
import { AdminServer } from '../../src/admin/server.ts';
import { statusOf } from '../../src/admin/status.ts';
import { Browser } from '../support/browser.ts';
import { Unavailable } from '../support/servers.ts';
import { operation } from './operation.ts';

describe('the status page', { timeout: 300_000 }, () => {
  let server: AdminServer;
  let browser: Browser | undefined;
  let missing = '';
  let url = '';
  const ledger = new Ledger();
  const metrics = new Metrics('1.2.3', { ready: () => true, services: () => [] });
  const shown = operation(metrics, ledger);

  before(async () => {
    server = await AdminServer.open(
      { kind: 'tcp', host: '127.0.0.1', port: 0 },
      {
        health: { notReady: () => undefined, detail: async () => ({ services: [], providers: [] }) },
        operation: shown,
        hosts: [],
        quit: undefined,
      },
    );
    url = `http://127.0.0.1:${(server.address as { readonly port: number }).port}/`;
    try {
      browser = await Browser.start();
    } catch (error) {
      if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
      missing = error.message;
    }
  });

  after(async () => {
    await browser?.[Symbol.asyncDispose]();
    server?.close();
  });

  for (const width of [1280, 400])
    for (const dark of [false, true])
      it(`fits a window of ${width} pixels in ${dark ? 'dark' : 'light'}, legibly and without a fault`, async (t) => {
        if (!browser) return t.skip(missing);
        const page = await browser.open(url, { width, dark });
        await page.until(`document.querySelectorAll('#charts figure svg').length === 3`);
        assert.equal(await page.value('document.documentElement.scrollWidth'), width);
        // Of WCAG 2.2, 1.4.3: 4.5 for text of this size.
        const contrasts = (await page.value(contrastOfTexts)) as { text: string; ratio: number }[];
        assert.ok(contrasts.length > 50, `${contrasts.length} texts`);
        for (const { text, ratio } of contrasts) assert.ok(ratio >= 4.5, `"${text}" has ${ratio.toFixed(2)}`);
        const ground = String(await page.value('getComputedStyle(document.body).backgroundColor'));
        const [red = 0] = (/\d+/.exec(ground) ?? []).map(Number);
        assert.equal(red < 128, dark);
        const picture = await page.screenshot();
        assert.ok(picture.length > 20_000);
        assert.deepEqual(page.faults, []);
        return undefined;
      });

  it('says everything without a script', async (t) => {
    if (!browser) return t.skip(missing);
    const page = await browser.open(url, { width: 1280, script: false });
    // The devtools may look, though the page may not run.
    const { root } = (await page.send('DOM.getDocument', { depth: -1 })) as { root: { nodeId: number } };
    const { outerHTML } = (await page.send('DOM.getOuterHTML', { nodeId: root.nodeId })) as {
      outerHTML: string;
    };
    for (const text of [
      'orders-db',
      'billing',
      'github',
      'vault',
      'PROVIDER_UNAVAILABLE',
      '4kPqQmR7xJdE2nWb9TzVu1Hs',
      'no longer listening',
    ])
      assert.ok(outerHTML.includes(text), text);
    assert.match(outerHTML, /<section id="charts"[^>]*hidden/);
    return undefined;
  });

  it('follows what happens, and runs nothing that came as text', async (t) => {
    if (!browser) return t.skip(missing);
    const page = await browser.open(url, { width: 1280 });
    await page.value('void (window.alert = () => { window.attacked = true; })');
    const { logins } = statusOf(shown).services[0] ?? {};
    assert.ok(logins);
    for (let i = 0; i < 37; i++) ledger.loggedIn('orders-db', 0.01);
    await page.until(
      `[...document.querySelectorAll('#services td')].some(({ innerText }) => innerText.trim() === '${logins.ok + 37}')`,
    );
    await page.until(`document.querySelectorAll('#charts polyline.first').length === 3`);
    assert.equal(await page.value('window.attacked === true'), false);
    assert.equal(await page.value(`document.querySelectorAll('main img').length`), 0);
    assert.deepEqual(page.faults, []);
    return undefined;
  });

  it('has landmarks, headings and tables that a screen reader can follow', async (t) => {
    if (!browser) return t.skip(missing);
    const page = await browser.open(url, { width: 400 });
    const { nodes } = (await page.send('Accessibility.getFullAXTree')) as {
      nodes: { role?: { value: string }; name?: { value: string } }[];
    };
    const named = (role: string) =>
      nodes.filter((node) => node.role?.value === role).map((node) => node.name?.value ?? '');
    for (const role of ['banner', 'main', 'contentinfo']) assert.equal(named(role).length, 1, role);
    for (const title of ['Services', 'Providers', 'Leases', 'Last errors'])
      assert.ok(named('table').includes(title), `${title}: ${named('table').join()}`);
    assert.ok(named('columnheader').includes('Login time'));
    assert.ok(named('rowheader').some((name) => name.startsWith('orders-db')));
    return undefined;
  });

  it('says when Postern does not answer any more', async (t) => {
    if (!browser) return t.skip(missing);
    const page = await browser.open(url, { width: 1280 });
    await page.until(`!document.getElementById('charts').hidden`);
    server.close();
    await page.until(`!document.getElementById('silence').hidden`);
    assert.match(
      String(await page.value(`document.getElementById('silence').textContent`)),
      /has not answered since/,
    );
    return undefined;
  });
});

/** Of each text on the page: the contrast with what is behind it. */
const contrastOfTexts = `(() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((value, i) => value * a + below[i] * (1 - a));
  const behind = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) layers.unshift(parse(getComputedStyle(each).backgroundColor));
    return layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || ['SCRIPT', 'STYLE'].includes(element.tagName) || element.getClientRects().length === 0) continue;
    const ground = behind(element);
    const [light, dark] = [luminance(over(parse(getComputedStyle(element).color), ground)), luminance(ground)].sort((a, b) => b - a);
    found.push({ text, ratio: (light + 0.05) / (dark + 0.05) });
  }
  return found;
})()`;
