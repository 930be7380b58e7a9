import { decodeBase64 } from '../../core/bytes.ts';
import { PosternError } from '../../core/errors.ts';
import type { JsonBytes } from '../../core/json-bytes.ts';
import { Secret } from '../../core/secret.ts';
import { untilAborted } from '../deadline.ts';
import type { Provider, ProviderContext } from '../provider.ts';
import { withoutLineEnd } from '../secret-file.ts';
import { jsonOf, StoreClient } from '../store-client.ts';
import { type Read, readTogether } from '../together.ts';
import { ApiClient } from './api.ts';
import { type Cluster, findCluster } from './cluster.ts';
import type { Settings } from './index.ts';
import { checkReference, parseReference } from './reference.ts';
import { type Place, SecretWatch } from './watch.ts';

/** A Secret is 1 MiB at most, then in base64, perhaps once more in an annotation of `kubectl apply`. */
const maxBody = 4 * 1024 * 1024;
/** Each watch is a connection; more secrets than this are read for each login. */
const maxWatches = 100;

/** Opens the provider: finds its cluster with the first question, and starts a watch with the first of each secret. */
export async function openSecrets(settings: Settings, context: ProviderContext): Promise<Provider> {
  const { name } = context;
  const opening = new AbortController();
  const options = { name, timeout: settings.timeout, retries: settings.retries, maxBody };
  const unbound = new StoreClient(options);
  let cluster: Cluster;
  try {
    cluster = await findCluster(settings, context, opening.signal);
  } catch (thrown) {
    throw unbound.named(thrown);
  }
  const api = new ApiClient(cluster, new StoreClient({ ...options, tls: cluster.tls }));
  const watching = new ApiClient(
    cluster,
    new StoreClient({ ...options, tls: cluster.tls, maxSockets: 2 * maxWatches }),
  );
  const watches = new Map<string, SecretWatch>();
  const closed = new AbortController();

  function placeOf(reference: string): Place {
    const problem = checkReference(reference);
    if (problem) throw api.client.error('PROVIDER_FAILED', `"${reference}": ${problem}`);
    const { namespace = cluster.namespace, name: secret } = parseReference(reference);
    const permitted =
      namespace === cluster.namespace ||
      settings.allowOtherNamespaces ||
      settings.namespaces.includes(namespace);
    if (!permitted) {
      const text = `the settings do not permit the namespace "${namespace}" (namespaces, allowOtherNamespaces)`;
      throw api.client.error('PROVIDER_FAILED', `"${reference}": ${text}`);
    }
    return { namespace, name: secret };
  }

  function watchOf(place: Place): SecretWatch | undefined {
    if (!settings.watch) return undefined;
    const key = `${place.namespace}/${place.name}`;
    const known = watches.get(key);
    if (known || watches.size >= maxWatches || closed.signal.aborted) return known;
    const watch = new SecretWatch(place, watching, { silence: settings.watchSilence, log: context.log });
    watches.set(key, watch);
    return watch;
  }

  async function read(references: readonly string[], signal: AbortSignal): Promise<Read> {
    const [first = ''] = references;
    const place = placeOf(first);
    const watch = watchOf(place);
    const watched = watch?.current();
    if (watched) return take(watched, references);
    const url = api.url(`/api/v1/namespaces/${place.namespace}/secrets/${place.name}`);
    const purpose = `reading "${first}"`;
    using answer = await api.get(url, purpose, signal);
    if (answer.status !== 200) throw api.refusal(answer, purpose);
    const object = jsonOf(answer);
    if (object?.get('kind')?.publicText() !== 'Secret') {
      throw api.client.error('PROVIDER_UNAVAILABLE', `${purpose}: the answer is no Secret`);
    }
    return take(object, references);
  }

  function take(object: JsonBytes, references: readonly string[]): Read {
    const secrets: Secret[] = [];
    try {
      for (const reference of references) {
        try {
          secrets.push(valueOf(object, reference, settings.trim));
        } catch (thrown) {
          throw api.client.named(thrown);
        }
      }
      return { secrets, version: object.get('metadata')?.get('resourceVersion')?.publicText() };
    } catch (thrown) {
      for (const secret of secrets) secret.wipe();
      throw thrown;
    }
  }

  return {
    async fetch(references, signal) {
      const either = AbortSignal.any([signal, closed.signal]);
      for (const reference of references) placeOf(reference);
      const place = (reference: string) => {
        const { namespace, name: secret } = placeOf(reference);
        return namespace === cluster.namespace ? secret : `${namespace}/${secret}`;
      };
      return await readTogether(references, { place, read }, either);
    },

    async check(signal) {
      const purpose = 'asking for its version';
      using answer = await api.get(api.url('/version'), purpose, signal);
      // Whoever is known but may not see the version is known.
      if (answer.status !== 200 && answer.status !== 403) throw api.refusal(answer, purpose);
    },

    async close(signal) {
      closed.abort(new PosternError('SHUTDOWN', `provider "${name}" was closed`));
      const ends = [...watches.values()].map((watch) => watch.close());
      await untilAborted(Promise.all(ends), signal, `provider "${name}": ending its watches`);
      await cluster.login.close(signal);
      api.client.close();
      watching.client.close();
    },
  };
}

/** The value of a key, decoded from bytes to bytes. */
function valueOf(object: JsonBytes, reference: string, trim: boolean): Secret {
  const { field } = parseReference(reference);
  // Not `find`: a dot in a key is a dot.
  const encoded = object.get('data')?.get(field);
  if (encoded?.kind !== 'string') {
    throw new PosternError('PROVIDER_FAILED', `"${reference}": the secret has no key "${field}"`);
  }
  const text = encoded.copy();
  const bytes = decodeBase64(text);
  text.fill(0);
  if (!bytes) throw new PosternError('PROVIDER_UNAVAILABLE', `"${reference}": the value is no base64`);
  return new Secret(trim ? withoutLineEnd(bytes) : bytes);
}
