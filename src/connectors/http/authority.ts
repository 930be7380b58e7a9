import { createHash, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { createSecureContext, type SecureContext } from 'node:tls';
import type { Logger } from 'pino';
import * as z from 'zod';

import type { Credentials } from '../../core/credentials.ts';
import { PosternError, reasonOf } from '../../core/errors.ts';
import type { Prepared } from '../../core/prepared.ts';
import type { Finding, ServiceContext } from '../connector.ts';
import { type Issuer, issueLeaf, readIssuer } from './certificate.ts';

const file = z.string().min(1).optional();

/** `intercept:` of a service: what happens to clients that ask for a tunnel (CONNECT), as they do for https URLs. */
export const interceptSettings = z.strictObject({
  caCert: file.describe(
    'File with the certificate of the local CA that stands in for servers (PEM); `postern ca create` makes one. May also be a credential.',
  ),
  caKey: file.describe('File with the private key of the local CA (PEM). May also be a credential.'),
  unmatched: z
    .enum(['refuse', 'tunnel'])
    .default('refuse')
    .describe(
      'Hosts that no rule of the listener names. refuse: they get an answer that says so. tunnel: their bytes pass unread and without a credential, except to private addresses.',
    ),
});

/** What `intercept:` says, parsed. */
export type InterceptSettings = z.output<typeof interceptSettings>;

/** What is wrong about `intercept:` together with a service's credentials. */
export function reviewIntercept(
  settings: InterceptSettings | undefined,
  credentials: ReadonlySet<string>,
): Finding[] {
  const found: Finding[] = [];
  for (const name of ['caCert', 'caKey'] as const) {
    const path = ['config', 'intercept', name];
    if (!settings && credentials.has(name))
      found.push({ path: ['credentials', name], message: 'is of no use without `intercept:` in config' });
    else if (settings?.[name] !== undefined && credentials.has(name))
      found.push({ path, message: 'given twice: here and as a credential' });
    else if (settings && settings[name] === undefined && !credentials.has(name))
      found.push({ path, message: `missing: give a file here, or the credential "${name}"` });
  }
  return found;
}

/** The authority that `intercept:` names. Throws CONFIG_INVALID for files that are no authority. */
export function openAuthority(settings: InterceptSettings, service: ServiceContext): AuthoritySource {
  const { caCert: cert, caKey: key } = settings;
  if (cert !== undefined && key !== undefined) return new AuthorityFiles({ cert, key }, service.log);
  return service.prepare((credentials, _signal, previous: Authority | undefined) => ({
    value: authorityOf(settings, credentials, previous),
  }));
}

/** Each half is a file or a credential. Throws CONFIG_INVALID. */
function authorityOf(
  { caCert, caKey }: InterceptSettings,
  credentials: Credentials,
  previous: Authority | undefined,
): Authority {
  const certificate = caCert === undefined ? credentials.get('caCert') : readSmall(caCert);
  const key = caKey === undefined ? credentials.get('caKey') : readSmall(caKey);
  try {
    return Authority.open(certificate, key, previous);
  } finally {
    if (caKey !== undefined) key.fill(0);
  }
}

/** Contexts at once. Each is about 40 KiB outside of JavaScript's heap, and a rule with a wildcard has hosts without end. */
const MOST_CONTEXTS = 256;
/** A certificate is made anew when this part of its life is over. */
const WORN = 2 / 3;

interface Leaf {
  readonly context: SecureContext;
  readonly renewAt: number;
}

/** Stands for servers in front of their clients: one of its certificates for each host, made when it is first asked for. */
export class Authority implements Disposable {
  #issuer: Issuer | undefined;
  readonly #identity: Buffer;
  /** The least recently used first. */
  readonly #leaves = new Map<string, Leaf>();

  private constructor(issuer: Issuer, identity: Buffer) {
    this.#issuer = issuer;
    this.#identity = identity;
  }

  /**
   * Takes a certificate and its key (PEM), which the caller wipes. The certificates of `previous` go over when it is the
   * same authority. Throws CONFIG_INVALID.
   */
  static open(certificate: Buffer, key: Buffer, previous?: Authority): Authority {
    const identity = createHash('sha256').update(certificate).update('\0').update(key).digest();
    const same = previous === undefined ? undefined : previous.#successor(identity);
    return same ?? new Authority(readIssuer(certificate, key), identity);
  }

  /** One of the same authority with all that this one has made; undefined when that is another. */
  #successor(identity: Buffer): Authority | undefined {
    if (!this.#issuer || !this.#identity.equals(identity)) return undefined;
    const next = new Authority(this.#issuer, identity);
    for (const [host, leaf] of this.#leaves) next.#leaves.set(host, leaf);
    return next;
  }

  /**
   * What to show a client that wants to reach `host`, a name in lower case or an address. Made at once and without a
   * wait: a signature costs less than the handshake that follows, and a hundred clients at once make it once.
   */
  contextFor(host: string): SecureContext {
    const known = this.#leaves.get(host);
    const leaf = known && Date.now() < known.renewAt ? known : this.#make(host);
    this.#leaves.delete(host);
    this.#leaves.set(host, leaf);
    for (const oldest of this.#leaves.keys()) {
      if (this.#leaves.size <= MOST_CONTEXTS) break;
      this.#leaves.delete(oldest);
    }
    return leaf.context;
  }

  /** Contexts that are kept. */
  get size(): number {
    return this.#leaves.size;
  }

  [Symbol.dispose](): void {
    this.#issuer = undefined;
    this.#leaves.clear();
  }

  #make(host: string): Leaf {
    if (!this.#issuer) throw new PosternError('INTERNAL', 'a certificate authority was used after its end');
    const { publicKey, pem: key } = leafKey();
    const { pem, notAfter } = issueLeaf(this.#issuer, host, publicKey);
    const context = createSecureContext({ cert: pem + this.#issuer.chain, key, minVersion: 'TLSv1.2' });
    const now = Date.now();
    return { context, renewAt: now + (notAfter - now) * WORN };
  }
}

let ownKey: { readonly publicKey: KeyObject; readonly pem: Buffer } | undefined;

/** The key of all leaves of this process, which never leaves it. */
function leafKey(): { readonly publicKey: KeyObject; readonly pem: Buffer } {
  if (!ownKey) {
    const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
    ownKey = { publicKey, pem: Buffer.from(privateKey.export({ type: 'pkcs8', format: 'pem' })) };
  }
  return ownKey;
}

/** An authority for whoever needs it now; `current` while it need not be looked for anew. */
export type AuthoritySource = Pick<Prepared<Authority>, 'current' | 'get'>;

/** How often files are looked at for a new authority, in milliseconds. */
const LOOK_EVERY = 60_000;

/** The authority of two files. A new one in their place is used within a minute; one that cannot be used is not. */
export class AuthorityFiles implements AuthoritySource {
  readonly #files: { readonly cert: string; readonly key: string };
  readonly #log: Logger;
  #authority: Authority;
  #seen: string;
  #lookAt: number;

  /** Reads the files at once, so that a start or a reload fails where they are of no use. Throws CONFIG_INVALID. */
  constructor(files: { readonly cert: string; readonly key: string }, log: Logger) {
    this.#files = files;
    this.#log = log;
    this.#seen = stateOf(files);
    this.#authority = read(files);
    this.#lookAt = performance.now() + LOOK_EVERY;
  }

  get current(): Authority | undefined {
    return performance.now() < this.#lookAt ? this.#authority : undefined;
  }

  async get(): Promise<Authority> {
    this.#lookAt = performance.now() + LOOK_EVERY;
    try {
      const state = stateOf(this.#files);
      if (state === this.#seen) return this.#authority;
      this.#authority = read(this.#files, this.#authority);
      this.#seen = state;
    } catch (thrown) {
      const { message } = PosternError.from(thrown);
      this.#log.warn(
        { error: message },
        'the certificate authority on disk cannot be used, the old one stays',
      );
    }
    return this.#authority;
  }
}

function stateOf({ cert, key }: { readonly cert: string; readonly key: string }): string {
  return [cert, key]
    .map((path) => {
      const { ino, size, mtimeMs } = wrapped(path, () => statSync(path));
      return `${ino} ${size} ${mtimeMs}`;
    })
    .join();
}

function read(files: { readonly cert: string; readonly key: string }, previous?: Authority): Authority {
  const certificate = readSmall(files.cert);
  const key = readSmall(files.key);
  try {
    return Authority.open(certificate, key, previous);
  } finally {
    key.fill(0);
  }
}

function readSmall(path: string): Buffer {
  return wrapped(path, () => {
    const facts = statSync(path);
    // A pipe would wait for its writer.
    if (!facts.isFile() || facts.size > 1024 * 1024)
      throw new PosternError('CONFIG_INVALID', `${path} is not a small regular file`);
    return readFileSync(path);
  });
}

function wrapped<T>(path: string, attempt: () => T): T {
  try {
    return attempt();
  } catch (cause) {
    if (cause instanceof PosternError) throw cause;
    throw new PosternError('CONFIG_INVALID', `cannot read the file ${path} (${reasonOf(cause)})`, { cause });
  }
}
