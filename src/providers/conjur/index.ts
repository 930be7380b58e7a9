import { X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';

import { copyOf } from '../../core/bytes.ts';
import { PosternError } from '../../core/errors.ts';
import { Secret } from '../../core/secret.ts';
import { refuseAborted } from '../deadline.ts';
import { defineProvider, type Provider, type ProviderContext } from '../provider.ts';
import { isPassing, StoreClient, type StoreTls } from '../store-client.ts';
import { accessToken, checkReference, parseReference } from './reference.ts';
import { type Effective, type Settings, settings, withEnvironment } from './settings.ts';
import { Tokens } from './tokens.ts';
import { type Variable, Variables } from './variables.ts';

/** How often a request is repeated when Conjur is overloaded or unreachable. */
const retries = 2;

/** CyberArk Conjur: variables, read anew for each login. */
export const conjur = defineProvider({
  summary: 'CyberArk Conjur (Secrets Manager): variables, open source, Enterprise and hosted.',
  reference:
    '`id`, `variable:id` or `account:variable:id`, as in Secretless; `id?version=3` for a fixed version. `accessToken` is a token of the login itself.',
  settings,
  checkReference,
  open: openConjur,
});

function openConjur(parsed: Settings, context: ProviderContext): Provider {
  const effective = withEnvironment(parsed, context);
  const { base, account, timeout } = effective;
  const client = new StoreClient({ name: context.name, timeout, retries, tls: tlsOf(effective) });
  // Says now what the first login would only say later: a CA that cannot be used, http where it must not be.
  try {
    for (const url of [base, ...(effective.auth.method === 'jwt' ? [effective.auth.url] : [])])
      client.agentFor(new URL(url));
  } catch (thrown) {
    throw new PosternError('CONFIG_INVALID', PosternError.from(thrown).message);
  }
  const tokens = new Tokens(effective, client, context);
  const variables = new Variables(base, client, tokens);

  return {
    async fetch(references, signal) {
      refuseAborted(signal);
      const wanted = new Map<string, Variable>();
      for (const reference of references) {
        const problem = checkReference(reference);
        if (problem) throw client.error('PROVIDER_FAILED', `"${reference}": ${problem}`);
        if (reference === accessToken) continue;
        const variable = variableOf(reference, account);
        if (!wanted.has(keyOf(variable))) wanted.set(keyOf(variable), variable);
      }
      const token = references.includes(accessToken) ? await readToken(tokens, signal) : undefined;
      const values = new Map<string, Buffer>();
      try {
        const read = await variables.read([...wanted.values()], signal);
        for (const [i, key] of [...wanted.keys()].entries()) values.set(key, read[i] as Buffer);
        const secrets = references.map((reference) => {
          const value =
            reference === accessToken ? token?.json : values.get(keyOf(variableOf(reference, account)));
          if (!value) throw new PosternError('INTERNAL', 'a variable was not read');
          return new Secret(copyOf(value));
        });
        return { secrets, ...(token?.expiresAt && { expiresAt: token.expiresAt }) };
      } finally {
        token?.json.fill(0);
        for (const value of values.values()) value.fill(0);
      }
    },

    async check(signal) {
      const url = new URL(`${base}/whoami`);
      using answer = await tokens.call({ method: 'GET', url, purpose: 'asking who is logged in' }, signal);
      // A server before whoami answers 404, and that only to who is logged in.
      if (answer.status === 200 || answer.status === 404) return;
      const code = isPassing(answer.status) ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED';
      throw client.error(code, `asking who is logged in: Conjur answers with HTTP ${answer.status}`);
    },

    async close() {
      tokens.close();
      client.close();
    },
  };
}

function variableOf(reference: string, usualAccount: string): Variable {
  const { account = usualAccount, id, version } = parseReference(reference);
  return { fullId: `${account}:variable:${id}`, account, id, version, reference };
}

function keyOf({ fullId, version }: Variable): string {
  return `${version ?? ''} ${fullId}`;
}

async function readToken(tokens: Tokens, signal: AbortSignal) {
  return await tokens.lend(
    async (token, end) => ({ json: token.copy(), expiresAt: end === Infinity ? undefined : new Date(end) }),
    signal,
  );
}

/** A CA of one's own takes the place of the usual ones. */
function tlsOf({ ca }: Effective): StoreTls | undefined {
  if (!ca) return undefined;
  if ('pem' in ca) return { fingerprint: () => 'pem', load: () => ({ ca: usable(ca.pem) }) };
  return {
    fingerprint() {
      const status = statSync(ca.file, { throwIfNoEntry: false });
      return status ? `${status.ino}:${status.mtimeMs}` : 'none';
    },
    load: () => ({ ca: usable(readFileSync(ca.file)) }),
  };
}

/** OpenSSL takes a text without a certificate for an empty list, and trusts nobody: this throws instead. */
function usable<Pem extends string | Buffer>(pem: Pem): Pem {
  void new X509Certificate(pem);
  return pem;
}
