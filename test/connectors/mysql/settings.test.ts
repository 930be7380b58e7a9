import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { mysql } from '../../../src/connectors/mysql/index.ts';
import { type Settings, settings } from '../../../src/connectors/mysql/settings.ts';

const account = ['username', 'password'];

function reviewed(given: Record<string, unknown>, credentials: readonly string[]) {
  const { problems, warnings } = mysql.review(settings.parse(given), new Set(credentials));
  const lines = (findings: typeof problems) =>
    findings.map(({ path, message }) => `${path.join('.')}: ${message}`);
  return { problems: lines(problems), warnings: lines(warnings) };
}

function policy({ tls, allowAuth, allowPublicKeyRetrieval, allowLocalInfile }: Settings) {
  return { mode: tls.mode, allowAuth, allowPublicKeyRetrieval, allowLocalInfile };
}

describe('the settings of the connector mysql', () => {
  it('are safe in a service with config.host', () => {
    assert.deepEqual(policy(settings.parse({ host: 'db' })), {
      mode: 'verify-full',
      allowAuth: [],
      allowPublicKeyRetrieval: false,
      allowLocalInfile: false,
    });
    assert.deepEqual(reviewed({ host: 'db' }, account), { problems: [], warnings: [] });
  });

  it("are Secretless's in a service without it, each unsafe one in a warning with the line that mends it", () => {
    assert.deepEqual(policy(settings.parse({})), {
      mode: 'require',
      allowAuth: ['mysql_clear_password', 'sha256_password', 'caching_sha2_password'],
      allowPublicKeyRetrieval: true,
      allowLocalInfile: true,
    });
    const { problems, warnings } = reviewed({}, [...account, 'host']);
    assert.deepEqual(problems, []);
    assert.equal(warnings.length, 3);
    for (const [i, about] of ['tls.mode', 'allowAuth', 'allowLocalInfile'].entries())
      assert.ok(warnings[i]?.startsWith(`config.${about}: `), warnings[i]);
  });

  it('warn of a key that anybody may send where there is no TLS', () => {
    const given = { host: 'db', tls: { mode: 'disable' }, allowPublicKeyRetrieval: true };
    assert.ok(reviewed(given, account).warnings.some((line) => line.includes('man in the middle')));
    assert.equal(reviewed({ ...given, rsaPublicKey: 'key.pem' }, account).warnings.length, 1);
  });

  it('warn that Secretless does not look at sslrootcert in mode require', () => {
    const { warnings } = reviewed({}, [...account, 'host', 'sslrootcert']);
    assert.ok(warnings.some((line) => line.startsWith('credentials.sslrootcert: is not looked at')));
    assert.ok(warnings.some((line) => line.includes('a man in the middle goes unnoticed')));
  });

  it('can be given one by one in a service without config.host', () => {
    const given = { tls: { mode: 'verify-full' }, allowAuth: [], allowLocalInfile: false } as const;
    assert.deepEqual(policy(settings.parse(given)), {
      mode: 'verify-full',
      allowAuth: [],
      allowPublicKeyRetrieval: true,
      allowLocalInfile: false,
    });
    assert.deepEqual(reviewed(given, [...account, 'host']).warnings, []);
  });

  for (const [what, given, credentials, problem] of [
    ['no host', {}, account, /^config\.host: missing/],
    ['two hosts', { host: 'db' }, [...account, 'host'], /^config\.host: given twice/],
    [
      'a credential that means nothing',
      { host: 'db' },
      [...account, 'passwrod'],
      /^credentials\.passwrod: means nothing/,
    ],
    [
      'a certificate without its key',
      { host: 'db', tls: { cert: 'c' } },
      account,
      /^config\.tls: cert and key/,
    ],
    [
      'a database pinned beside a list',
      { host: 'db', database: 'a', databases: ['b'] },
      account,
      /^config\.databases/,
    ],
  ] as const)
    it(`report ${what}`, () => {
      const { problems } = reviewed(given, credentials);
      assert.equal(problems.length, 1);
      assert.match(problems[0] ?? '', problem);
    });

  it('let a Secretless file name credentials that nobody reads, with a warning', () => {
    const { problems, warnings } = reviewed({}, [...account, 'host', 'anything']);
    assert.deepEqual(problems, []);
    assert.ok(warnings.includes('credentials.anything: is ignored, here as in Secretless'));
  });
});
