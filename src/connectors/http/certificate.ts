import {
  createHash,
  createPrivateKey,
  createPublicKey,
  type KeyObject,
  randomBytes,
  sign,
  X509Certificate,
} from 'node:crypto';
import { isIP, isIPv4 } from 'node:net';

import { PosternError, reasonOf } from '../../core/errors.ts';

// Certificates of RFC 5280 in the encoding of X.690 (DER): just those that a local authority needs, and no more.

/** A certificate authority with its key, which lives outside of JavaScript's heap. */
export interface Issuer {
  readonly certificate: X509Certificate;
  readonly key: KeyObject;
  /** What the next level shows beside its own certificate (PEM): the authority itself, unless it is a root, and who signed it. */
  readonly chain: string;
}

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
/** A client whose clock is late must not find a certificate that begins in its future. */
const BACKDATED = HOUR;
const LEAF_LIFE = 7 * DAY;

/**
 * Reads an authority's certificate (PEM; those behind it are its chain) and private key, and tries them on each other.
 * Throws CONFIG_INVALID. The caller wipes `keyPem`.
 */
export function readIssuer(certificatePem: Buffer, keyPem: Buffer): Issuer {
  const chain = certificatesOf(certificatePem);
  const [certificate] = chain;
  if (!certificate) throw unusable('there is no certificate in it');
  let key: KeyObject;
  try {
    key = createPrivateKey({ key: keyPem, format: 'pem' });
  } catch (cause) {
    throw unusable(`its key cannot be read (${reasonOf(cause)})`, cause);
  }
  if (!certificate.ca)
    throw unusable('it may not sign certificates (basicConstraints CA:TRUE, keyUsage keyCertSign)');
  if (!certificate.checkPrivateKey(key)) throw unusable('the key belongs to another certificate');
  if (endOf(certificate) <= Date.now()) throw unusable(`it has expired on ${certificate.validTo}`);
  void signatureOf(key);
  // Clients have the root already, and one that is sent is not believed.
  const shown = chain.filter((each) => !each.checkIssued(each));
  return { certificate, key, chain: shown.map(String).join('') };
}

/** The certificates of a PEM text, in its order. Throws CONFIG_INVALID. */
export function certificatesOf(pem: Buffer): X509Certificate[] {
  const blocks =
    pem.toString('latin1').match(/-----BEGIN CERTIFICATE-----[^-]{1,65536}-----END CERTIFICATE-----/g) ?? [];
  try {
    return blocks.slice(0, 16).map((block) => new X509Certificate(block));
  } catch (cause) {
    throw unusable(`its certificate cannot be read (${reasonOf(cause)})`, cause);
  }
}

/** A certificate for a server that clients reach as `host`, a name or an address, valid for a week at most. */
export function issueLeaf(
  { certificate, key }: Issuer,
  host: string,
  publicKey: KeyObject,
): { readonly pem: string; readonly notAfter: number } {
  const now = Date.now();
  // It is of no use for longer than who vouches for it.
  const notAfter = Math.min(now + LEAF_LIFE, endOf(certificate));
  const issuer = partsOf(certificate);
  const authorityKey =
    issuer.keyIdentifier && extension('2.5.29.35', der(0x30, der(0x80, issuer.keyIdentifier)));
  const pem = certify(key, {
    issuer: issuer.subject,
    subject: LEAF_SUBJECT,
    notBefore: now - BACKDATED,
    notAfter,
    publicKey,
    extensions: [
      extension('2.5.29.17', der(0x30, generalName(host))),
      extension('2.5.29.19', der(0x30), { critical: true }),
      extension('2.5.29.15', DIGITAL_SIGNATURE, { critical: true }),
      extension('2.5.29.37', der(0x30, objectIdentifier('1.3.6.1.5.5.7.3.1'))),
      extension('2.5.29.14', der(0x04, keyIdentifier(publicKey))),
      ...(authorityKey ? [authorityKey] : []),
    ],
  });
  return { pem, notAfter };
}

/** What a new root may vouch for, and for how long. */
export interface RootOptions {
  readonly name: string;
  readonly days: number;
  /** Hosts (with all below a name) and addresses; none: everything. */
  readonly hosts: readonly string[];
}

/** A self-signed authority (PEM) that may sign servers' certificates and no further authority. */
export function issueRoot(key: KeyObject, options: RootOptions): string {
  const { days, hosts } = options;
  const now = Date.now();
  const publicKey = createPublicKey(key);
  const subject = name(COMMON_NAME, options.name);
  return certify(key, {
    issuer: subject,
    subject,
    notBefore: now - BACKDATED,
    notAfter: now + days * DAY,
    publicKey,
    extensions: [
      extension('2.5.29.19', der(0x30, der(0x01, Buffer.of(0xff)), integer(Buffer.of(0))), {
        critical: true,
      }),
      extension('2.5.29.15', CERTIFICATES_AND_LISTS, { critical: true }),
      extension('2.5.29.14', der(0x04, keyIdentifier(publicKey))),
      ...(hosts.length > 0 ? [extension('2.5.29.30', nameConstraints(hosts), { critical: true })] : []),
    ],
  });
}

