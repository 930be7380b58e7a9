import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { GenericContainer, getContainerRuntimeClient, type StartedTestContainer, Wait } from 'testcontainers';
import { certificates } from './certificates.ts';
import { openbao } from './install.ts';
import { fill, newIdentifiers, openBao, tlsListener } from './openbao.ts';
import { type PgBouncerInfo, pgBouncerConfig, pgBouncerUsers } from './pgbouncer.ts';
import type { PostgresInfo } from './postgres.ts';
import { cluster, database, hba } from './postgres-roles.ts';
import { Unavailable } from './process.ts';
import { writeRecord } from './state.ts';

/*
 * The same servers as official images, for a developer who has a Docker engine and nothing else. The shared ones only:
 * a private server is killed and restarted on the port it had, which processes of this machine do best.
 */

/** Starts one of the shared servers in a container and records it. */
export async function startInContainer(
  name: 'postgres18' | 'postgres15' | 'pgbouncer' | 'openbao',
  upstream: () => Promise<PostgresInfo>,
): Promise<void> {
  switch (name) {
    case 'postgres18':
      return postgres(name, 18);
    case 'postgres15':
      return postgres(name, 15);
    case 'pgbouncer':
      return pgBouncer(name, await upstream());
    case 'openbao':
      return bao(name);
  }
}

/** Ends a container, data and all. */
export async function removeContainer(id: string): Promise<void> {
  const { container } = await getContainerRuntimeClient();
  await container.getById(id).remove({ force: true, v: true });
}

/**
 * Started for reuse, which is testcontainers' word for: do not end it with this process. The keeper does that. The
 * label keeps it from being found again, with the data that an earlier run left in it.
 */
async function start(container: GenericContainer): Promise<StartedTestContainer> {
  try {
    return await container.withLabels({ 'postern.test': randomUUID() }).withReuse().start();
  } catch (error) {
    throw new Unavailable(`the Docker engine could not start it: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

const file = (target: string, content: string) => ({ target, content, mode: 0o644 });

async function tlsFiles(): Promise<{ target: string; content: string; mode: number }[]> {
  const { server, ca } = await certificates();
  const paths = {
    '/postern/server.crt': server.cert,
    '/postern/server.key': server.key,
    '/postern/ca.crt': ca,
  };
  return Promise.all(
    Object.entries(paths).map(async ([target, path]) => file(target, await readFile(path, 'utf8'))),
  );
}

async function postgres(name: string, version: 15 | 18): Promise<void> {
  const withTls = version === 18;
  const settings = [
    'fsync = off',
    'max_connections = 800',
    'wal_level = logical',
    ...(withTls
      ? ['ssl = on', 'ssl_cert_file = server.crt', 'ssl_key_file = server.key', 'ssl_ca_file = ca.crt']
      : []),
  ].map((line) => line.replace(/= (.*)$/, "= '$1'"));
  // Runs as the server's own user, before it listens on any address.
  const prepare = `set -e
psql -q -v ON_ERROR_STOP=1 -U postgres -f /postern/cluster.sql
createdb -U postgres app
psql -q -v ON_ERROR_STOP=1 -U postgres -d app -f /postern/app.sql
cp /postern/server.crt /postern/server.key /postern/ca.crt "$PGDATA"
chmod 600 "$PGDATA/server.key"
cp /postern/pg_hba.conf "$PGDATA/pg_hba.conf"
cat /postern/settings.conf >> "$PGDATA/postgresql.conf"
`;
  const container = await start(
    new GenericContainer(`postgres:${version}`)
      .withEnvironment({
        POSTGRES_HOST_AUTH_METHOD: 'trust',
        POSTGRES_INITDB_ARGS: '-E UTF8 --locale=C --no-sync',
      })
      .withCopyContentToContainer([
        ...(await tlsFiles()),
        file('/postern/cluster.sql', cluster),
        file('/postern/app.sql', database),
        file('/postern/pg_hba.conf', hba(withTls, 'all')),
        file('/postern/settings.conf', `${settings.join('\n')}\n`),
        file('/docker-entrypoint-initdb.d/postern.sh', prepare),
      ])
      .withExposedPorts(5432)
      .withWaitStrategy(Wait.forLogMessage(/database system is ready to accept connections/, 2)),
  );
  const port = container.getMappedPort(5432);
  const info: PostgresInfo = {
    version,
    host: '127.0.0.1',
    port,
    ownPort: 5432,
    database: 'app',
    socketDir: undefined,
    log: undefined,
    ca: withTls ? (await certificates()).ca : undefined,
  };
  await writeRecord(name, { container: container.getId(), ready: true, port, info });
}

async function pgBouncer(name: string, upstream: PostgresInfo): Promise<void> {
  const gateway = 'host.docker.internal';
  const config = pgBouncerConfig({
    address: '0.0.0.0',
    port: 6432,
    upstream: { host: gateway, port: upstream.port },
    files: {
      users: '/etc/pgbouncer/userlist.txt',
      key: '/postern/server.key',
      cert: '/postern/server.crt',
      ca: '/postern/ca.crt',
    },
  });
  const container = await start(
    new GenericContainer('edoburu/pgbouncer:latest')
      .withExtraHosts([{ host: gateway, ipAddress: 'host-gateway' }])
      .withCopyContentToContainer([
        ...(await tlsFiles()),
        file('/etc/pgbouncer/pgbouncer.ini', config),
        file('/etc/pgbouncer/userlist.txt', pgBouncerUsers),
      ])
      .withExposedPorts(6432)
      .withWaitStrategy(Wait.forLogMessage(/process up/)),
  );
  const port = container.getMappedPort(6432);
  const { ca } = await certificates();
  const info: PgBouncerInfo = { host: '127.0.0.1', port, database: 'app', ca, upstreamPort: upstream.port };
  await writeRecord(name, { container: container.getId(), ready: true, port, info });
}

async function bao(name: string): Promise<void> {
  const identifiers = newIdentifiers();
  const files = { cert: '/postern/server.crt', key: '/postern/server.key', ca: '/postern/ca.crt' };
  const container = await start(
    new GenericContainer(`openbao/openbao:${openbao.version}`)
      .withEnvironment({ BAO_DEV_ROOT_TOKEN_ID: identifiers.rootToken, SKIP_SETCAP: 'true' })
      .withCopyContentToContainer([
        ...(await tlsFiles()),
        file('/openbao/config/tls.hcl', tlsListener('0.0.0.0:8300', files)),
      ])
      .withCommand(['server', '-dev', '-dev-no-store-token'])
      .withExposedPorts(8200, 8300)
      .withWaitStrategy(Wait.forHttp('/v1/sys/health', 8200)),
  );
  const port = container.getMappedPort(8200);
  const info = {
    ...identifiers,
    host: '127.0.0.1',
    port,
    address: `http://127.0.0.1:${port}`,
    tlsAddress: `https://127.0.0.1:${container.getMappedPort(8300)}`,
    ca: (await certificates()).ca,
    unsealKey: '',
  };
  const record = { container: container.getId(), port, info };
  await writeRecord(name, { ...record, ready: false });
  await fill(openBao(info));
  await writeRecord(name, { ...record, ready: true });
}
