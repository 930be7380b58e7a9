/** How the status page looks: one accent colour, and red for what needs somebody. */
export const style = `
:root {
  --ground: #fafaf8; --raised: #fff; --text: #1b1f23; --faint: #5a636c; --line: #e2e4e2;
  --accent: #0b6e6e; --accent-soft: #0b6e6e1a; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #121517; --raised: #191d20; --text: #e4e7e9; --faint: #98a2ab; --line: #2b3135;
    --accent: #56c2b6; --accent-soft: #56c2b622; --bad: #ff9087;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem clamp(1rem, 3vw, 2.5rem) 2rem; max-width: 84rem;
  background: var(--ground); color: var(--text);
  font: 0.875rem/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
header { display: flex; flex-wrap: wrap; align-items: center; gap: 0.25rem 0.75rem; margin-bottom: 1.25rem; }
h1 { font-size: 1.25rem; line-height: 1.3; letter-spacing: -0.01em; margin: 0; }
h2 { font-size: 0.9375rem; margin: 0 0 0.5rem; }
#about { margin: 0 0 0 auto; color: var(--faint); }
.state { margin: 0; padding: 0.0625rem 0.625rem; border-radius: 1rem; font-weight: 600; font-size: 0.8125rem; }
.state::before { content: ""; display: inline-block; width: 0.5rem; height: 0.5rem; border-radius: 50%; background: currentColor; margin-right: 0.4rem; }
.serving { color: var(--accent); background: var(--accent-soft); }
.starting, .draining { color: var(--bad); border: 1px solid currentColor; }
section { margin-bottom: 1.75rem; }
small { display: block; color: var(--faint); font-size: 0.75rem; font-weight: 400; }
code { font: 0.8125rem ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
a { color: var(--accent); }
.bad, small.bad { color: var(--bad); }
td .bad { display: block; }
td.number .bad { display: inline; }
.good { color: var(--accent); }
.faint, .none { color: var(--faint); }
.none { margin: 0; }
#silence { margin: 0 0 1rem; padding: 0.5rem 0.75rem; border: 1px solid var(--bad); border-radius: 0.5rem; color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(6, 1fr); gap: 1px; margin: 0; background: var(--line); border: 1px solid var(--line); border-radius: 0.5rem; overflow: hidden; }
dl > div { background: var(--raised); padding: 0.625rem 0.875rem; }
dt { color: var(--faint); font-size: 0.75rem; }
dd { margin: 0; font-size: 1.25rem; font-weight: 600; line-height: 1.35; }
#charts { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0.75rem; }
#charts[hidden] { display: none; }
figure { margin: 0; padding: 0.625rem 0.875rem 0.5rem; background: var(--raised); border: 1px solid var(--line); border-radius: 0.5rem; min-width: 0; }
figcaption { display: flex; justify-content: space-between; align-items: baseline; gap: 0.5rem; color: var(--faint); font-size: 0.75rem; }
figcaption b { color: var(--text); font-size: 0.875rem; }
svg { display: block; width: 100%; height: 5.5rem; margin-top: 0.25rem; overflow: visible; }
svg .rule { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; }
svg .area { fill: var(--accent-soft); }
svg .first { fill: none; stroke: var(--accent); stroke-width: 1.75; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
svg .second { fill: none; stroke: var(--faint); stroke-width: 1; stroke-dasharray: 3 3; vector-effect: non-scaling-stroke; }
.scale { display: flex; justify-content: space-between; color: var(--faint); font-size: 0.6875rem; }
table { width: 100%; border-collapse: separate; background: var(--raised); border: 1px solid var(--line); border-radius: 0.5rem; border-spacing: 0; }
thead th { color: var(--faint); font-size: 0.75rem; font-weight: 500; }
th, td { padding: 0.5rem 0.875rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line); font-weight: 400; overflow-wrap: anywhere; }
thead th { border-top: 0; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
time { white-space: nowrap; }
footer { color: var(--faint); font-size: 0.75rem; }
footer p { margin: 0; }
@media (max-width: 60rem) {
  dl { grid-template-columns: repeat(3, 1fr); }
}
@media (max-width: 45rem) {
  #about { margin-left: 0; flex-basis: 100%; }
  dl { grid-template-columns: repeat(2, 1fr); }
  #charts { grid-template-columns: 1fr; }
  svg { height: 4rem; }
  table, tbody, tr, th, td { display: block; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  tbody tr { padding: 0.625rem 0.875rem; border-top: 1px solid var(--line); }
  tbody tr:first-child { border-top: 0; }
  tbody th, tbody td { border: 0; padding: 0.125rem 0; }
  tbody th { padding-bottom: 0.25rem; }
  td, td.number { display: flex; justify-content: space-between; gap: 1rem; text-align: right; white-space: normal; }
  td::before { content: attr(data-label); color: var(--faint); text-align: left; flex: none; }
  td small { display: inline; margin-left: 0.5rem; }
  td > div { min-width: 0; }
}
`;