/**
 * RFC 5280, section 4.2.1.10. A kind of name that is not mentioned would be free: where only names are allowed, every
 * address is excluded, and the other way round.
 */
function nameConstraints(hosts: readonly string[]): Buffer {
  const subtree = (base: Buffer) => der(0x30, base);
  const names = hosts.filter((host) => !isIP(host)).map((host) => der(0x82, Buffer.from(host, 'latin1')));
  const addresses = hosts
    .filter((host) => isIP(host))
    .map((host) => der(0x87, addressBytes(host), Buffer.alloc(isIPv4(host) ? 4 : 16, 0xff)));
  const excluded = [
    ...(names.length > 0 ? [] : [der(0x82)]),
    ...(hosts.some(isIPv4) ? [] : [der(0x87, Buffer.alloc(8))]),
    ...(hosts.some((host) => isIP(host) === 6) ? [] : [der(0x87, Buffer.alloc(32))]),
  ];
  return der(
    0x30,
    der(0xa0, ...[...names, ...addresses].map(subtree)),
    ...(excluded.length > 0 ? [der(0xa1, ...excluded.map(subtree))] : []),
  );
}

interface Content {
  readonly issuer: Buffer;
  readonly subject: Buffer;
  readonly notBefore: number;
  readonly notAfter: number;
  readonly publicKey: KeyObject;
  readonly extensions: readonly Buffer[];
}

/** RFC 5280, section 4.1: the certificate of a content, signed. */
function certify(key: KeyObject, content: Content): string {
  const { algorithm, digest } = signatureOf(key);
  const toBeSigned = der(
    0x30,
    der(0xa0, integer(Buffer.of(2))),
    integer(serialNumber()),
    algorithm,
    content.issuer,
    der(0x30, time(content.notBefore), time(content.notAfter)),
    content.subject,
    content.publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, der(0x30, ...content.extensions)),
  );
  const signature = sign(digest, toBeSigned, key);
  const certificate = der(0x30, toBeSigned, algorithm, bitString(signature));
  const lines = certificate.toString('base64').match(/.{1,64}/g) ?? [];
  return `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`;
}

/** RFC 5480 and RFC 4055: how a key signs. An RSA key's algorithm has a NULL behind its name, an elliptic one's has nothing. */
function signatureOf(key: KeyObject): { readonly algorithm: Buffer; readonly digest: string } {
  const curve = key.asymmetricKeyDetails?.namedCurve;
  if (key.asymmetricKeyType === 'rsa')
    return { algorithm: der(0x30, objectIdentifier('1.2.840.113549.1.1.11'), der(0x05)), digest: 'sha256' };
  if (key.asymmetricKeyType === 'ec' && curve === 'prime256v1')
    return { algorithm: der(0x30, objectIdentifier('1.2.840.10045.4.3.2')), digest: 'sha256' };
  if (key.asymmetricKeyType === 'ec' && curve === 'secp384r1')
    return { algorithm: der(0x30, objectIdentifier('1.2.840.10045.4.3.3')), digest: 'sha384' };
  throw unusable('its key must be an elliptic one (P-256, P-384) or RSA');
}

/** Random, positive and 16 bytes long: RFC 5280 allows 20, and clients remember the pair of issuer and number. */
function serialNumber(): Buffer {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x3f) | 0x40;
  return bytes;
}

function name(attribute: string, text: string): Buffer {
  const value = der(0x30, objectIdentifier(attribute), der(0x0c, Buffer.from(text, 'utf8')));
  return der(0x30, der(0x31, value));
}

/** `dNSName` or `iPAddress`. */
function generalName(host: string): Buffer {
  return isIP(host) ? der(0x87, addressBytes(host)) : der(0x82, Buffer.from(host, 'latin1'));
}

function addressBytes(address: string): Buffer {
  if (isIPv4(address)) return Buffer.from(address.split('.').map(Number));
  // The one parser of IPv6 at hand writes it in its shortest form.
  const [head = '', tail] = new URL(`http://[${address}]`).hostname.slice(1, -1).split('::');
  const left = head === '' ? [] : head.split(':');
  const right = tail === undefined || tail === '' ? [] : tail.split(':');
  const groups = [...left, ...Array<string>(8 - left.length - right.length).fill('0'), ...right];
  return Buffer.from(groups.map((group) => group.padStart(4, '0')).join(''), 'hex');
}

