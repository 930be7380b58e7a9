import { PosternError } from '../../core/errors.ts';
import { Secret } from '../../core/secret.ts';
import { refuseAborted } from '../deadline.ts';
import { defineProvider, type Grant, type Provider, type ProviderContext } from '../provider.ts';
import { type Call, type Meaning, VaultClient } from './client.ts';
import { type KvRead, KvReader, type Wanted } from './kv.ts';
import { checkReference, parseReference } from './reference.ts';
import { type Settings, settings, withEnvironment } from './settings.ts';
import { Tokens } from './tokens.ts';

/** HashiCorp Vault and OpenBao: KV secrets, read anew for each login. */
export const vault = defineProvider({
  summary: 'HashiCorp Vault or OpenBao: secrets of the KV engine, version 1 and 2.',
  reference:
    '`path#field`, or `path?version=3#field` for a fixed version. Without `#field` the field is `value`. The path is written as for the command line (`secret/app/db`) or the API (`secret/data/app/db`).',
  settings,
  checkReference,
  open: openVault,
});

function openVault(parsed: Settings, context: ProviderContext): Provider {
  const client = new VaultClient(withEnvironment(parsed, context), context);
  const tokens = new Tokens(parsed.auth, client, context);
  const kv = new KvReader(client, tokens, parsed);

  return {
    async fetch(references, signal) {
      refuseAborted(signal);
      for (const reference of references) {
        const problem = checkReference(reference);
        if (problem) throw client.error('PROVIDER_FAILED', `"${reference}": ${problem}`);
      }
      return await readTogether(references, kv, signal);
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

    async close(signal) {
      await tokens.close(signal);
      client.close();
    },
  };
}

/** One request for each path, side by side; the first failure ends the others and wipes what they brought. */
async function readTogether(
  references: readonly string[],
  kv: KvReader,
  signal: AbortSignal,
): Promise<Grant> {
  const byPath = Map.groupBy(
    references.map((reference, position): Wanted & { position: number } => ({
      ...parseReference(reference),
      reference,
      position,
    })),
    ({ path, version }) => `${path}?${version ?? ''}`,
  );
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  const outcomes = await Promise.allSettled(
    [...byPath.values()].map(async ([first, ...rest]) => {
      if (!first) throw new PosternError('INTERNAL', 'a group without a member');
      try {
        return { wanted: [first, ...rest], read: await kv.read([first, ...rest], either) };
      } catch (thrown) {
        failed.abort(thrown);
        throw thrown;
      }
    }),
  );

  const done = outcomes.filter((outcome) => outcome.status === 'fulfilled').map(({ value }) => value);
  if (done.length < outcomes.length) {
    for (const { read } of done) for (const secret of read.secrets) secret.wipe();
    throw PosternError.from(failed.signal.reason);
  }
  const secrets: Secret[] = [];
  for (const { wanted, read } of done) {
    wanted.forEach(({ position }, index) => {
      const secret = read.secrets[index];
      if (secret) secrets[position] = secret;
    });
  }
  return { secrets, ...versionOf(done) };
}

/** The version as it is, or `path@version` for each of several paths. */
function versionOf(done: readonly { wanted: readonly Wanted[]; read: KvRead }[]): Pick<Grant, 'version'> {
  const versions = done.flatMap(({ wanted, read }) =>
    read.version === undefined ? [] : [{ path: wanted[0]?.path ?? '', version: read.version }],
  );
  const [first] = versions;
  if (!first) return {};
  if (done.length === 1) return { version: first.version };
  return { version: versions.map(({ path, version }) => `${path}@${version}`).join(', ') };
}

/** sys/health says by its status what the server is. */
const healthMeaning: ReadonlyMap<number, Meaning> = new Map([
  [429, { code: 'PROVIDER_UNAVAILABLE', text: 'Vault is a standby that does not answer' }],
  [472, { code: 'PROVIDER_UNAVAILABLE', text: 'Vault is a disaster recovery secondary' }],
  [473, { code: 'PROVIDER_UNAVAILABLE', text: 'Vault is a performance standby' }],
  [501, { code: 'PROVIDER_UNAVAILABLE', text: 'Vault is not initialised' }],
  [503, { code: 'PROVIDER_UNAVAILABLE', text: 'Vault is sealed' }],
]);