/** What the status page does while it is looked at: it asks every two seconds, and draws what it has seen. */
export const script = `
'use strict';
const INTERVAL = 2000;
const KEPT = 150;
/** Of the first minute the whole width is for. */
const SHOWN = 30;
const seen = [];
const shapes = 'http://www.w3.org/2000/svg';

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes) {
  const made = document.createElementNS(shapes, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function sampleOf(status) {
  const sum = (value) => status.services.reduce((total, service) => total + value(service), 0);
  const slowest = (share) => Math.max(0, ...status.services.map(({ logins }) => logins?.milliseconds?.[share] ?? 0));
  return {
    at: Date.parse(status.now),
    sessions: sum(({ sessions }) => sessions.active),
    logins: sum(({ logins }) => (logins ? logins.ok + logins.failed : 0)),
    requests: sum(({ requests }) => Object.values(requests?.responses ?? {}).reduce((a, b) => a + b, 0)),
    p50: slowest('p50'),
    p99: slowest('p99'),
  };
}

function rates(field) {
  // There is no rate before the second look: the first one has that of the second.
  return seen.map((_, i) => {
    const [before, sample] = [seen[Math.max(i, 1) - 1], seen[Math.max(i, 1)]];
    if (!sample || sample.at <= before.at) return 0;
    return Math.max(0, ((sample[field] - before[field]) * 1000) / (sample.at - before.at));
  });
}

/** A round number not below the largest value. */
function topOf(values) {
  const largest = Math.max(...values, 0);
  if (largest === 0) return 1;
  const step = 10 ** Math.floor(Math.log10(largest));
  return [1, 2, 5, 10].map((times) => times * step).find((top) => top >= largest);
}

function chart(title, unit, first, second, legend) {
  const top = topOf([...first, ...(second ?? [])]);
  const shown = Math.max(SHOWN, first.length);
  const x = (i) => (300 * (shown - first.length + i)) / (shown - 1);
  const y = (value) => 78 - (74 * value) / top;
  const line = (values) => values.map((value, i) => x(i).toFixed(1) + ',' + y(value).toFixed(1)).join(' ');
  const rounded = (value) => (value >= 10 || Number.isInteger(value) ? Math.round(value) : value.toFixed(1)) + unit;
  const last = rounded(first.at(-1) ?? 0);
  const words = title + ': ' + last + ' now, at most ' + rounded(Math.max(...first, ...(second ?? []), 0)) + ' in the last minutes';
  const drawing = shape('svg', { viewBox: '0 0 300 80', preserveAspectRatio: 'none', role: 'img', 'aria-label': words });
  for (const share of [0, 0.5, 1]) drawing.append(shape('line', { class: 'rule', x1: 0, x2: 300, y1: y(share * top), y2: y(share * top) }));
  if (second) drawing.append(shape('polyline', { class: 'second', points: line(second) }));
  drawing.append(
    shape('polygon', { class: 'area', points: x(0).toFixed(1) + ',78 ' + line(first) + ' 300,78' }),
    shape('polyline', { class: 'first', points: line(first) }),
  );
  return element(
    'figure',
    {},
    element('figcaption', {}, element('span', {}, title + (legend ?? '')), element('b', {}, last)),
    drawing,
    element('div', { class: 'scale', 'aria-hidden': 'true' }, element('span', {}, Math.round((shown * INTERVAL) / 60000) + ' min ago'), element('span', {}, 'scale to ' + rounded(top)), element('span', {}, 'now')),
  );
}

function draw() {
  const charts = document.getElementById('charts');
  const someRequests = seen.some(({ requests }) => requests > 0);
  const busy = someRequests && !seen.some(({ logins }) => logins > 0);
  charts.replaceChildren(
    chart('Sessions', '', seen.map(({ sessions }) => sessions)),
    busy ? chart('Responses each second', '', rates('requests')) : chart('Logins each second', '', rates('logins')),
    chart('Login time', ' ms', seen.map(({ p50 }) => p50), seen.map(({ p99 }) => p99), ', median (dashed: p99)'),
  );
  charts.hidden = false;
}

async function load(path) {
  const response = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(INTERVAL * 2) });
  if (!response.ok) throw new Error(String(response.status));
  return response;
}

async function look() {
  const silence = document.getElementById('silence');
  try {
    const status = await (await load('status')).json();
    seen.push(sampleOf(status));
    if (seen.length > KEPT) seen.shift();
    draw();
    // Whoever has marked something to copy it keeps it.
    if (getSelection()?.isCollapsed !== false) {
      const fresh = document.createElement('template');
      fresh.innerHTML = await (await load('.?parts')).text();
      for (const id of ['state', 'about', 'summary', 'services', 'providers', 'leases', 'errors'])
        document.getElementById(id)?.replaceWith(...fresh.content.querySelectorAll('#' + id));
      document.title = 'Postern ' + status.state;
    }
    silence.hidden = true;
  } catch {
    if (silence.hidden) silence.textContent = 'Postern has not answered since ' + new Date().toLocaleTimeString() + '. What is below is from before.';
    silence.hidden = false;
  }
}

async function watch() {
  if (!document.hidden) await look();
  setTimeout(watch, INTERVAL);
}

watch();
`;
