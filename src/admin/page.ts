import { randomBytes } from 'node:crypto';

import { script, style } from './page-assets.ts';
import type { ErrorStatus, ProviderStatus, ServiceStatus, Status } from './status.ts';

/** Markup that is safe as it is: made here, with every text in it escaped. */
class Markup {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }
}

type Content = Markup | string | number | undefined | readonly Content[];

/** Markup in which whatever is put in is text, unless it is markup itself. */
function html(parts: TemplateStringsArray, ...values: readonly Content[]): Markup {
  return new Markup(parts.map((part, i) => part + written(values[i])).join(''));
}

function written(value: Content): string {
  if (value === undefined) return '';
  if (value instanceof Markup) return value.text;
  if (typeof value === 'object') return value.map(written).join('');
  return String(value).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

/** The status page, whole in itself, and the policy by which a browser runs nothing on it but its own script. */
export function statusPage(status: Status): { readonly html: string; readonly policy: string } {
  const nonce = randomBytes(16).toString('base64');
  const page = html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Postern ${status.state}</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath d='M3 15V7a5 5 0 0 1 10 0v8z' fill='%230b6e6e'/%3E%3C/svg%3E">
<style nonce="${nonce}">${new Markup(style)}</style>
</head>
<body>
<header>${heading(status)}</header>
<main>
<p id="silence" role="status" hidden></p>
${sections(status)}
</main>
<footer><p>Names and numbers only, no secret. The same for programs: <a href="status">/status</a>, <a href="metrics">/metrics</a>, <a href="readyz?verbose">/readyz?verbose</a></p></footer>
<script nonce="${nonce}">${new Markup(script)}</script>
</body>
</html>
`;
  const policy = [
    "default-src 'none'",
    `style-src 'nonce-${nonce}'`,
    `script-src 'nonce-${nonce}'`,
    "connect-src 'self'",
    'img-src data:',
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join('; ');
  return { html: page.text, policy };
}

/** What changes on the page, for its script: without style and script, which its policy would not let in again. */
export function statusParts(status: Status): string {
  return html`${heading(status)}${sections(status)}`.text;
}

function sections(status: Status): Markup {
  return html`<section id="summary" aria-label="Summary">${summary(status)}</section>
<section id="charts" aria-label="The last five minutes" hidden></section>
<section id="services" aria-labelledby="services-title">${services(status.services)}</section>
<section id="providers" aria-labelledby="providers-title">${providers(status.providers)}</section>
<section id="leases" aria-labelledby="leases-title">${leases(status.services)}</section>
<section id="errors" aria-labelledby="errors-title">${errors(status)}</section>`;
}

function heading({ version, node, state, uptimeSeconds, pid }: Status): Markup {
  const words = { serving: 'Serving', starting: 'Starting', draining: 'Draining' };
  return html`<h1>Postern</h1>
<p id="state" class="state ${state}">${words[state]}</p>
<p id="about">version ${version} · up ${span(uptimeSeconds)} · Node.js ${node} · process ${pid}</p>`;
}

function summary({ services, providers, process: used }: Status): Markup {
  const sum = (value: (service: ServiceStatus) => number) =>
    services.reduce((total, service) => total + value(service), 0);
  const failed = sum(({ logins, requests }) => logins?.failed ?? requests?.failed ?? 0);
  const down = providers.filter(({ up }) => up === false).length;
  const all = sum(({ leases: held }) => held.length);
  return html`<dl>
${figure('Sessions', count(sum(({ sessions }) => sessions.active)), `of ${count(sum(({ sessions }) => sessions.limit))} places`)}
${figure('Logins', count(sum(({ logins }) => logins?.ok ?? 0)), `${count(sum(({ logins }) => logins?.failed ?? 0))} failed`, failed > 0)}
${figure('Providers', count(providers.length), down > 0 ? `${down} down` : 'none is down', down > 0)}
${figure('Leases', count(all), 'held now')}
${figure('Relayed', bytes(sum(({ bytes: { fromClient, fromUpstream } }) => fromClient + fromUpstream)), 'both ways')}
${figure('Memory', bytes(used.residentBytes), used.descriptors === null ? '' : `${count(used.descriptors)} descriptors`)}
</dl>`;
}

function figure(name: string, value: string, note: string, bad = false): Markup {
  return html`<div><dt>${name}</dt><dd>${value}<small class="${bad ? 'bad' : ''}">${note}</small></dd></div>`;
}

/** The roles are said because narrow windows lay the cells out as blocks, which makes browsers forget them. */
function table(
  title: string,
  id: string,
  columns: readonly { readonly name: string; readonly numeric?: boolean }[],
  rows: readonly (readonly Content[])[],
  none: string,
): Markup {
  const heading = html`<h2 id="${id}-title">${title}</h2>`;
  if (rows.length === 0) return html`${heading}<p class="none">${none}</p>`;
  return html`${heading}<table role="table" aria-labelledby="${id}-title">
<thead role="rowgroup"><tr role="row">${columns.map(
    ({ name, numeric }) =>
      html`<th role="columnheader" scope="col" class="${numeric ? 'number' : ''}">${name}</th>`,
  )}</tr></thead>
<tbody role="rowgroup">${rows.map(
    (cells) =>
      html`<tr role="row">${cells.map((cell, i) =>
        i === 0
          ? html`<th role="rowheader" scope="row">${cell}</th>`
          : html`<td role="cell" data-label="${columns[i]?.name}" class="${columns[i]?.numeric ? 'number' : ''}"><div>${cell}</div></td>`,
      )}</tr>\n`,
  )}</tbody></table>`;
}

const dash = new Markup('<span class="faint">–</span>');

function services(all: readonly ServiceStatus[]): Markup {
  return table(
    'Services',
    'services',
    [
      { name: 'Service' },
      { name: 'Sessions', numeric: true },
      { name: 'Logins', numeric: true },
      { name: 'Failed', numeric: true },
      { name: 'Login time', numeric: true },
      { name: 'To server', numeric: true },
      { name: 'To client', numeric: true },
      { name: 'Credential' },
    ],
    all.map(({ name, connector, address, sessions, logins, requests, bytes: relayed, credential }) => [
      html`<b>${name}</b><small>${connector} · ${address ?? 'no longer listening'}</small>`,
      html`${count(sessions.active)}<small>of ${count(sessions.limit)}</small>`,
      logins
        ? count(logins.ok)
        : html`${count(Object.values(requests?.responses ?? {}).reduce((sum, each) => sum + each, 0))}<small>responses</small>`,
      failures(logins?.failed ?? requests?.failed ?? 0),
      logins?.milliseconds
        ? html`${milliseconds(logins.milliseconds.p50)}<small>p99 ${milliseconds(logins.milliseconds.p99)}</small>`
        : dash,
      bytes(relayed.fromClient),
      bytes(relayed.fromUpstream),
      credentialCell(credential),
    ]),
    'There is no service.',
  );
}

function failures(number: number): Content {
  return number > 0 ? html`<span class="bad">${count(number)}</span>` : '0';
}

const credentialWords = {
  empty: 'fetched when needed',
  fresh: 'kept, fresh',
  kept: 'kept for an outage',
  stale: 'old: provider cannot be asked',
} as const;

function credentialCell({
  state,
  providers: names,
  versions,
  ageSeconds,
  rejected,
  failing,
}: ServiceStatus['credential']): Markup {
  const age = ageSeconds === null ? '' : ` · ${span(ageSeconds)} ago`;
  const words =
    state === 'empty' && failing ? html`<span class="bad">not to be had</span>` : credentialWords[state];
  return html`${state === 'stale' ? html`<span class="bad">${words}</span>` : words}${
    rejected ? html`<span class="bad">rejected by the server</span>` : undefined
  }<small>${versions || names.join(', ')}${age}</small>`;
}

function providers(all: readonly ProviderStatus[]): Markup {
  return table(
    'Providers',
    'providers',
    [
      { name: 'Provider' },
      { name: 'State' },
      { name: 'Questions', numeric: true },
      { name: 'Failed', numeric: true },
      { name: 'Answer time', numeric: true },
      { name: 'Last success' },
    ],
    all.map(({ name, kind, up, asked, failed, milliseconds: took, lastSuccess }) => [
      html`<b>${name}</b><small>${kind}</small>`,
      up === null
        ? html`<span class="faint">not asked yet</span>`
        : up
          ? html`<span class="good">answers</span>`
          : html`<span class="bad">cannot be asked</span>`,
      count(asked),
      failures(failed),
      took ? html`${milliseconds(took.p50)}<small>p99 ${milliseconds(took.p99)}</small>` : dash,
      lastSuccess === null ? dash : moment(lastSuccess),
    ]),
    'There is no provider.',
  );
}

function leases(all: readonly ServiceStatus[]): Markup {
  return table(
    'Leases',
    'leases',
    [
      { name: 'Lease' },
      { name: 'Service' },
      { name: 'Provider' },
      { name: 'Time left', numeric: true },
      { name: 'Sessions', numeric: true },
      { name: 'State' },
    ],
    all.flatMap(({ name, leases: held }) =>
      held.map(({ id, provider, secondsLeft, sessions, current, renewable }) => [
        html`<code>${id}</code>`,
        name,
        provider,
        span(secondsLeft),
        count(sessions),
        `${current ? 'in use' : 'replaced'}${renewable ? '' : ', cannot be renewed'}`,
      ]),
    ),
    'None is held.',
  );
}

function errors({ services: all, providers: asked, configuration }: Status): Markup {
  const rows = [
    ...all.map(({ name, lastError }) => ({ where: `service ${name}`, error: lastError })),
    ...asked.map(({ name, lastError }) => ({ where: `provider ${name}`, error: lastError })),
    { where: 'reload', error: configuration.lastFailure },
  ];
  const known = rows.filter((row): row is { where: string; error: ErrorStatus } => row.error !== null);
  known.sort((a, b) => (a.error.at < b.error.at ? 1 : -1));
  return table(
    'Last errors',
    'errors',
    [{ name: 'Where' }, { name: 'When' }, { name: 'Code' }, { name: 'What' }],
    known.map(({ where, error: { code, message, at } }) => [
      where,
      moment(at),
      html`<code>${code}</code>`,
      message,
    ]),
    'There was none since the start.',
  );
}

// ── how things are said ──────────────────────────────────────────────────────────────────────────────────────

function count(number: number): string {
  return String(number).replace(/\B(?=(?:\d{3})+$)/g, '\u202f');
}

function milliseconds(value: number): string {
  return value < 1000 ? `${value < 10 ? value : Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

function bytes(number: number): string {
  let value = number;
  for (const unit of ['B', 'kB', 'MB', 'GB', 'TB']) {
    if (value < 1000 || unit === 'TB')
      return `${value < 10 && unit !== 'B' ? value.toFixed(1) : Math.round(value)} ${unit}`;
    value /= 1000;
  }
  return '';
}

/** The two largest units of a time. */
function span(seconds: number): string {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

function moment(at: string): Markup {
  const seconds = Math.max(0, (Date.now() - Date.parse(at)) / 1000);
  return html`<time datetime="${at}" title="${at}">${span(seconds)} ago</time>`;
}
