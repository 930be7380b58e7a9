import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { pino } from 'pino';

import { AuditTrail } from '../src/audit.ts';
import type { AuditConfig } from '../src/config/config.ts';
import { until } from './support/session.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-audit-'));
after(() => rmSync(folder, { recursive: true, force: true }));

async function trail(to: AuditConfig['to'], events: AuditConfig['events'] = ['session']) {
  const counts = { written: 0, dropped: 0 };
  const lines: Record<string, unknown>[] = [];
  const log = pino({}, { write: (line: string) => void lines.push(JSON.parse(line)) });
  const audit = await AuditTrail.open(
    { to, events },
    log,
    (outcome, records) => (counts[outcome] += records),
  );
  return { audit, counts, messages: () => lines.map(({ msg }) => msg), lines };
}

/** Every line of a file, parsed: none is half. */
function read(file: string): Record<string, unknown>[] {
  const text = readFileSync(file, 'utf8');
  assert.ok(text === '' || text.endsWith('\n'));
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}

describe('the audit in a file', () => {
  it('is made for its owner alone, and appended to', async () => {
    const file = join(folder, 'own.jsonl');
    for (const n of [1, 2]) {
      const { audit, counts } = await trail({ file });
      audit.record('session', { n });
      await audit.close();
      assert.deepEqual(counts, { written: 1, dropped: 0 });
    }
    assert.equal(statSync(file).mode & 0o777, 0o600);
    const records = read(file);
    assert.deepEqual(
      records.map(({ event, n }) => [event, n]),
      [
        ['session', 1],
        ['session', 2],
      ],
    );
    assert.match(String(records[0]?.['time']), /^\d{4}-\d\d-\d\dT.*Z$/);
  });

  it('has only the events that were asked for', async () => {
    const file = join(folder, 'events.jsonl');
    const { audit, counts } = await trail({ file }, ['reload', 'stop']);
    audit.record('session', {});
    audit.record('stop', {});
    await audit.close();
    audit.record('stop', {});
    assert.deepEqual(
      read(file).map(({ event }) => event),
      ['stop'],
    );
    assert.equal(counts.written, 1);
  });

  it('goes on in a new file when the old one was moved away, and loses nothing', async () => {
    const file = join(folder, 'rotated.jsonl');
    const { audit, counts } = await trail({ file });
    for (let n = 0; n < 500; n++) {
      audit.record('session', { n });
      if (n % 100 === 50) {
        // What was written before the file was moved is in the old one.
        renameSync(file, `${file}.${n}`);
        await audit.reopen();
      }
    }
    await audit.close();
    const all = [50, 150, 250, 350, 450].flatMap((n) => read(`${file}.${n}`)).concat(read(file));
    assert.deepEqual(
      all.map(({ n }) => n),
      Array.from({ length: 500 }, (_, n) => n),
    );
    assert.equal(counts.written, 500);
  });

  it('stays in the old file when the new one cannot be made', async () => {
    const inner = mkdtempSync(join(folder, 'inner-'));
    const file = join(inner, 'a.jsonl');
    const { audit } = await trail({ file });
    renameSync(inner, `${inner}-moved`);
    await assert.rejects(audit.reopen(), { code: 'CONFIG_INVALID' });
    audit.record('session', { n: 1 });
    await audit.close();
    assert.equal(read(join(`${inner}-moved`, 'a.jsonl')).length, 1);
  });

  it('cannot be where no file can be, nor in a pipe that nobody reads', async () => {
    await assert.rejects(trail({ file: join(folder, 'nowhere', 'a.jsonl') }), {
      code: 'CONFIG_INVALID',
      message: /the file of the audit, .*nowhere.*, cannot be opened: ENOENT/,
    });
    await assert.rejects(trail({ file: folder }), { code: 'CONFIG_INVALID' });
    const pipe = join(folder, 'pipe');
    execFileSync('mkfifo', [pipe]);
    await assert.rejects(trail({ file: pipe }), { code: 'CONFIG_INVALID', message: /ENXIO/ });
  });

  it('says once that the disk is full, keeps what waits, and writes it later', {
    skip: process.platform !== 'linux',
  }, async () => {
    const file = join(folder, 'full.jsonl');
    symlinkSync('/dev/full', file);
    const { audit, counts, messages, lines } = await trail({ file });
    for (let n = 0; n < 3; n++) audit.record('session', { n });
    await until('the failure', () => lines.length > 0);
    assert.deepEqual(
      lines.map(({ reason }) => reason),
      ['ENOSPC'],
    );
    assert.equal(counts.written, 0);
    unlinkSync(file);
    writeFileSync(file, '');
    await audit.reopen();
    await until('the records', () => counts.written === 3);
    await until('the good news', () => messages().length === 2);
    assert.deepEqual(messages(), [
      'the audit cannot be written, its records wait',
      'the audit is written again',
    ]);
    await audit.close();
    assert.deepEqual(
      read(file).map(({ n }) => n),
      [0, 1, 2],
    );
    assert.equal(counts.dropped, 0);
  });

  it('is bounded while it cannot be written, and counts what is lost', {
    skip: process.platform !== 'linux',
  }, async () => {
    const { audit, counts } = await trail({ file: '/dev/full' });
    for (let n = 0; n < 10_500; n++) audit.record('session', { n });
    assert.equal(counts.dropped, 500);
    for (let n = 0; n < 20; n++) audit.record('session', { text: 'x'.repeat(1024 * 1024) });
    assert.equal(counts.dropped, 520);
    await audit.close();
    assert.deepEqual(counts, { written: 0, dropped: 10_520 });
  });
});

describe('the audit at a unix socket', () => {
  it('waits for its reader, and finds it again after it has gone', async () => {
    const path = join(folder, 'reader.sock');
    const { audit, counts, messages } = await trail({ socket: path });
    audit.record('session', { n: 1 });
    await until('the complaint', () => messages().length === 1);

    let text = '';
    const sockets = new Set<Socket>();
    const listen = async () => {
      const server = createServer((socket) => {
        sockets.add(socket);
        socket.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
        socket.on('error', () => {});
      });
      await new Promise<void>((resolve) => server.listen(path, resolve));
      return server;
    };
    const first = await listen();
    await until('the first record', () => text.includes('"n":1'));

    first.close();
    for (const socket of sockets) socket.destroy();
    await until('the end of the reader', () => !first.listening);
    const second = await listen();
    audit.record('session', { n: 2 });
    await until('the second record', () => text.includes('"n":2'));
    await until('the count', () => counts.written === 2);
    await audit.close();
    second.close();
    for (const socket of sockets) socket.destroy();
    for (const line of text.split('\n').filter(Boolean)) assert.equal(JSON.parse(line).event, 'session');
  });

  it('does not hold up the end of the program when its reader takes nothing', async () => {
    const path = join(folder, 'deaf.sock');
    const held: Socket[] = [];
    const server = createServer({ pauseOnConnect: true }, (socket) => void held.push(socket));
    await new Promise<void>((resolve) => server.listen(path, resolve));
    const { audit, counts } = await trail({ socket: path });
    for (let n = 0; n < 4000; n++) audit.record('session', { text: 'x'.repeat(1900) });
    await audit.close();
    assert.equal(counts.written + counts.dropped, 4000);
    assert.ok(counts.dropped > 0);
    for (const socket of held) socket.destroy();
    server.close();
  });
});
