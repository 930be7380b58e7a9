import { createPrivateKey, generateKeyPairSync, X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { createSecureContext } from 'node:tls';

import { certificatesOf, issueLeaf, issueRoot, readIssuer } from '../connectors/http/certificate.ts';
import { decodeBase64 } from '../core/bytes.ts';
import { PosternError, reasonOf } from '../core/errors.ts';
import { jsonObject } from '../core/json-bytes.ts';
import type { Answer } from '../providers/exchange.ts';
import { jsonOf } from '../providers/store-client.ts';
import type { ClusterApi } from './cluster.ts';
import type { CertificateSettings } from './settings.ts';

/** A certificate with its key (PEM). Whoever has it wipes the key. */
export interface Identity {
  readonly cert: Buffer;
  readonly key: Buffer;
}

/** Where the webhook's certificate comes from. */
export interface CertificateSource {
  /** Looks once, and says what is to be shown from now on, when that has changed. Throws what keeps it from looking. */
  look(signal: AbortSignal): Promise<Identity | undefined>;
  /** Why the API server would not believe the certificate that is shown; undefined: it would. */
  readonly unpublished: string | undefined;
}

/** Files that somebody else renews, such as cert-manager, who also keeps the caBundle. */
export class CertificateFiles implements CertificateSource {
  readonly #paths: readonly [cert: string, key: string];
  #seen = '';
  readonly unpublished = undefined;

  constructor(cert: string, key: string) {
    this.#paths = [cert, key];
  }

  async look(): Promise<Identity | undefined> {
    try {
      const seen = this.#paths
        .map((path) => statSync(path))
        .map(({ ino, mtimeMs }) => `${ino}:${mtimeMs}`)
        .join(' ');
      if (seen === this.#seen) return undefined;
      const [cert, key] = this.#paths.map((path) => readFileSync(path)) as [Buffer, Buffer];
      // Perhaps in the middle of a renewal: then the next look finds them whole.
      createSecureContext({ cert, key });
      this.#seen = seen;
      return { cert, key };
    } catch (cause) {
      const message = `the certificate of the webhook cannot be read (${reasonOf(cause)})`;
      throw new PosternError('CONFIG_INVALID', message, { cause });
    }
  }
}

/** What the Secret holds. Keys are wiped by whoever read or made them. */
interface Content {
  readonly current: Identity | undefined;
  /** Issued, and not shown before its authority has been in the caBundle for a while. */
  readonly next: Identity | undefined;
  /** The authorities, the newest last. */
  readonly authorities: readonly X509Certificate[];
}

interface Shared extends Content {
  /** What of the Secret stays as it is; undefined: there is none yet. */
  readonly object: { readonly metadata: object; readonly type: string } | undefined;
}

/** Of those that have not expired: two in the ordinary course, more when renewals come fast. */
const mostAuthorities = 4;
/** Who loses against another replica looks again, and finds that it is done. */
const mostTurns = 5;

/**
 * Certificates that the injector makes, shared by its replicas through one Secret.
 *
 * Each certificate has an authority of its own, limited to the webhook's name, whose key is thrown away once it has
 * signed: what lies in the Secret vouches for nothing more. So every renewal changes the authority, and goes in steps
 * that any replica may do, each one write under the Secret's resourceVersion, so that of two only one succeeds:
 *
 * 1. When `renewBefore` is left, the next certificate is put beside the current one, and its authority into the bundle.
 * 2. The bundle goes into the webhook configuration. Old authorities stay in it as long as they are valid.
 * 3. When the bundle has been there for `settle`, the next certificate becomes the current one; each replica shows it
 *    when it sees that. At no moment is one shown whose authority the API server does not know.
 */
export class OwnCertificate implements CertificateSource {
  readonly #api: ClusterApi;
  readonly #settings: CertificateSettings;
  readonly #host: string;
  #shown = '';
  #unpublished: string | undefined = 'no certificate yet';
  /** When this replica first saw an authority in the webhook configuration, by its fingerprint. */
  #seenSince: { readonly fingerprint: string; readonly at: number } | undefined;

  constructor(api: ClusterApi, settings: CertificateSettings) {
    this.#api = api;
    this.#settings = settings;
    this.#host = settings.host ?? `${settings.service}.${api.namespace}.svc`;
  }

  get unpublished(): string | undefined {
    return this.#unpublished;
  }

  async look(signal: AbortSignal): Promise<Identity | undefined> {
    for (let turn = 0; turn < mostTurns; turn++) {
      // First this and then the Secret: whoever published a newer bundle had written it there before. The other way
      // round a slow replica could put an old bundle in the place of a newer one.
      const webhook = await this.#readWebhook(signal);
      const shared = await this.#readShared(signal);
      try {
        const change = this.#due(shared, webhook);
        if (change) {
          await this.#writeShared(shared, change, signal);
          continue;
        }
        if (!(await this.#publish(webhook, shared, signal))) continue;
        return this.#take(shared);
      } finally {
        shared.current?.key.fill(0);
        shared.next?.key.fill(0);
      }
    }
    throw new PosternError('PROVIDER_UNAVAILABLE', 'other replicas change the certificate at every moment');
  }

  /** What the Secret should hold instead; undefined: what it holds. */
  #due(shared: Shared, webhook: WebhookConfiguration | undefined): Content | undefined {
    const now = Date.now();
    const { current, next } = shared;
    const authorities = shared.authorities.filter(({ validToDate }) => validToDate.getTime() > now);
    const renewed = () => {
      const { identity, authority } = this.#make();
      return { identity, authorities: [...authorities, authority].slice(-mostAuthorities) };
    };
    if (!current || !this.#isGood(current, authorities)) {
      // Nothing that could be shown: there is no time to wait for anybody.
      const { identity, authorities: all } = renewed();
      return { current: identity, next: undefined, authorities: all };
    }
    if (next && this.#isGood(next, authorities)) {
      const issuer = issuerOf(next, authorities);
      if (!issuer || !this.#hasSettled(issuer, webhook)) return undefined;
      return { current: next, next: undefined, authorities };
    }
    if (endOf(current) - now > this.#settings.renewBefore) return undefined;
    const { identity, authorities: all } = renewed();
    return { current, next: identity, authorities: all };
  }

  /** Whether an authority has been published for long enough, as this replica's own clock saw it. */
  #hasSettled(authority: X509Certificate, webhook: WebhookConfiguration | undefined): boolean {
    const fingerprint = authority.fingerprint256;
    const isPublished =
      webhook !== undefined &&
      webhook.bundles.length > 0 &&
      webhook.bundles.every((bundle) => fingerprintsOf(bundle).has(fingerprint));
    if (!isPublished) {
      this.#seenSince = undefined;
      return false;
    }
    if (this.#seenSince?.fingerprint !== fingerprint)
      this.#seenSince = { fingerprint, at: performance.now() };
    return performance.now() - this.#seenSince.at >= this.#settings.settle;
  }

  #isGood(identity: Identity, authorities: readonly X509Certificate[]): boolean {
    try {
      createSecureContext({ cert: identity.cert, key: identity.key });
      const leaf = leafOf(identity);
      const isOurs = /^[\d.]+$|:/.test(this.#host) ? leaf.checkIP(this.#host) : leaf.checkHost(this.#host);
      return (
        isOurs !== undefined && endOf(identity) > Date.now() && issuerOf(identity, authorities) !== undefined
      );
    } catch {
      return false;
    }
  }

  #make(): { readonly identity: Identity; readonly authority: X509Certificate } {
    const root = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
    const leaf = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
    const days = this.#settings.lifetime / 86_400_000;
    const certificate = issueRoot(root.privateKey, { name: 'Postern injector', days, hosts: [this.#host] });
    const rootKey = Buffer.from(root.privateKey.export({ type: 'pkcs8', format: 'pem' }));
    try {
      const { pem } = issueLeaf(readIssuer(Buffer.from(certificate), rootKey), this.#host, leaf.publicKey);
      const key = Buffer.from(leaf.privateKey.export({ type: 'pkcs8', format: 'pem' }));
      return { identity: { cert: Buffer.from(pem), key }, authority: new X509Certificate(certificate) };
    } finally {
      rootKey.fill(0);
    }
  }

  /** What to show, when it is not what is shown. */
  #take({ current }: Shared): Identity | undefined {
    if (!current) return undefined;
    const { fingerprint256 } = leafOf(current);
    if (fingerprint256 === this.#shown) return undefined;
    this.#shown = fingerprint256;
    return { cert: current.cert, key: Buffer.from(current.key) };
  }

  // ── the Secret ─────────────────────────────────────────────────────────────────────────────────────────────────

  get #secrets(): string {
    return `/api/v1/namespaces/${this.#api.namespace}/secrets`;
  }

  async #readShared(signal: AbortSignal): Promise<Shared> {
    using answer = await this.#api.get(`${this.#secrets}/${this.#settings.secret}`, signal);
    const object = answer && jsonOf(answer);
    const data = object?.get('data');
    const value = (key: string): Buffer | undefined => {
      const encoded = data?.get(key);
      if (encoded?.kind !== 'string') return undefined;
      const text = encoded.copy();
      const bytes = decodeBase64(text);
      text.fill(0);
      return bytes;
    };
    const identity = (cert: Buffer | undefined, key: Buffer | undefined): Identity | undefined => {
      if (cert && key && isCertificate(cert) && isKey(key)) return { cert, key };
      key?.fill(0);
      return undefined;
    };
    const bundle = value('ca.crt');
    return {
      object: object && {
        metadata: parsed(object.get('metadata')?.written()),
        type: object.get('type')?.publicText() ?? 'Opaque',
      },
      current: identity(value('tls.crt'), value('tls.key')),
      next: identity(value('next.crt'), value('next.key')),
      authorities: bundle && isCertificate(bundle) ? certificatesOf(bundle) : [],
    };
  }

  /** In one step, or not at all: another replica's write in between makes it fail. */
  async #writeShared(
    { object }: Shared,
    { current, next, authorities }: Content,
    signal: AbortSignal,
  ): Promise<void> {
    const values: Record<string, Buffer | undefined> = {
      'tls.crt': current?.cert,
      'tls.key': current?.key,
      'ca.crt': Buffer.from(authorities.map(String).join('')),
      'next.crt': next?.cert,
      'next.key': next?.key,
    };
    const data = Object.fromEntries(
      // In base64 a key is a string once; it is worth nothing after a day.
      Object.entries(values).flatMap(([key, bytes]) =>
        bytes ? [[key, Buffer.from(bytes.toString('base64'), 'latin1')] as const] : [],
      ),
    );
    // With the version that was read: a write in between has another.
    const metadata = object?.metadata ?? { name: this.#settings.secret, namespace: this.#api.namespace };
    const inner = jsonObject(data);
    const head = { apiVersion: 'v1', kind: 'Secret', type: object?.type ?? 'Opaque', metadata };
    const body = Buffer.concat([
      Buffer.from(`${JSON.stringify(head).slice(0, -1)},"data":`),
      inner,
      Buffer.from('}'),
    ]);
    try {
      if (!object) await this.#api.write('POST', this.#secrets, body, signal);
      else await this.#api.write('PUT', `${this.#secrets}/${this.#settings.secret}`, body, signal);
    } finally {
      for (const buffer of [body, inner, ...Object.values(data)]) buffer.fill(0);
      current?.key.fill(0);
      next?.key.fill(0);
    }
  }

  // ── the webhook configuration ──────────────────────────────────────────────────────────────────────────────────

  get #webhookPath(): string {
    const { webhook } = this.#settings;
    return `/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/${webhook}`;
  }

  async #readWebhook(signal: AbortSignal): Promise<WebhookConfiguration | undefined> {
    using answer = await this.#api.get(this.#webhookPath, signal);
    return answer && webhookIn(answer);
  }

  /** Has the API server trust every authority that there is. False: somebody changed the object at the same time. */
  async #publish(
    webhook: WebhookConfiguration | undefined,
    shared: Shared,
    signal: AbortSignal,
  ): Promise<boolean> {
    if (!webhook) {
      this.#unpublished = `there is no MutatingWebhookConfiguration "${this.#settings.webhook}"`;
      return true;
    }
    const bundle = Buffer.from(shared.authorities.map(String).join(''));
    if (!webhook.bundles.every((each) => each.equals(bundle))) {
      const caBundle = bundle.toString('base64');
      const { object } = webhook;
      const webhooks = (object.webhooks ?? []).map((each) => ({
        ...each,
        clientConfig: { ...each.clientConfig, caBundle },
      }));
      const body = Buffer.from(JSON.stringify({ ...object, webhooks }));
      if (!(await this.#api.write('PUT', this.#webhookPath, body, signal))) return false;
    }
    this.#unpublished = undefined;
    return true;
  }
}

interface WebhookConfiguration {
  readonly object: {
    readonly webhooks?: readonly { readonly clientConfig?: { readonly caBundle?: string } }[];
  };
  /** What each webhook trusts now. */
  readonly bundles: readonly Buffer[];
}

function webhookIn(answer: Answer): WebhookConfiguration {
  const object = parsed(answer.body) as WebhookConfiguration['object'];
  const bundles = (object.webhooks ?? []).map((each) =>
    Buffer.from(each.clientConfig?.caBundle ?? '', 'base64'),
  );
  return { object, bundles };
}

function parsed(text: Buffer | undefined): object {
  try {
    const value: unknown = text && JSON.parse(text.toString());
    return typeof value === 'object' && value !== null ? value : {};
  } catch {
    return {};
  }
}

function leafOf({ cert }: Identity): X509Certificate {
  return new X509Certificate(cert);
}

/** When a certificate ends, in milliseconds since 1970. */
export function endOf(identity: Identity): number {
  return leafOf(identity).validToDate.getTime();
}

function issuerOf(identity: Identity, authorities: readonly X509Certificate[]): X509Certificate | undefined {
  const leaf = leafOf(identity);
  // They all have the same name.
  return authorities.find((authority) => leaf.verify(authority.publicKey));
}

function fingerprintsOf(bundle: Buffer): ReadonlySet<string> {
  return new Set(
    isCertificate(bundle) ? certificatesOf(bundle).map(({ fingerprint256 }) => fingerprint256) : [],
  );
}

function isCertificate(pem: Buffer): boolean {
  try {
    return certificatesOf(pem).length > 0;
  } catch {
    return false;
  }
}

function isKey(pem: Buffer): boolean {
  try {
    createPrivateKey(pem);
    return true;
  } catch {
    return false;
  }
}
