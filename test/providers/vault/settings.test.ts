import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { parse } from 'yaml';

import { PosternError } from '../../../src/core/errors.ts';
import {
  encodePath,
  parametersOf,
  parseReference,
  versionOf,
} from '../../../src/providers/vault/reference.ts';
import { settings, withEnvironment } from '../../../src/providers/vault/settings.ts';
import { providers } from '../../support/plugins.ts';
import { open } from '../opening.ts';

const check = (reference: string) => providers['vault']?.checkReference(reference);
const invalid = (settings: object, environment: Record<string, string> = {}) => {
  try {
    open('vault', settings, environment);
  } catch (thrown) {
    assert.ok(thrown instanceof PosternError);
    assert.equal(thrown.code, 'CONFIG_INVALID');
    return thrown.message;
  }
  throw new Error('expected CONFIG_INVALID');
};

describe('a reference to Vault', () => {
  it('is a path, perhaps a version, and perhaps a field', () => {
    assert.deepEqual(parseReference('secret/app/db'), {
      path: 'secret/app/db',
      query: undefined,
      field: 'value',
    });
    assert.deepEqual(parseReference('secret/app?version=3#a.b'), {
      path: 'secret/app',
      query: 'version=3',
      field: 'a.b',
    });
    assert.deepEqual(parseReference('kv/x#a#b?c'), { path: 'kv/x', query: undefined, field: 'a#b?c' });
    for (const fine of [
      'secret/app/db',
      'secret/data/app/db#data.password',
      'team/kv/a b/ä%2f#x',
      'database/creds/ro#username',
      'transit/datakey/plaintext/key?#plaintext',
      'pki/issue/web?common_name=a.internal&ttl=1h&alt_names=b%26c#certificate',
    ]) {
      assert.equal(check(fine), undefined);
    }
    assert.equal(versionOf('version=3'), 3);
    assert.equal(versionOf('versions=3'), undefined);
    const parameters = parametersOf('common_name=a.internal&alt_names=b%26c%3D%C3%A4&empty=');
    assert.deepEqual(
      Object.entries(parameters).map(([name, value]) => [name, value.toString()]),
      [
        ['common_name', 'a.internal'],
        ['alt_names', 'b&c=ä'],
        ['empty', ''],
      ],
    );
    assert.deepEqual(parametersOf(''), {});
  });

  it('is refused with its reason where it could reach something else', () => {
    const cases: [string, RegExp][] = [
      ['', /path of the secret is missing/],
      ['#password', /path of the secret is missing/],
      ['secret', /must name a mount and a secret/],
      ['secret/app#', /field after "#" is missing/],
      ['/secret/app', /not begin with "\/"/],
      ['secret/app/', /not end with "\/"/],
      ['secret//app', /"\/\/"/],
      ['secret/app/../../sys/seal', /"\.\."/],
      ['../x', /"\.\."/],
      ['secret/./app', /"\."/],
      ['secret/a\nb', /control character/],
      ['secret/\ud800', /control character/],
      ['secret/app?version=0', /"\?version=N"/],
      ['secret/app?version=1&list=true', /"\?version=N"/],
      ['secret/app?list=true&version=1', /"\?version=N"/],
      ['pki/issue/x?ttl', /parameters as in/],
      ['pki/issue/x?ttl=1h&', /parameters as in/],
      ['pki/issue/x?__proto__=1', /parameters as in/],
      ['pki/issue/x?TTL=1h', /parameters as in/],
      ['pki/issue/x?ttl=1h&ttl=2h', /"ttl" is given twice/],
      ['pki/issue/x?ttl=%', /"ttl" has a "%"/],
      ['pki/issue/x?ttl=%C3', /"ttl" has a "%"/],
      ['pki/issue/x?ttl=\ud800', /is no text/],
      [`pki/issue/x?ttl=${'1'.repeat(4096)}`, /longer than 4096/],
      [`secret/app#${'x'.repeat(513)}`, /longer than 512/],
    ];
    for (const [reference, message] of cases) assert.match(check(reference) ?? '', message);
  });

  it('never leaves the path that it names, whatever is in it', () => {
    fc.assert(
      fc.property(fc.array(fc.string({ unit: 'binary', minLength: 1 }), { minLength: 2 }), (segments) => {
        const reference = segments.join('/');
        if (check(reference) !== undefined) return;
        const { path } = parseReference(reference);
        const url = new URL(`/v1/${encodePath(path)}`, 'http://vault.invalid');
        assert.equal(url.host, 'vault.invalid');
        assert.equal(url.search + url.hash, '');
        assert.deepEqual(
          url.pathname.slice('/v1/'.length).split('/').map(decodeURIComponent),
          path.split('/'),
        );
      }),
      { numRuns: 1000 },
    );
  });
});

