import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { Sha256 } from '@aws-crypto/sha256-js';
import { SignatureV4 } from '@smithy/signature-v4';

import { mysqlCli } from '../support/clients/mysql-cli.ts';
import { psql } from '../support/clients/psql.ts';
import { Postern } from '../support/postern.ts';
import {
  mysqlQuery,
  type PostgresInfo,
  sql,
  startMySql,
  startPostgres,
  withServer,
} from '../support/servers.ts';

const host = 'db1.cabc.us-east-1.rds.amazonaws.com';
const keys = { id: 'AKIAIOSFODNN7EXAMPLE', secret: randomBytes(20).toString('hex') };
/** As long as those that STS hands out for a role with tags. */
const sessionToken = randomBytes(1000).toString('base64');
const environment = {
  AWS_ACCESS_KEY_ID: keys.id,
  AWS_SECRET_ACCESS_KEY: keys.secret,
  AWS_SESSION_TOKEN: sessionToken,
};

/** A token holds the time: with the program's clock stopped it is known beforehand. */
const now = new Date(Math.floor(Date.now() / 1000) * 1000);
const stoppedClock = `--import=data:text/javascript,${encodeURIComponent(
  `const D = Date; globalThis.Date = class extends D { constructor(...a) { a.length ? super(...a) : super(${now.getTime()}) } static now() { return ${now.getTime()} } };`,
)}`;

/** What the reference signer makes of the same. */
async function expected(user: string, port: number): Promise<string> {
  const credentials = { accessKeyId: keys.id, secretAccessKey: keys.secret, sessionToken };
  const signer = new SignatureV4({ credentials, region: 'us-east-1', service: 'rds-db', sha256: Sha256 });
  const { query = {} } = await signer.presign(
    {
      method: 'GET',
      protocol: 'https:',
      hostname: host,
      port,
      path: '/',
      query: { Action: 'connect', DBUser: user },
      headers: { host: `${host}:${port}` },
    },
    { expiresIn: 900, signingDate: now },
  );
  const parameters = Object.entries(query)
    .map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(String(value))}`)
    .toSorted();
  // The signature stands last, as AWS's own tokens have it.
  const [signature = ''] = parameters.filter((parameter) => parameter.startsWith('X-Amz-Signature='));
  return `${host}:${port}/?${[...parameters.filter((parameter) => parameter !== signature), signature].join('&')}`;
}

describe('a login token of RDS', () => {
  const folders: string[] = [];
  after(async () => {
    for (const folder of folders) await rm(folder, { recursive: true });
  });

  async function ownPostgres(): Promise<PostgresInfo & { readonly stop: () => Promise<void> }> {
    return await startPostgres({ version: 18 });
  }

  it('of more than 1500 bytes logs in to a real PostgreSQL, which asks for a clear password over TLS', async (t) => {
    if (!(await withServer(t, 'postgres18'))) return;
    const postgres = await ownPostgres();
    t.after(postgres.stop);
    const token = await expected('clear_user', 5432);
    assert.ok(token.length > 1500);
    await sql(postgres, `ALTER ROLE clear_user PASSWORD '${token}'`);
    await using postern = await Postern.start(
      `version: 2
services:
  db:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    credentials: { username: clear_user, password: { from: rds-iam, get: "clear_user@${host}:5432" } }
    config: { host: localhost, port: ${postgres.port}, tls: { ca: ${postgres.ca} } }
`,
      { env: environment, nodeOptions: stoppedClock },
    );
    const target = `host=127.0.0.1 port=${postern.port('db')} dbname=app user=anybody sslmode=disable`;
    const answer = await psql([target, '-Atc', 'SELECT current_user']);
    assert.deepEqual([answer.stdout, answer.stderr], ['clear_user\n', '']);
    assert.ok(!postern.output.includes(sessionToken.slice(0, 40)));
  });

  it('of 3000 bytes, as those of Entra ID are, does so too', async (t) => {
    if (!(await withServer(t, 'postgres18'))) return;
    const postgres = await ownPostgres();
    t.after(postgres.stop);
    const folder = await mkdtemp(join(tmpdir(), 'postern-token-'));
    folders.push(folder);
    const token = randomBytes(2250).toString('base64url');
    assert.equal(token.length, 3000);
    await writeFile(join(folder, 'token'), token);
    await sql(postgres, `ALTER ROLE clear_user PASSWORD '${token}'`);
    await using postern = await Postern.start(`version: 2
services:
  db:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    credentials: { username: clear_user, password: { from: file, get: ${join(folder, 'token')} } }
    config: { host: localhost, port: ${postgres.port}, tls: { ca: ${postgres.ca} } }
`);
    const target = `host=127.0.0.1 port=${postern.port('db')} dbname=app user=anybody sslmode=disable`;
    const answer = await psql([target, '-Atc', 'SELECT current_user']);
    assert.deepEqual([answer.stdout, answer.stderr], ['clear_user\n', '']);
  });

  it('logs in to a real MariaDB, which asks for mysql_clear_password and leaves the check to PAM', async (t) => {
    if (!(await withServer(t, 'mariadb10'))) return;
    if (process.getuid?.() !== 0) return t.skip('a PAM service can be made by root only');
    const mariadb = await startMySql({ kind: 'mariadb10' });
    t.after(mariadb.stop);
    const folder = await mkdtemp(join(tmpdir(), 'postern-token-'));
    folders.push(folder);
    await chmod(folder, 0o755);
    const token = await expected('token_user', 3306);
    assert.ok(token.length > 1500);
    // PAM hands on 511 bytes at most; that all of it is sent is said by the test of mysql_clear_password.
    const script = join(folder, 'check.sh');
    await writeFile(script, `#!/bin/sh\nread -r p\ntest "$p" = '${token.slice(0, 511)}'\n`, { mode: 0o755 });
    const service = `postern-test-token-${process.pid}`;
    await writeFile(
      join('/etc/pam.d', service),
      `auth required pam_exec.so quiet expose_authtok ${script}\naccount required pam_permit.so\n`,
    );
    t.after(() => rm(join('/etc/pam.d', service)));
    await mysqlQuery(mariadb, `CREATE USER token_user@'%' IDENTIFIED VIA pam USING '${service}'`);
    await mysqlQuery(mariadb, "GRANT SELECT ON app.* TO token_user@'%'");
    await using postern = await Postern.start(
      `version: 2
services:
  db:
    connector: mysql
    listenOn: tcp://127.0.0.1:0
    credentials: { username: token_user, password: { from: rds-iam, get: "token_user@${host}:3306" } }
    config: { host: localhost, port: ${mariadb.port}, tls: { ca: ${mariadb.ca} } }
`,
      { env: environment, nodeOptions: stoppedClock },
    );
    const target = {
      host: '127.0.0.1',
      port: postern.port('db'),
      user: 'anybody',
      database: 'app',
    };
    const answer = await mysqlCli('mariadb10', target, ['-e', 'SELECT current_user()']);
    assert.deepEqual([answer.stdout, answer.stderr], ['token_user@%\n', '']);
  });
});
