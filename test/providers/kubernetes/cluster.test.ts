import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';

import { PosternError } from '../../../src/core/errors.ts';
import { type PrivateKubernetes, startKubernetes } from '../../support/servers.ts';
import { failure, never, type Opened, open, texts } from '../opening.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-kubernetes-'));
const canary = 'KUBE-CANARY-\x00\xff-1';

/** Waits until `probe` holds; fails after ten seconds. */
async function until(what: string, probe: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 60_000; !(await probe()); ) {
    assert.ok(Date.now() < end, what);
    await new Promise((later) => setTimeout(later, 20));
  }
}

describe('the provider "kubernetes" and a real API server', () => {
  let cluster: PrivateKubernetes;
  let namespace: string;
  let tokenFile: string;
  const opened: Opened[] = [];

  before(async () => {
    cluster = await startKubernetes();
    namespace = await cluster.namespace();
    await cluster.secret(namespace, 'db', { username: 'app\n', password: canary, 'a.b': 'dotted' });
    await cluster.secret(namespace, 'other', { key: 'of another secret' });
    await cluster.permit(namespace, ['get'], ['db', 'other', 'missing']);
    tokenFile = join(folder, 'token');
    writeFileSync(tokenFile, `${await cluster.token(namespace)}\n`);
  });
  after(async () => {
    for (const provider of opened) await provider.close(AbortSignal.timeout(2000));
    await cluster.stop();
    rmSync(folder, { recursive: true });
  });

  function kubernetes(settings: object = {}, environment: Record<string, string> = {}): Opened {
    const provider = open('kubernetes', settings, environment);
    opened.push(provider);
    return provider;
  }
  const byToken = (settings: object = {}) =>
    kubernetes({ server: cluster.url, ca: cluster.ca, tokenFile, namespace, ...settings });
  const binary = async (provider: Opened, ...references: string[]) => {
    const { secrets } = await provider.fetch(references, never);
    return secrets.map((secret) => secret.reveal().toString('latin1'));
  };

  it('reads every byte of the keys of several secrets with a role that names them', async () => {
    assert.deepEqual(await binary(byToken(), 'db#password', 'other#key', 'db#username', 'db#a.b'), [
      canary,
      'of another secret',
      'app\n',
      'dotted',
    ]);
  });

  it('reads what the official client reads', async () => {
    const { CoreV1Api, KubeConfig } = await import('@kubernetes/client-node');
    const config = new KubeConfig();
    config.loadFromFile(cluster.kubeconfig);
    const theirs = await config.makeApiClient(CoreV1Api).readNamespacedSecret({ name: 'db', namespace });
    const keys = Object.keys(theirs.data ?? {});
    assert.deepEqual(keys.toSorted(), ['a.b', 'password', 'username']);
    const grant = await kubernetes({ kubeconfig: cluster.kubeconfig, namespace }).fetch(
      keys.map((key) => `db#${key}`),
      never,
    );
    assert.deepEqual(
      grant.secrets.map((secret) => secret.reveal().toString('base64')),
      keys.map((key) => theirs.data?.[key]),
    );
    assert.equal(grant.version, theirs.metadata?.resourceVersion);
  });

  it('cuts the line end of a value where it is told to', async () => {
    assert.deepEqual(await binary(byToken({ trim: true }), 'db#username'), ['app']);
  });

  it('says the resourceVersion of each secret', async () => {
    const read = async (name: string) =>
      (await cluster.request('GET', `/api/v1/namespaces/${namespace}/secrets/${name}`)) as {
        metadata: { resourceVersion: string };
      };
    const [db, other] = [await read('db'), await read('other')];
    const provider = byToken();
    assert.equal((await provider.fetch(['db#password'], never)).version, db.metadata.resourceVersion);
    assert.equal(
      (await provider.fetch(['db#password', 'other#key'], never)).version,
      `db@${db.metadata.resourceVersion}, other@${other.metadata.resourceVersion}`,
    );
  });

  it('tells a secret that is missing from a key that is missing, and both from one that is forbidden', async () => {
    const provider = byToken();
    const missing = await failure(provider.fetch(['missing#password'], never));
    assert.equal(missing.code, 'PROVIDER_FAILED');
    assert.match(
      missing.message,
      /reading "missing#password": there is no such secret \(HTTP 404: secrets "missing" not found\)/,
    );
    const key = await failure(provider.fetch(['db#nothing'], never));
    assert.equal(key.code, 'PROVIDER_FAILED');
    assert.match(key.message, /"db#nothing": the secret has no key "nothing"$/);
    const forbidden = await failure(provider.fetch(['elsewhere#password'], never));
    assert.equal(forbidden.code, 'PROVIDER_FAILED');
    assert.match(
      forbidden.message,
      /permission denied \(HTTP 403: secrets "elsewhere" is forbidden: User "system:serviceaccount:/,
    );
  });

  it('reads another namespace only where the settings permit it', async () => {
    const elsewhere = await cluster.namespace();
    await cluster.secret(elsewhere, 'shared', { key: 'from elsewhere' });
    const reference = `${elsewhere}/shared#key`;
    const admin = { kubeconfig: cluster.kubeconfig, namespace };
    const refused = await failure(kubernetes(admin).fetch([reference], never));
    assert.equal(refused.code, 'PROVIDER_FAILED');
    assert.match(refused.message, /the settings do not permit the namespace/);
    for (const permission of [{ namespaces: [elsewhere] }, { allowOtherNamespaces: true }]) {
      assert.deepEqual(await texts(kubernetes({ ...admin, ...permission }), reference), ['from elsewhere']);
    }
    assert.deepEqual(await texts(kubernetes(admin), `${namespace}/other#key`), ['of another secret']);
  });

  it('reads the token file for each request, and again when the server refuses the token', async () => {
    const path = join(folder, 'rotating');
    const valid = await cluster.token(namespace);
    writeFileSync(path, 'not.a.token');
    const provider = byToken({ tokenFile: path });
    const refused = await failure(provider.fetch(['db#password'], never));
    assert.equal(refused.code, 'PROVIDER_FAILED');
    assert.match(refused.message, /does not accept the token or certificate \(HTTP 401/);
    writeFileSync(path, valid);
    assert.deepEqual(await binary(provider, 'db#password'), [canary]);
    writeFileSync(path, await cluster.token(namespace, ['vault']));
    assert.match((await failure(provider.fetch(['db#password'], never))).message, /HTTP 401/);
    assert.doesNotMatch(provider.logged(), /ey[A-Za-z0-9]/);
  });

  it('checks that it is known to the server', async () => {
    await byToken().check(never);
    const path = join(folder, 'wrong');
    writeFileSync(path, 'not.a.token');
    assert.equal((await failure(byToken({ tokenFile: path }).check(never))).code, 'PROVIDER_FAILED');
    const down = kubernetes({ server: 'https://127.0.0.1:1', tokenFile, retries: 0 });
    assert.equal((await failure(down.check(never))).code, 'PROVIDER_UNAVAILABLE');
  });

  it('verifies the certificate of the server', async () => {
    const error = await failure(
      kubernetes({ server: cluster.url, tokenFile, namespace }).fetch(['db#password'], never),
    );
    assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
    assert.match(error.message, /TLS with 127\.0\.0\.1:\d+ failed/);
  });

  it('asks the API server of its pod, by the variables of the pod', async () => {
    const variables = (host: string) => ({
      KUBERNETES_SERVICE_HOST: host,
      KUBERNETES_SERVICE_PORT: String(cluster.port),
    });
    const settings = { ca: cluster.ca, tokenFile, namespace, retries: 0 };
    assert.deepEqual(await binary(kubernetes(settings, variables('127.0.0.1')), 'other#key'), [
      'of another secret',
    ]);
    const ipv6 = await failure(kubernetes(settings, variables('::1')).fetch(['other#key'], never));
    assert.match(ipv6.message, /\[::1\]:\d+ cannot be asked/);
  });

  it('says that there is no cluster where there is none', async () => {
    const refused = await failure(open('kubernetes', {}, { HOME: '' }).fetch(['db#password'], never));
    assert.equal(refused.code, 'PROVIDER_FAILED');
    assert.match(refused.message, /no cluster: set/);
  });

  it('sends no token over plain http to another machine', async () => {
    const error = await failure(
      kubernetes({ server: 'http://192.0.2.1', tokenFile }).fetch(['db#password'], never),
    );
    assert.match(error.message, /192\.0\.2\.1 would be asked over plain http/);
  });

  describe('with a kubeconfig', () => {
    const write = (name: string, user: string, rest = '') => {
      const path = join(folder, name);
      writeFileSync(
        path,
        `apiVersion: v1
kind: Config
current-context: one
contexts: [{ name: one, context: { cluster: here, user: app, namespace: ${namespace} } }]
clusters: [{ name: here, cluster: { server: "${cluster.url}", certificate-authority: ${cluster.ca} } }]
users: [{ name: app, user: ${user} }]
${rest}`,
      );
      return path;
    };

    it('uses its client certificate, its token and its token file', async () => {
      assert.deepEqual(await texts(kubernetes({ kubeconfig: cluster.kubeconfig, namespace }), 'other#key'), [
        'of another secret',
      ]);
      for (const user of [`{ token: ${await cluster.token(namespace)} }`, `{ tokenFile: token }`]) {
        const path = write('token.yaml', user);
        assert.deepEqual(await texts(kubernetes({ kubeconfig: path }), 'other#key'), ['of another secret']);
        assert.deepEqual(await texts(kubernetes({}, { KUBECONFIG: path }), 'other#key'), [
          'of another secret',
        ]);
      }
    });

    it('merges several files of KUBECONFIG: the first that has an entry decides', async () => {
      const first = join(folder, 'first.yaml');
      writeFileSync(first, 'current-context: one\nusers: [{ name: app, user: { tokenFile: token } }]\n');
      const second = write('second.yaml', '{ token: wrong }');
      assert.deepEqual(await texts(kubernetes({}, { KUBECONFIG: `${first}:${second}` }), 'other#key'), [
        'of another secret',
      ]);
    });

    it('runs a credential plug-in without a shell, once for many', async () => {
      const program = join(folder, 'plug-in');
      const status = `{"token":"'$(cat ${tokenFile})'","expirationTimestamp":"2099-01-01T00:00:00Z"}`;
      writeFileSync(
        program,
        `#!/bin/sh
echo run >> ${folder}/runs
test "$1" = 'an "argument"; exit 1' || exit 3
echo "$KUBERNETES_EXEC_INFO" | grep -q '"interactive":false' || exit 4
printf '%s' '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":${status}}'
`,
      );
      chmodSync(program, 0o755);
      const exec = `{ exec: { apiVersion: client.authentication.k8s.io/v1, command: ./plug-in, args: ['an "argument"; exit 1'], interactiveMode: Never } }`;
      const provider = kubernetes(
        { kubeconfig: write('exec.yaml', exec) },
        { PATH: process.env['PATH'] ?? '' },
      );
      await Promise.all(Array.from({ length: 5 }, () => texts(provider, 'other#key')));
      assert.deepEqual(await texts(provider, 'other#key'), ['of another secret']);
      assert.equal(readFileSync(join(folder, 'runs'), 'utf8'), 'run\n');
    });

    for (const [what, user, problem] of [
      ['a name and a password', '{ username: a, password: KUBE-CANARY }', /user name and a password/],
      ['an auth-provider', '{ auth-provider: { name: gcp } }', /auth-provider/],
      ['impersonation', '{ token: KUBE-CANARY, as: root }', /impersonation/],
      [
        'a plug-in of version v1alpha1',
        '{ exec: { apiVersion: client.authentication.k8s.io/v1alpha1, command: x } }',
        /v1alpha1/,
      ],
      [
        'a plug-in that is not there',
        '{ exec: { apiVersion: client.authentication.k8s.io/v1, command: /nonexistent } }',
        /\/nonexistent is not there/,
      ],
    ] as const)
      it(`refuses ${what} with a sentence`, async () => {
        const error = await failure(
          kubernetes({ kubeconfig: write('refused.yaml', user) }).fetch(['db#password'], never),
        );
        assert.match(error.message, problem);
        assert.match(error.message, /provider "kubernetes"/);
        assert.doesNotMatch(error.message, /CANARY/);
      });

    it('quotes nothing of a file that is no YAML', async () => {
      const path = join(folder, 'broken.yaml');
      writeFileSync(path, 'users: [{token: KUBE-CANARY');
      const error = await failure(kubernetes({ kubeconfig: path }).fetch(['db#password'], never));
      assert.match(error.message, /is not valid YAML$/);
    });

    it('says what is wrong when there is no cluster at all, and works when there is one later', async () => {
      const path = join(folder, 'later.yaml');
      const provider = kubernetes({ kubeconfig: path });
      assert.match((await failure(provider.fetch(['other#key'], never))).message, /there is no such file/);
      write('later.yaml', '{ tokenFile: token }');
      assert.deepEqual(await texts(provider, 'other#key'), ['of another secret']);
    });
  });

  describe('with `watch`', () => {
    let watched: string;
    let watchToken: string;

    before(async () => {
      watched = await cluster.namespace();
      await cluster.secret(watched, 'db', { password: 'one' });
      await cluster.permit(watched, ['get', 'list', 'watch'], ['db']);
      watchToken = join(folder, 'watch-token');
      writeFileSync(watchToken, await cluster.token(watched));
    });
    const watching = (settings: object = {}) =>
      byToken({ namespace: watched, tokenFile: watchToken, watch: true, ...settings });
    const value = async (provider: Opened) => (await texts(provider, 'db#password'))[0];

    it('answers from the watch, sees a change, a deletion and a new secret of the same name', async () => {
      const provider = watching();
      assert.equal(await value(provider), 'one');
      // Without a token no request can be made: what is answered now comes from the watch.
      await until('it is watched', () => servedWithoutToken(provider, 'one'));
      for (const next of ['two', 'three']) {
        await cluster.secret(watched, 'db', { password: next });
        await until(`"${next}" is seen`, async () => (await value(provider)) === next);
        assert.ok(await servedWithoutToken(provider, next));
      }
      await cluster.request('DELETE', `/api/v1/namespaces/${watched}/secrets/db`);
      await until('it is gone', async () =>
        provider.fetch(['db#password'], never).then(
          () => false,
          (error: Error) => /there is no such secret/.test(error.message),
        ),
      );
      await cluster.secret(watched, 'db', { password: 'again' });
      await until('it is back', async () => (await value(provider).catch(() => '')) === 'again');
      assert.ok(await servedWithoutToken(provider, 'again'));
    });

    it('reads while it cannot watch, and says so once', async () => {
      const provider = byToken({ watch: true });
      assert.equal((await binary(provider, 'db#password'))[0], canary);
      await until('it has been told', () => provider.logged().includes('not watched'));
      assert.match(provider.logged(), /not watched, so it is read for each login: .*permission denied/);
      await cluster.secret(namespace, 'db', {
        username: 'app\n',
        password: canary,
        'a.b': 'dotted',
        more: 'x',
      });
      assert.deepEqual(await texts(provider, 'db#more'), ['x']);
      assert.equal(provider.logged().split('not watched').length, 2);
    });

    it('takes a silent watch for dead, and reads until the next one is open', async () => {
      const provider = watching({ watchSilence: '300ms' });
      assert.equal(await value(provider), 'again');
      await until('it is dead', () => /nothing was heard for 0\.3 s/.test(provider.logged()));
      assert.equal(await value(provider), 'again');
      await until('it is back', () => provider.logged().includes('watched again'));
    });

    it('fails while the API server is down, and follows the secret again when it is back', async () => {
      const provider = watching({ retries: 0 });
      await value(provider);
      await until('it is watched', () => servedWithoutToken(provider, 'again'));
      await cluster.kill();
      let error: unknown;
      await until('it fails', () =>
        value(provider).then(
          () => false,
          (thrown: unknown) => {
            error = thrown;
            return true;
          },
        ),
      );
      assert.ok(error instanceof PosternError);
      assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
      assert.match(error.message, /cannot be asked \(ECONN(REFUSED|RESET)\)/);
      await cluster.restart();
      await cluster.secret(watched, 'db', { password: 'after the restart' });
      await until('it is followed', () => servedWithoutToken(provider, 'after the restart'));
    });

    /** Whether a fetch gives `expected` while every request would fail for want of a token. */
    async function servedWithoutToken(provider: Opened, expected: string): Promise<boolean> {
      const token = readFileSync(watchToken, 'utf8');
      writeFileSync(watchToken, '');
      try {
        return (await value(provider)) === expected;
      } catch {
        return false;
      } finally {
        writeFileSync(watchToken, token);
      }
    }
  });
});
