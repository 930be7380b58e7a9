import { PosternError } from '../../core/errors.ts';
import type { Secret } from '../../core/secret.ts';
import { refuseAborted } from '../deadline.ts';
import { defineProvider, type Grant, type Provider, type ProviderContext } from '../provider.ts';
import { type Call, type Meaning, VaultClient } from './client.ts';
import { EngineReader } from './engine.ts';
import type { Read, Wanted } from './fields.ts';
import { type KvMount, KvReader } from './kv.ts';
import { Leases } from './leases.ts';
import { type Mount, Mounts } from './mounts.ts';
import { checkReference, parseReference, versionOf } from './reference.ts';
import { type Settings, settings, withEnvironment } from './settings.ts';
import { Tokens } from './tokens.ts';

/** HashiCorp Vault and OpenBao: KV secrets, dynamic and static database credentials, and what other engines give. */
export const vault = defineProvider({
  summary:
    'HashiCorp Vault or OpenBao: secrets of the KV engine (version 1 and 2), database credentials, and what other engines give out, with their leases.',
  reference:
    '`path#field`, or `path?version=3#field` for a fixed version of KV. Without `#field` the field is `value`. The path is written as for the command line (`secret/app/db`) or the API (`secret/data/app/db`). Other engines: `database/creds/app#username`, and with parameters, which are then written: `pki/issue/web?common_name=app.internal#certificate`.',
  settings,
  checkReference,
  open: openVault,
});

type Group = readonly [Wanted, ...Wanted[]];

function openVault(parsed: Settings, context: ProviderContext): Provider {
  const client = new VaultClient(withEnvironment(parsed, context), context);
  const tokens = new Tokens(parsed.auth, client, context);
  const mounts = new Mounts(client, tokens, parsed);
  const leases = new Leases(client, tokens, context);
  const kv = new KvReader(client, tokens);
  const engine = new EngineReader(client, tokens, leases);

  async function read(wanted: Group, signal: AbortSignal): Promise<Read> {
    const [{ path, query, reference }] = wanted;
    const mount = await mounts.find(path, reference, signal);
    if (!isKv(mount)) return await engine.read(wanted, signal);
    const found = await kv.read(mount, wanted, signal);
    if (found !== undefined) return found;

    // Not found where the mount was thought to be: it may have been replaced or upgraded to version 2 since then.
    const now = await mounts.findAgain(mount, path, reference, signal);
    if (now && !isKv(now)) return await engine.read(wanted, signal);
    const again = now && isKv(now) ? await kv.read(now, wanted, signal) : undefined;
    if (again !== undefined) return again;
    const version = query === undefined ? undefined : versionOf(query);
    const what = version === undefined ? 'no secret' : `no version ${version} of the secret`;
    throw client.error('PROVIDER_FAILED', `"${reference}": there is ${what} at "${path}"`);
  }

  return {
    async fetch(references, signal) {
      refuseAborted(signal);
      for (const reference of references) {
        const problem = checkReference(reference);
        if (problem) throw client.error('PROVIDER_FAILED', `"${reference}": ${problem}`);
      }
      return await readTogether(references, read, (unused) => engine.discard(unused), signal);
    },

    async check(signal) {
      const call: Call = {
        method: 'GET',
        path: 'sys/health?standbyok=true&perfstandbyok=true',
        rootNamespace: true,
        retries: 0,
        purpose: 'asking for its health',
      };
      using reply = await client.call(call, signal);
      if (reply.status !== 200) throw client.refusal(call, reply, healthMeaning.get(reply.status));
      await tokens.check(signal);
    },

    async revokeLeases(ids, signal) {
      await leases.sweep(ids, signal);
    },

    async close(signal) {
      await tokens.close(signal);
      client.close();
      await leases.settled();
    },
  };
}

function isKv(mount: Mount): mount is KvMount {
  return mount.kvVersion !== undefined;
}

/** One request for each path, side by side; the first failure ends the others, and what they brought is discarded. */
async function readTogether(
  references: readonly string[],
  read: (wanted: Group, signal: AbortSignal) => Promise<Read>,
  discard: (unused: Read) => void,
  signal: AbortSignal,
): Promise<Grant> {
  const byPath = Map.groupBy(
    references.map((reference, position): Wanted & { position: number } => ({
      ...parseReference(reference),
      reference,
      position,
    })),
    ({ path, query }) => (query === undefined ? path : `${path}?${query}`),
  );
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  const outcomes = await Promise.allSettled(
    [...byPath.values()].map(async ([first, ...rest]) => {
      if (!first) throw new PosternError('INTERNAL', 'a group without a member');
      try {
        return { wanted: [first, ...rest], read: await read([first, ...rest], either) };
      } catch (thrown) {
        failed.abort(thrown);
        throw thrown;
      }
    }),
  );

  const done = outcomes.filter((outcome) => outcome.status === 'fulfilled').map(({ value }) => value);
  if (done.length < outcomes.length) {
    for (const { read: unused } of done) discard(unused);
    throw PosternError.from(failed.signal.reason);
  }
  const secrets: Secret[] = [];
  for (const {
    wanted,
    read: { secrets: found },
  } of done) {
    wanted.forEach(({ position }, index) => {
      const secret = found[index];
      if (secret) secrets[position] = secret;
    });
  }
  const reads = done.map(({ read: one }) => one);
  const leases = reads.flatMap(({ lease }) => (lease ? [lease] : []));
  return { secrets, ...versionsOf(done), ...earliestEnd(reads), ...(leases.length > 0 ? { leases } : {}) };
}

/** The version as it is, or `path@version` for each of several paths. */
function versionsOf(done: readonly { wanted: readonly Wanted[]; read: Read }[]): Pick<Grant, 'version'> {
  const versions = done.flatMap(({ wanted, read: { version } }) =>
    version === undefined ? [] : [{ path: wanted[0]?.path ?? '', version }],
  );
  const [first] = versions;
  if (!first) return {};
  if (done.length === 1) return { version: first.version };
  return { version: versions.map(({ path, version }) => `${path}@${version}`).join(', ') };
}

/** Of what has no lease: a lease says itself when it ends, and can be renewed. */
function earliestEnd(reads: readonly Read[]): Pick<Grant, 'expiresAt'> {
  const ends = reads.flatMap(({ expiresAt }) => (expiresAt ? [expiresAt.getTime()] : []));
  return ends.length === 0 ? {} : { expiresAt: new Date(Math.min(...ends)) };
}

/** sys/health says by its status what the server is. */
const healthMeaning: ReadonlyMap<number, Meaning> = new Map([
  [429, { code: 'PROVIDER_UNAVAILABLE', text: 'Vault is a standby that does not answer' }],
  [472, { code: 'PROVIDER_UNAVAILABLE', text: 'Vault is a disaster recovery secondary' }],
  [473, { code: 'PROVIDER_UNAVAILABLE', text: 'Vault is a performance standby' }],
  [501, { code: 'PROVIDER_UNAVAILABLE', text: 'Vault is not initialised' }],
  [503, { code: 'PROVIDER_UNAVAILABLE', text: 'Vault is sealed' }],
]);