const COMMON_NAME = '2.5.4.3';
/** Its organization alone: a common name would be one more host, which OpenSSL holds against name constraints. */
const LEAF_SUBJECT = name('2.5.4.10', 'Postern, a local credential broker');

/** BIT STRINGs of named bits: bit 0; bits 5 and 6. */
const DIGITAL_SIGNATURE = Buffer.of(0x03, 0x02, 0x07, 0x80);
const CERTIFICATES_AND_LISTS = Buffer.of(0x03, 0x02, 0x01, 0x06);

function extension(id: string, value: Buffer, { critical = false } = {}): Buffer {
  return der(0x30, objectIdentifier(id), ...(critical ? [der(0x01, Buffer.of(0xff))] : []), der(0x04, value));
}

/** RFC 5280, section 4.2.1.2, method 1: SHA-1 of the key's bits; an identifier, not a protection. */
function keyIdentifier(publicKey: KeyObject): Buffer {
  const info = element(publicKey.export({ type: 'spki', format: 'der' }), 0);
  const [, bits] = children(info.content);
  return createHash('sha1')
    .update(bits?.content.subarray(1) ?? Buffer.alloc(0))
    .digest();
}

/** What the next level copies from an authority's certificate, to the byte. */
function partsOf(certificate: X509Certificate): {
  readonly subject: Buffer;
  readonly keyIdentifier: Buffer | undefined;
} {
  const [toBeSigned] = children(element(certificate.raw, 0).content);
  const fields = children(toBeSigned?.content ?? Buffer.alloc(0));
  // version, serial number, algorithm, issuer, validity, subject
  const subject = fields[5];
  if (!subject || fields[0]?.tag !== 0xa0) throw unusable('its certificate is not of version 3');
  const extensions = fields.find(({ tag }) => tag === 0xa3);
  const list = children(extensions ? element(extensions.content, 0).content : Buffer.alloc(0));
  const own = list
    .map(({ content }) => children(content))
    .find(([id]) => id?.whole.equals(objectIdentifier('2.5.29.14')));
  const value = own?.at(-1);
  return { subject: subject.whole, keyIdentifier: value && element(value.content, 0).content };
}

function endOf(certificate: X509Certificate): number {
  return certificate.validToDate.getTime();
}

function unusable(why: string, cause?: unknown): PosternError {
  return new PosternError('CONFIG_INVALID', `the local certificate authority cannot be used: ${why}`, {
    cause,
  });
}

// ── DER ────────────────────────────────────────────────────────────────────────────────────────────────────────

function der(tag: number, ...contents: readonly Buffer[]): Buffer {
  const length = contents.reduce((sum, content) => sum + content.length, 0);
  const size =
    length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.of(tag, ...size), ...contents]);
}

function integer(bytes: Buffer): Buffer {
  return der(0x02, bytes);
}

function bitString(bytes: Buffer): Buffer {
  return der(0x03, Buffer.of(0), bytes);
}

/** UTCTime up to 2049, GeneralizedTime from then on, both in whole seconds. */
function time(milliseconds: number): Buffer {
  const text = new Date(milliseconds).toISOString().replace(/[-:T]|\.\d+/g, '');
  return Number(text.slice(0, 4)) < 2050
    ? der(0x17, Buffer.from(text.slice(2), 'latin1'))
    : der(0x18, Buffer.from(text, 'latin1'));
}

function objectIdentifier(text: string): Buffer {
  const [first = 0, second = 0, ...others] = text.split('.').map(Number);
  const bytes = [first * 40 + second, ...others].flatMap((number) => {
    const groups = [number & 0x7f];
    for (let rest = number >>> 7; rest > 0; rest >>>= 7) groups.unshift((rest & 0x7f) | 0x80);
    return groups;
  });
  return der(0x06, Buffer.from(bytes));
}

interface Element {
  readonly tag: number;
  readonly whole: Buffer;
  readonly content: Buffer;
}

/** The element at `at`. OpenSSL has parsed these bytes before: here only their places are looked for. */
function element(bytes: Buffer, at: number): Element {
  const first = bytes[at + 1] ?? 0;
  const digits = first < 0x80 ? 0 : first & 0x7f;
  const length = digits === 0 ? first : bytes.readUIntBE(at + 2, digits);
  const from = at + 2 + digits;
  return {
    tag: bytes[at] ?? 0,
    whole: bytes.subarray(at, from + length),
    content: bytes.subarray(from, from + length),
  };
}

function children(content: Buffer): Element[] {
  const found: Element[] = [];
  for (let at = 0; at < content.length; ) {
    const next = element(content, at);
    found.push(next);
    at += next.whole.length;
  }
  return found;
}
