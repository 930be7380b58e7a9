import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type SecureContextOptions } from 'node:tls';

import { PosternError } from '../../core/errors.ts';
import { Secret } from '../../core/secret.ts';
import type { ProviderContext } from '../provider.ts';
import { readSecretFile, withoutLineEnd } from '../secret-file.ts';
import type { StoreTls } from '../store-client.ts';
import type { Settings } from './index.ts';

/** Which API server to ask, and as whom. */
export interface Cluster {
  readonly server: URL;
  /** Of references that name none. */
  readonly namespace: string;
  readonly tls: StoreTls | undefined;
  readonly login: Login;
}

/** How requests prove who makes them. */
export interface Login {
  /** The bearer token for the next request, which the caller wipes; undefined: a client certificate, or none. */
  token(signal: AbortSignal): Promise<Secret | undefined>;
  /** The last one was refused: a kept one must not be given again. */
  refused(): void;
  close(signal: AbortSignal): Promise<void>;
}

/** A PEM text, or the file that it stands in. */
export type Pem = { readonly path: string } | { readonly bytes: Buffer };

/** What TLS needs to know of a cluster. */
export interface ClusterTls {
  readonly ca: Pem | undefined;
  readonly cert: Pem | undefined;
  readonly key: Pem | undefined;
  readonly serverName: string | undefined;
  readonly skipVerify: boolean;
}

const podFolder = '/var/run/secrets/kubernetes.io/serviceaccount';

/** Finds the cluster: settings, a kubeconfig that is named, the pod's own, the user's kubeconfig. */
export async function findCluster(
  settings: Settings,
  context: ProviderContext,
  signal: AbortSignal,
): Promise<Cluster> {
  const { environment } = context;
  if (settings.server !== undefined) return servedAt(new URL(settings.server), settings);

  const named = settings.kubeconfig ?? (environment['KUBECONFIG'] || undefined);
  const home = environment['HOME'];
  const [host, port] = [environment['KUBERNETES_SERVICE_HOST'], environment['KUBERNETES_SERVICE_PORT']];
  if (named === undefined && host && port) {
    // The variable holds a bare IPv6 address.
    const server = URL.parse(`https://${host.includes(':') ? `[${host}]` : host}:${port}`);
    if (!server) throw new PosternError('PROVIDER_FAILED', 'KUBERNETES_SERVICE_HOST is no address');
    return servedAt(server, settings);
  }
  const paths = named ?? (home ? join(home, '.kube', 'config') : undefined);
  if (paths === undefined) {
    throw new PosternError(
      'PROVIDER_FAILED',
      'no cluster: set `server` or `kubeconfig`, or KUBECONFIG, or run in a pod with a service account',
    );
  }
  const { clusterOf } = await import('./kubeconfig.ts');
  return await clusterOf(paths, settings, context, signal);
}

/** With the files of a pod, unless the settings name others. */
function servedAt(server: URL, { ca, tokenFile, namespace }: Settings): Cluster {
  const podCa = join(podFolder, 'ca.crt');
  const trusted = ca ?? (statSync(podCa, { throwIfNoEntry: false }) ? podCa : undefined);
  return {
    server,
    namespace: namespace ?? podNamespace() ?? 'default',
    tls: readTls({
      ca: trusted === undefined ? undefined : { path: trusted },
      cert: undefined,
      key: undefined,
      serverName: undefined,
      skipVerify: false,
    }),
    login: tokenIn(tokenFile ?? join(podFolder, 'token')),
  };
}

function podNamespace(): string | undefined {
  try {
    return readFileSync(join(podFolder, 'namespace'), 'utf8').trim() || undefined;
  } catch {
    return undefined;
  }
}

/** The token of a file, read for each request: the kubelet replaces it long before its end. */
export function tokenIn(path: string): Login {
  return {
    token: async (signal) => tokenFrom((await readSecretFile(path, signal)).bytes, `the file "${path}"`),
    refused: () => undefined,
    close: async () => undefined,
  };
}

/** Checks that `bytes` can be a token, and takes them over. */
export function tokenFrom(bytes: Buffer, from: string): Secret {
  const text = withoutLineEnd(bytes);
  if (text.length === 0 || text.length > 65_536 || !text.every((byte) => byte > 0x20 && byte < 0x7f)) {
    bytes.fill(0);
    const problem = text.length === 0 ? 'is empty' : 'is not a line of printable ASCII';
    throw new PosternError('PROVIDER_FAILED', `the token from ${from} ${problem}`);
  }
  return new Secret(text);
}

/** Reads the files of TLS, and again when they change. */
export function readTls({ ca, cert, key, serverName, skipVerify }: ClusterTls): StoreTls {
  const files = [ca, cert, key].flatMap((pem) => (pem && 'path' in pem ? [pem.path] : []));
  return {
    fingerprint: () =>
      files
        .map((path) => {
          const status = statSync(path, { throwIfNoEntry: false });
          return status ? `${status.ino}:${status.mtimeMs}` : '';
        })
        .join(' '),
    load: (): SecureContextOptions & { rejectUnauthorized: boolean; servername?: string } => ({
      rejectUnauthorized: !skipVerify,
      ...(ca ? { ca: contentOf(ca) } : {}),
      ...(cert && key ? { cert: contentOf(cert), key: contentOf(key) } : {}),
      ...(serverName === undefined ? {} : { servername: serverName }),
    }),
  };
}

function contentOf(pem: Pem): Buffer {
  return 'path' in pem ? readFileSync(pem.path) : pem.bytes;
}
