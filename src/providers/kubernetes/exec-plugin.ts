import { resolve } from 'node:path';

import { copyOf } from '../../core/bytes.ts';
import { PosternError } from '../../core/errors.ts';
import { JsonBytes } from '../../core/json-bytes.ts';
import { Secret } from '../../core/secret.ts';
import { Expiring, type Obtained } from '../expiring.ts';
import { Programs } from '../program.ts';
import type { ProviderContext } from '../provider.ts';
import { type Login, tokenFrom } from './cluster.ts';
import type { ExecPlugin } from './kubeconfig.ts';

/** A plug-in may open a connection to its cloud before it answers. */
const timeout = 15_000;
/** How long before its end a token is replaced. */
const early = 60_000;

interface Place {
  /** Name of the provider, for messages. */
  readonly provider: string;
  /** Of the kubeconfig: a relative command begins there. */
  readonly folder: string;
  readonly environment: ProviderContext['environment'];
}

/**
 * Tokens of a credential plug-in (ExecCredential of client.authentication.k8s.io, v1 and v1beta1), which is run
 * without a shell and without a terminal. A plug-in that answers with a client certificate is refused.
 */
export function pluginLogin(plugin: ExecPlugin, { provider, folder, environment }: Place): Login {
  const version = /^client\.authentication\.k8s\.io\/(v1|v1beta1)$/.exec(plugin.apiVersion)?.[1];
  if (!version) {
    const text = `the kubeconfig has an exec plug-in of version "${plugin.apiVersion}"; v1 and v1beta1 are understood`;
    throw new PosternError('PROVIDER_FAILED', text);
  }
  if (plugin.provideClusterInfo) {
    const text =
      'the kubeconfig has an exec plug-in that wants provideClusterInfo, which Postern does not give';
    throw new PosternError('PROVIDER_FAILED', text);
  }
  const programs = new Programs(provider);
  // As for kubectl: a path with a slash is relative to the kubeconfig, a bare name is looked up on PATH.
  const command = plugin.command.includes('/') ? resolve(folder, plugin.command) : plugin.command;
  const info = { apiVersion: plugin.apiVersion, kind: 'ExecCredential', spec: { interactive: false } };
  const variables = Object.entries({
    ...environment,
    ...Object.fromEntries((plugin.env ?? []).map(({ name, value }) => [name, value])),
    KUBERNETES_EXEC_INFO: JSON.stringify(info),
  });
  const run = async (signal: AbortSignal): Promise<Obtained<Secret>> => {
    using ended = await programs.run(
      {
        command: [command, ...(plugin.args ?? [])],
        environment: Object.fromEntries(
          variables.flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])),
        ),
        timeout,
      },
      signal,
    );
    if (ended.code !== 0) throw failed(`ended with exit code ${ended.code}`);
    return tokenOf(ended.output, plugin.apiVersion);
  };
  const tokens = new Expiring(run, { early, doing: `running the credential plug-in ${plugin.command}` });
  let last: Secret | undefined;
  return {
    token: (signal) =>
      tokens.lend((kept) => {
        last = kept;
        return Promise.resolve(new Secret(copyOf(kept.reveal())));
      }, signal),
    refused: () => {
      if (last) tokens.discard(last);
    },
    close: async (signal) => {
      tokens.close();
      await programs.close(signal);
    },
  };

  function failed(problem: string): PosternError {
    return new PosternError('PROVIDER_FAILED', `the credential plug-in ${plugin.command} ${problem}`);
  }

  function tokenOf(output: Buffer, apiVersion: string): Obtained<Secret> {
    let answer: JsonBytes;
    try {
      answer = JsonBytes.parse(output);
    } catch {
      throw failed('printed no JSON');
    }
    if (answer.get('kind')?.publicText() !== 'ExecCredential') throw failed('printed no ExecCredential');
    if (answer.get('apiVersion')?.publicText() !== apiVersion)
      throw failed(`did not answer as ${apiVersion}`);
    const status = answer.get('status');
    const token = status?.get('token');
    if (token?.kind !== 'string') {
      throw failed(
        status?.get('clientCertificateData')
          ? 'answers with a client certificate, which Postern does not support'
          : 'printed no token',
      );
    }
    const end = status?.get('expirationTimestamp')?.publicText();
    const expiresAt = end === undefined ? Infinity : Date.parse(end);
    if (Number.isNaN(expiresAt)) throw failed('printed an expirationTimestamp that is no time');
    return { value: tokenFrom(token.copy(), `the credential plug-in ${plugin.command}`), expiresAt };
  }
}
