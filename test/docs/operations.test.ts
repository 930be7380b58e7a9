import assert from 'node:assert/strict';
import { once } from 'node:events';
import { globSync, readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { exitCodes } from '../../src/cli/exit-codes.ts';
import { authMethods } from '../../src/connectors/mysql/settings.ts';
import { CANCEL_REQUEST, encodePacket, int32 } from '../../src/connectors/postgres/messages.ts';
import { mysqlCli } from '../support/clients/mysql-cli.ts';
import { psql } from '../support/clients/psql.ts';
import { type LogLine, Postern } from '../support/postern.ts';
import { canary, certificates, server } from '../support/servers.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));
const page = readFileSync(`${root}docs/operations.md`, 'utf8');

/** Names in backticks in the first cells of the table behind a heading. */
function firstCells(heading: string): string[] {
  const section = page.split(`${heading}\n`)[1]?.split(/^#/m)[0] ?? '';
  return [...section.matchAll(/^\| ([^|]*) \|/gm)].flatMap(([, cell = '']) =>
    [...cell.matchAll(/`([^`]+)`/g)].map(([, name = '']) => name),
  );
}

/** On every line of the log. */
const everywhere = ['level', 'time', 'msg'];

describe('docs/operations.md', () => {
  let lines: readonly LogLine[] = [];

  before(async () => {
    const [postgres, mysql] = [await server('postgres18'), await server('mysql9')];
    const { server: own } = await certificates();
    const service = (name: string, lines: string) => `
  ${name}:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    listenTls: { cert: ${own.cert}, key: ${own.key} }
    credentials: { username: scram_user, password: { from: env, get: PASSWORD } }
    config: { ${lines} }`;
    const secret = '{ from: env, get: PASSWORD_OF_MYSQL }';
    await using postern = await Postern.start(
      `version: 2
services:
  mysql:
    connector: mysql
    listenOn: tcp://127.0.0.1:0
    listenTls: { cert: ${own.cert}, key: ${own.key} }
    credentials: { username: sha2_user, password: ${secret} }
    config: { host: localhost, port: ${mysql.port}, tls: { ca: ${mysql.ca} } }${service('good', `host: ${postgres.host}, port: ${postgres.port}, tls: { ca: ${postgres.ca} }`)}${service('down', 'host: 127.0.0.1, port: 1')}
`,
      { env: { PASSWORD: canary.postgres, PASSWORD_OF_MYSQL: canary.mysql } },
    );
    const to = (name: string) =>
      `host=127.0.0.1 port=${postern.port(name)} user=me dbname=app application_name=orders`;
    await psql([`${to('good')} sslmode=require`, '-c', 'SELECT 1']);
    await psql([to('down'), '-c', 'SELECT 1']);
    await mysqlCli(
      'mysql9',
      { host: '127.0.0.1', port: postern.port('mysql'), user: 'me', database: 'app', sslmode: 'require' },
      ['-e', 'SELECT 1'],
    );
    const canceller = connect(postern.port('good'), '127.0.0.1');
    canceller.end(encodePacket(int32(CANCEL_REQUEST, 1, 2)));
    canceller.resume();
    await once(canceller, 'close');
    await postern.logged((line) => 'cancel' in line);
    for (const service of ['good', 'mysql'])
      await postern.logged(
        (line) => line['service'] === service && line['outcome'] === 'ok' && 'auth' in line,
      );
    await postern.logged((line) => line['outcome'] === 'UPSTREAM_UNREACHABLE');
    await postern.stop();
    lines = postern.lines;
  });

  it('describes every field of the line of a session, and no other', () => {
    const seen = lines.filter(({ msg }) => msg === 'session ended' || msg === 'session failed');
    const fields = new Set(seen.flatMap((line) => Object.keys(line)));
    for (const field of everywhere) fields.delete(field);
    const documented = firstCells('### The line of a session');
    assert.deepEqual([...fields].toSorted(), documented.toSorted());
  });

  it('describes every field of the line of a session with MySQL', () => {
    const line = lines.find(({ service, outcome }) => service === 'mysql' && outcome === 'ok');
    const documented = [...everywhere, ...firstCells('### The line of a session')];
    const fields = Object.keys(line ?? {});
    assert.deepEqual(
      fields.filter((field) => !documented.includes(field)),
      [],
    );
    for (const field of [
      'clientTls',
      'database',
      'askedUser',
      'application',
      'upstream',
      'auth',
      'upstreamTls',
    ])
      assert.ok(fields.includes(field), field);
  });

  it('lists every way of a login', () => {
    const row = /^\| `auth` \| (.*) \|$/m.exec(page)?.[1] ?? '';
    for (const method of authMethods) assert.ok(row.includes(`\`${method}\``), method);
  });

  it('names every message that the program logs, and no other', () => {
    const inSource = globSync('src/**/*.ts', { cwd: root }).flatMap((file) => {
      const source = readFileSync(root + file, 'utf8');
      const calls = source.matchAll(/\blog\.(?:trace|debug|info|warn|error|fatal)\(([^;]*?)\);/g);
      // The message is the last text of the call; one that begins with a template names a provider and is not listed.
      return [...calls].flatMap(([, words = '']) => /'([^']+)',?[\s)]*$/.exec(words)?.[1] ?? []);
    });
    assert.ok(inSource.length > 10);
    assert.deepEqual([...new Set(inSource)].toSorted(), firstCells('## The log').toSorted());
  });

  it('logs only messages that are described', () => {
    const described = firstCells('## The log');
    for (const { msg } of lines) assert.ok(described.includes(msg), msg);
  });

  it('lists the exit codes', () => {
    const listed = [...page.matchAll(/^\| (\d+) \| /gm)].map(([, code]) => Number(code));
    assert.deepEqual(listed, Object.values(exitCodes));
  });

  after(() => {
    assert.ok(lines.length > 0);
  });
});
