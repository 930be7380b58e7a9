import { createHash } from 'node:crypto';

import { PosternError } from '../../../core/errors.ts';

/**
 * The hash that RFC 5929 section 4.1 takes for a certificate signed with each algorithm: the hash of the signature, but
 * SHA-256 where that is MD5 or SHA-1. By the DER bytes of the object identifier.
 */
const signatureHashes: ReadonlyMap<string, string> = new Map([
  ['2a864886f70d010104', 'sha256'], // 1.2.840.113549.1.1.4 md5WithRSAEncryption
  ['2a864886f70d010105', 'sha256'], // 1.2.840.113549.1.1.5 sha1WithRSAEncryption
  ['2a864886f70d01010b', 'sha256'], // 1.2.840.113549.1.1.11 sha256WithRSAEncryption
  ['2a864886f70d01010c', 'sha384'], // 1.2.840.113549.1.1.12 sha384WithRSAEncryption
  ['2a864886f70d01010d', 'sha512'], // 1.2.840.113549.1.1.13 sha512WithRSAEncryption
  ['2a864886f70d01010e', 'sha224'], // 1.2.840.113549.1.1.14 sha224WithRSAEncryption
  ['2a8648ce380403', 'sha256'], // 1.2.840.10040.4.3 dsa-with-sha1
  ['2a8648ce3d0401', 'sha256'], // 1.2.840.10045.4.1 ecdsa-with-SHA1
  ['2a8648ce3d040301', 'sha224'], // 1.2.840.10045.4.3.1 ecdsa-with-SHA224
  ['2a8648ce3d040302', 'sha256'], // 1.2.840.10045.4.3.2 ecdsa-with-SHA256
  ['2a8648ce3d040303', 'sha384'], // 1.2.840.10045.4.3.3 ecdsa-with-SHA384
  ['2a8648ce3d040304', 'sha512'], // 1.2.840.10045.4.3.4 ecdsa-with-SHA512
]);

const RSASSA_PSS = '2a864886f70d01010a'; // 1.2.840.113549.1.1.10

/** RSA-PSS names its hash in the parameters (RFC 4055 section 3.1). */
const pssHashes: ReadonlyMap<string, string> = new Map([
  ['2b0e03021a', 'sha256'], // 1.3.14.3.2.26 SHA-1
  ['608648016503040201', 'sha256'], // 2.16.840.1.101.3.4.2.1
  ['608648016503040202', 'sha384'], // 2.16.840.1.101.3.4.2.2
  ['608648016503040203', 'sha512'], // 2.16.840.1.101.3.4.2.3
  ['608648016503040204', 'sha224'], // 2.16.840.1.101.3.4.2.4
]);

const SEQUENCE = 0x30;
const BIT_STRING = 0x03;
const OBJECT_IDENTIFIER = 0x06;
const CONTEXT_0 = 0xa0;

/**
 * Channel binding data `tls-server-end-point` (RFC 5929 section 4) of the server's certificate. Undefined when its
 * signature has no hash of its own (Ed25519, Ed448) or an unknown one: then there is nothing that both ends could bind to.
 * Throws UPSTREAM_PROTOCOL when the bytes are not a DER certificate: taking that for "cannot bind" would be a downgrade.
 */
export function tlsServerEndPoint(certificateDer: Buffer): Buffer | undefined {
  const hash = signatureHash(certificateDer);
  return hash === undefined ? undefined : createHash(hash).update(certificateDer).digest();
}

/** Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OID, parameters }, signature BIT STRING } */
function signatureHash(certificateDer: Buffer): string | undefined {
  const certificate = new DerReader(certificateDer);
  const fields = new DerReader(certificate.expect(SEQUENCE));
  certificate.expectEnd();
  fields.expect(SEQUENCE);
  const algorithm = new DerReader(fields.expect(SEQUENCE));
  fields.expect(BIT_STRING);
  fields.expectEnd();

  const identifier = algorithm.expect(OBJECT_IDENTIFIER).toString('hex');
  return identifier === RSASSA_PSS ? pssHash(algorithm) : signatureHashes.get(identifier);
}

/** RSASSA-PSS-params ::= SEQUENCE { [0] hashAlgorithm SEQUENCE { OID, ... } DEFAULT sha1, ... } */
function pssHash(algorithm: DerReader): string | undefined {
  const parameters = new DerReader(algorithm.expect(SEQUENCE));
  const explicit = parameters.accept(CONTEXT_0);
  if (!explicit) return 'sha256'; // SHA-1 by default, and so SHA-256
  const hashAlgorithm = new DerReader(new DerReader(explicit).expect(SEQUENCE));
  return pssHashes.get(hashAlgorithm.expect(OBJECT_IDENTIFIER).toString('hex'));
}

/** Reads the elements of one DER value, one after the other; never beyond its end. */
class DerReader {
  #rest: Buffer;

  constructor(bytes: Buffer) {
    this.#rest = bytes;
  }

  /** The contents of the next element, which must have this tag. */
  expect(tag: number): Buffer {
    const contents = this.accept(tag);
    if (!contents) throw malformed();
    return contents;
  }

  /** The contents of the next element if it has this tag. */
  accept(tag: number): Buffer | undefined {
    if (this.#rest[0] !== tag) return undefined;
    const { start, end } = this.#extent();
    const contents = this.#rest.subarray(start, end);
    this.#rest = this.#rest.subarray(end);
    return contents;
  }

  expectEnd(): void {
    if (this.#rest.length > 0) throw malformed();
  }

  /** DER allows a length one form only, the shortest (X.690 section 10.1). */
  #extent(): { start: number; end: number } {
    const first = this.#rest[1] ?? 0x80;
    const digits = first < 0x80 ? 0 : first & 0x7f;
    if (first === 0x80 || digits > 4 || 2 + digits > this.#rest.length) throw malformed();
    const length = digits === 0 ? first : this.#rest.readUIntBE(2, digits);
    if (digits > 0 && (length < 0x80 || length < 256 ** (digits - 1))) throw malformed();

    const start = 2 + digits;
    if (start + length > this.#rest.length) throw malformed();
    return { start, end: start + length };
  }
}

function malformed(): PosternError {
  return new PosternError('UPSTREAM_PROTOCOL', "channel binding: the server's certificate is not DER");
}
