import type { AccessConfig, ServiceConfig } from './config/config.ts';
import { Access, KnownPassword, type LocalPassword } from './core/access.ts';
import { accountIds } from './core/accounts.ts';
import { PosternError } from './core/errors.ts';
import { loadNative, type Native } from './core/native.ts';
import { identifyPeer } from './core/peer.ts';
import { CredentialSource, type SourceOptions } from './lifecycle/source.ts';
import type { Provider } from './providers/provider.ts';

/** A local password is asked of its provider this often at most, in milliseconds: whoever can connect can try one. */
const PASSWORD_TTL = 5000;

/** The rules for a service's port, and where its local password comes from. */
export interface OpenAccess {
  readonly access: Access;
  readonly source: CredentialSource | undefined;
}

/** Sets up what `access` of a service says. Throws CONFIG_INVALID where it could not be kept on this machine: then nobody gets in. */
export async function openAccess(
  { name, listenOn, cache }: Pick<ServiceConfig, 'name' | 'listenOn' | 'cache'>,
  rules: AccessConfig,
  provider: (name: string) => Provider,
  { observer, ...options }: SourceOptions,
): Promise<OpenAccess> {
  const { uids, gids, executables, password, username } = rules;
  const { native } = loadNative();
  if (uids ?? gids ?? executables) assertCanIdentify(name, listenOn.kind, native);
  const source =
    password &&
    new CredentialSource(new Map([['password', password]]), provider, {
      ...options,
      // It is no credential of the service: the metrics about those do not count it.
      ...(observer?.asked && { observer: { asked: observer.asked } }),
      policy: { ...options.policy, ttl: cache.ttl ?? PASSWORD_TTL, rotationCheck: 0 },
    });
  const access = new Access(
    name,
    {
      uids: uids && new Set(await accountIds('user', uids)),
      gids: gids && new Set(await accountIds('group', gids)),
      executables: executables && new Set(executables),
      maxConnectionsPerPeer: rules.maxConnectionsPerPeer,
      loginRate: rules.loginRate,
      loginRatePerPeer: rules.loginRatePerPeer,
    },
    source && localPassword(source, username),
    async (client, signal) =>
      await identifyPeer(client, { native, executables: executables !== undefined }, signal),
  );
  return { access, source };
}

function localPassword(source: CredentialSource, username: string | undefined): LocalPassword {
  return {
    username,
    lend: async (use, signal) =>
      await source.lend(async (credentials) => {
        assertGiven(credentials.get('password'));
        return await use(credentials);
      }, signal),
    prepared: source.prepare((credentials) => {
      const password = credentials.get('password');
      assertGiven(password);
      return { value: new KnownPassword(password) };
    }),
  };
}

/** Whoever says nothing would know it. */
function assertGiven(password: Buffer): void {
  if (password.length === 0)
    throw new PosternError('PROVIDER_FAILED', 'the local password (access.password) is empty');
}

function assertCanIdentify(service: string, kind: 'unix' | 'tcp', native: Native | undefined): void {
  const no = (why: string) =>
    new PosternError(
      'CONFIG_INVALID',
      `service "${service}": \`access\` with uids, gids or executables ${why}`,
    );
  if (kind === 'unix' && !native)
    throw no('needs the native addon to ask the kernel about unix sockets; there is none for this platform');
  if (kind === 'tcp' && process.platform !== 'linux')
    throw no('over TCP works on Linux alone; listen on a unix socket');
}
