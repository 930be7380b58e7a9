import mysql, { type Connection, type ConnectionOptions } from 'mysql2/promise';

import type { PointSelects } from './mysql.ts';

/** What point-select.lua does, for a machine without sysbench; run as a process of its own, told what to do by BENCH_LOAD. */
const { clients, seconds, reconnect, target } = JSON.parse(
  process.env['BENCH_LOAD'] ?? '{}',
) as PointSelects & {
  readonly target: ConnectionOptions;
};
const ROWS = 100;
const someId = () => 1 + Math.floor(Math.random() * ROWS);

async function keepSelecting(connection: Connection, end: number): Promise<number> {
  let done = 0;
  for (; performance.now() < end; done += 1)
    await connection.execute('SELECT body FROM notes WHERE id = ?', [someId()]);
  return done;
}

async function keepConnecting(end: number): Promise<number> {
  let done = 0;
  for (; performance.now() < end; done += 1) {
    const connection = await mysql.createConnection(target);
    await connection.query('SELECT body FROM notes WHERE id = ?', [someId()]);
    await connection.end();
  }
  return done;
}

const connections = reconnect
  ? []
  : await Promise.all(Array.from({ length: clients }, () => mysql.createConnection(target)));
const started = performance.now();
const end = started + seconds * 1000;
const counts = await Promise.all(
  reconnect
    ? Array.from({ length: clients }, () => keepConnecting(end))
    : connections.map((connection) => keepSelecting(connection, end)),
);
const took = (performance.now() - started) / 1000;
await Promise.all(connections.map((connection) => connection.end()));
process.stdout.write(JSON.stringify({ transactions: counts.reduce((sum, count) => sum + count, 0), took }));