describe('the settings of "vault"', () => {
  const effective = (given: object, environment: Record<string, string> = {}) =>
    withEnvironment(settings.parse(given), {
      name: 'vault',
      environment,
      log: { warn: () => undefined } as never,
    });

  it('have the defaults of the command line, with a shorter timeout', () => {
    const { origin, namespace, timeout, retries, followRedirects, tls } = effective({});
    assert.equal(origin.href, 'https://127.0.0.1:8200/');
    assert.deepEqual(
      { namespace, timeout, retries, followRedirects, skipVerify: tls.skipVerify },
      {
        namespace: undefined,
        timeout: 5000,
        retries: 2,
        followRedirects: true,
        skipVerify: false,
      },
    );
  });

  it('take from the environment what they leave out, OpenBao first, and nothing that they say', () => {
    const environment = {
      VAULT_ADDR: 'https://addr:1',
      VAULT_AGENT_ADDR: 'https://agent:2',
      BAO_ADDR: 'https://bao:3',
      VAULT_NAMESPACE: 'vault',
      BAO_NAMESPACE: 'bao',
      VAULT_CLIENT_TIMEOUT: '7',
      VAULT_MAX_RETRIES: '0',
      VAULT_DISABLE_REDIRECTS: 'true',
      VAULT_TLS_SERVER_NAME: 'other',
      VAULT_SKIP_VERIFY: 'T',
    };
    const filled = effective({}, environment);
    assert.equal(filled.origin.host, 'agent:2');
    assert.equal(filled.namespace, 'bao');
    assert.equal(filled.timeout, 7000);
    assert.equal(filled.retries, 0);
    assert.equal(filled.followRedirects, false);
    assert.equal(filled.tls.serverName, 'other');
    assert.equal(filled.tls.skipVerify, true);

    const said = effective(
      { address: 'https://mine', namespace: 'mine', timeout: '1s', retries: 5, tls: {} },
      environment,
    );
    assert.equal(said.origin.host, 'mine');
    assert.equal(said.namespace, 'mine');
    assert.equal(said.timeout, 1000);
    assert.equal(said.retries, 5);
    assert.equal(said.tls.serverName, undefined);
    assert.equal(said.tls.skipVerify, false);
    assert.equal(effective({}, { VAULT_ADDR: '', VAULT_CLIENT_TIMEOUT: '' }).origin.port, '8200');
  });

  it('read booleans strictly: "false" is false and anything odd is an error', () => {
    for (const no of ['false', '0', 'F', 'FALSE']) {
      assert.equal(effective({}, { VAULT_SKIP_VERIFY: no }).tls.skipVerify, false);
    }
    assert.match(invalid({}, { VAULT_SKIP_VERIFY: 'no' }), /VAULT_SKIP_VERIFY must be true or false/);
  });

  it('are refused with a sentence when they cannot work', () => {
    const folder = mkdtempSync(join(tmpdir(), 'postern-tls-'));
    try {
      const noPem = join(folder, 'no.pem');
      writeFileSync(noPem, 'not a certificate');
      const cases: [object, Record<string, string>, RegExp][] = [
        [{ address: 'vault:8200' }, {}, /must begin with https/],
        [{ address: 'ftp://vault' }, {}, /must begin with https/],
        [{ address: 'https://user:s3cret@vault' }, {}, /a scheme, a host, a port/],
        [{ address: 'https://vault/?a' }, {}, /a scheme, a host, a port/],
        [{ address: 'unix://relative' }, {}, /unix:\/\/\/path/],
        [{ namespace: 'a\nb' }, {}, /namespace must be printable/],
        [{}, { VAULT_CLIENT_TIMEOUT: 'soon' }, /VAULT_CLIENT_TIMEOUT/],
        [{}, { VAULT_MAX_RETRIES: '-1' }, /VAULT_MAX_RETRIES/],
        [{ tls: { cert: noPem } }, {}, /both its file and the file of its key/],
        [{}, { BAO_CLIENT_CERT_BYTES: 'x' }, /both its file and the file of its key/],
        [{ auth: { method: 'cert' } }, {}, /needs an https address and a client certificate/],
        [
          { auth: { method: 'cert' }, address: 'http://127.0.0.1', tls: { cert: noPem, key: noPem } },
          {},
          /needs an https address and a client certificate/,
        ],
        [{ tls: { ca: join(folder, 'none') } }, {}, /TLS files cannot be used \(ENOENT\)/],
        [{ tls: { caPath: folder } }, {}, /TLS files cannot be used/],
        [{ tls: { cert: noPem, key: noPem } }, {}, /TLS files cannot be used/],
      ];
      for (const [given, environment, message] of cases) {
        assert.match(invalid(given, environment), message);
        assert.doesNotMatch(invalid(given, environment), /s3cret/);
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('take one way to log in, complete and without contradictions', () => {
    const fine = [
      { method: 'token', tokenEnv: 'X' },
      { method: 'tokenFile', path: '/x' },
      { method: 'approle', roleId: 'r' },
      { method: 'approle', roleIdFile: '/r', secretIdEnv: 'S', mount: 'team/approle' },
      { method: 'kubernetes', role: 'r' },
      { method: 'jwt', jwtFile: '/j' },
      { method: 'jwt', jwtFile: '/j', role: 'r', mount: 'ci' },
      { method: 'userpass', username: 'u', passwordFile: '/p' },
      { method: 'ldap', username: 'u', passwordEnv: 'P', mount: 'corp/ldap' },
      { method: 'cert' },
      { method: 'cert', name: 'web' },
      { method: 'approle', roleId: 'r', secretIdFile: '/w', secretIdWrapped: true },
      { method: 'none' },
    ];
    for (const auth of fine) settings.parse({ auth });
    const wrong = [
      { method: 'token', token: 'a', tokenEnv: 'X' },
      { method: 'tokenFile' },
      { method: 'approle', secretId: 's' },
      { method: 'approle', roleId: 'r', secretId: 's', secretIdFile: '/s' },
      { method: 'approle', roleId: 'r', mount: '/approle/' },
      { method: 'kubernetes' },
      { method: 'none', token: 'x' },
      { method: 'ldap' },
      { method: 'jwt', role: 'r' },
      { method: 'userpass', username: 'u' },
      { method: 'userpass', username: 'u', password: 'p', passwordFile: '/p' },
      { method: 'userpass', username: '../../sys', password: 'p' },
      { method: 'userpass', username: '..', password: 'p' },
      { method: 'approle', roleId: 'r', secretIdWrapped: true },
      { method: 'oidc' },
    ];
    for (const auth of wrong) assert.equal(settings.safeParse({ auth }).success, false);
  });

  it('are what the documentation says: every way to log in has an example, which is valid', () => {
    const page = readFileSync(new URL('../../../docs/providers/vault.md', import.meta.url), 'utf8');
    const examples = [...page.matchAll(/```yaml\n(auth: [^`]*)```/g)].map(([, text = '']) => parse(text));
    const methods = examples.map((example) => settings.parse(example).auth.method);
    const every = ['approle', 'cert', 'jwt', 'kubernetes', 'none', 'token', 'tokenFile', 'userpass'];
    assert.deepEqual(methods.toSorted(), every);
    for (const [, reference = ''] of page.matchAll(/^\| `([^`]+)` \| /gm)) {
      if (reference.includes('/')) assert.equal(check(reference), undefined, reference);
    }
  });

  it('warn of what is unsafe or ignored', () => {
    const warned = (given: object, environment: Record<string, string> = {}) =>
      open('vault', given, environment).logged();
    assert.match(warned({ address: 'http://vault.internal:8200' }), /over plain http/);
    assert.equal(warned({ address: 'http://127.0.0.1:8200' }), '');
    assert.equal(warned({ address: 'http://localhost:8200' }), '');
    assert.match(warned({ address: 'http://127.example.com' }), /over plain http/);
    assert.match(warned({ tls: { skipVerify: true } }), /TLS is not verified/);
    assert.match(warned({}, { VAULT_HTTP_PROXY: 'http://proxy' }), /are ignored/);
  });
});
