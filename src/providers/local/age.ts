import { createCipheriv, createDecipheriv, randomBytes, scrypt, webcrypto } from 'node:crypto';
import type { Decrypter, Encrypter, Identity, Recipient, Stanza } from 'age-encryption';

import { decodeBase64, encodeBase64, trimmed } from '../../core/bytes.ts';
import { PosternError } from '../../core/errors.ts';
import { decodeBech32, encodeBech32 } from './bech32.ts';

/** The format of age (age-encryption.org/v1) as Postern uses it: one small file, opened and sealed in memory. */

/** Nobody's secrets come near this; sealed, and in the form for texts, it is below the 1 MiB that a file of secrets may have. */
export const maxPlaintext = 512 * 1024;

/** How a file is opened, and sealed so that the same opens it again. */
export interface AgeKey extends Disposable {
  openWith(decrypter: Decrypter, library: Library): void;
  sealWith(encrypter: Encrypter, library: Library): Promise<void>;
}

type Library = typeof import('age-encryption');

/** Loaded by whoever has such a file: it takes 25 MB and a fifth of a second (docs/decisions/0006-local-secrets.md). */
const load = (): Promise<Library> => import('age-encryption');

const armored = Buffer.from('-----BEGIN AGE ENCRYPTED FILE-----');

/** The plaintext, which the caller wipes. Throws PROVIDER_FAILED. */
export async function openSealed(sealed: Buffer, key: AgeKey): Promise<Buffer> {
  const library = await load();
  const decrypter = new library.Decrypter();
  key.openWith(decrypter, library);
  let keyFits = true;
  // Asked last, when none before it fitted.
  decrypter.addIdentity({
    unwrapFileKey: () => {
      keyFits = false;
      return null;
    },
  });
  const chunks: Uint8Array[] = [];
  try {
    const file = isArmored(sealed) ? library.armor.decode(sealed.toString('latin1')) : sealed;
    // As a stream: the library gathers the plaintext of a buffer in copies that nobody wipes.
    const opened = await decrypter.decrypt(streamOf(file));
    let size = 0;
    for await (const chunk of opened) {
      chunks.push(chunk);
      size += chunk.length;
      if (size > maxPlaintext) throw new PosternError('PROVIDER_FAILED', 'it holds more than 512 KiB');
    }
    return Buffer.concat(chunks);
  } catch (thrown) {
    if (thrown instanceof PosternError) throw thrown;
    const why = keyFits ? 'it is damaged, or no age file' : 'the key is not one that opens it';
    throw new PosternError('PROVIDER_FAILED', why);
  } finally {
    for (const chunk of chunks) chunk.fill(0);
  }
}

/** Seals `plaintext`, which stays the caller's. */
export async function seal(plaintext: Buffer, key: AgeKey): Promise<Buffer> {
  const library = await load();
  const encrypter = new library.Encrypter();
  await key.sealWith(encrypter, library);
  const chunks: Uint8Array[] = [];
  for await (const chunk of await encrypter.encrypt(streamOf(plaintext))) chunks.push(chunk);
  return Buffer.concat(chunks);
}

/** Whether a file is in age's form for texts. */
export function isArmored(sealed: Buffer): boolean {
  return sealed.subarray(0, armored.length).equals(armored);
}

/** The form for texts, as `age --armor` writes it. */
export async function toArmor(sealed: Buffer): Promise<Buffer> {
  return Buffer.from((await load()).armor.encode(sealed), 'latin1');
}

function streamOf(bytes: Uint8Array): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      controller.enqueue(bytes);
      controller.close();
    },
  });
}

// ── X25519 ─────────────────────────────────────────────────────────────────────────────────────────────────────

const secretKey = 'age-secret-key-';
/** Identities of one file; more than anybody has. */
const mostIdentities = 16;
/** What comes before the 32 bytes of an X25519 key in PKCS #8 (RFC 8410). */
const pkcs8Prefix = Buffer.from('302e020100300506032b656e04220420', 'hex');

/** The X25519 identities of a file, as keys that cannot be read out again. */
export class IdentityKey implements AgeKey {
  readonly #keys: readonly webcrypto.CryptoKey[];

  private constructor(keys: readonly webcrypto.CryptoKey[]) {
    this.#keys = keys;
  }

  /** Takes the text of an identity file, as age-keygen writes it. Throws PROVIDER_FAILED. */
  static async from(text: Buffer): Promise<IdentityKey> {
    const keys: webcrypto.CryptoKey[] = [];
    for (const line of linesOf(text)) {
      const key = decodeBech32(secretKey, line);
      if (key?.length !== 32) {
        key?.fill(0);
        throw new PosternError(
          'PROVIDER_FAILED',
          'a line of it is no identity that Postern knows (AGE-SECRET-KEY-1...)',
        );
      }
      if (keys.length === mostIdentities)
        throw new PosternError('PROVIDER_FAILED', `it has more than ${mostIdentities} identities`);
      const pkcs8 = Buffer.concat([pkcs8Prefix, key]);
      keys.push(await webcrypto.subtle.importKey('pkcs8', pkcs8, { name: 'X25519' }, false, ['deriveBits']));
      pkcs8.fill(0);
      key.fill(0);
    }
    if (keys.length === 0) throw new PosternError('PROVIDER_FAILED', 'there is no identity in it');
    return new IdentityKey(keys);
  }

  openWith(decrypter: Decrypter): void {
    for (const key of this.#keys) decrypter.addIdentity(key);
  }

  async sealWith(encrypter: Encrypter, { identityToRecipient }: Library): Promise<void> {
    for (const key of this.#keys) encrypter.addRecipient(await identityToRecipient(key));
  }

  /** The keys are OpenSSL's, and go with their last user. */
  [Symbol.dispose](): void {}
}

/** The text of a new identity file, which the caller wipes. */
export async function newIdentityFile(): Promise<Buffer> {
  const scalar = randomBytes(32);
  const line = encodeBech32(secretKey, scalar);
  const key = await IdentityKey.from(line);
  const recipients: string[] = [];
  const collect = { addRecipient: (recipient: string) => recipients.push(recipient) };
  await key.sealWith(collect as unknown as Encrypter, await load());
  const text = Buffer.concat([Buffer.from(`# public key: ${recipients.join()}\n`), line, Buffer.from('\n')]);
  scalar.fill(0);
  line.fill(0);
  return text;
}

/** Lines with something on them that are no comments. */
function* linesOf(text: Buffer): Generator<Buffer> {
  for (let start = 0; start < text.length; ) {
    const end = text.indexOf(0x0a, start);
    const next = end === -1 ? text.length : end;
    const line = trimmed(text.subarray(start, next));
    if (line.length > 0 && line[0] !== 0x23) yield line;
    start = next + 1;
  }
}

// ── passphrase ─────────────────────────────────────────────────────────────────────────────────────────────────

/** Work factor of what Postern seals: age's own, 256 MiB and about a second. */
const workFactor = 18;
/** Each one more doubles time and memory; the library stops here too. */
const mostWork = 20;
const saltLabel = Buffer.from('age-encryption.org/v1/scrypt');
/** The key that is wrapped is used for nothing else, so the nonce may be one and the same. */
const nonce = Buffer.alloc(12);

/**
 * Keys stretched from passphrases, the last one that fitted: a login must not cost a second and 256 MiB each time.
 * It opens one file as it was sealed once, which whoever reads this memory could open anyway.
 */
export class StretchedKeys implements Disposable {
  #held: { readonly name: string; readonly key: Buffer } | undefined;
  #turn: Promise<unknown> = Promise.resolve();

  /** Calls `use` with the key for this salt. One after the other, so that many logins at once do not take 256 MiB each. */
  async with<T>(
    passphrase: Buffer,
    salt: Buffer,
    work: number,
    use: (key: Buffer) => T | null,
  ): Promise<T | null> {
    const name = `${salt.toString('hex')} ${work}`;
    const turn = this.#turn.then(async () => {
      const held = this.#held?.name === name ? use(this.#held.key) : null;
      if (held !== null) return held;
      const key = await stretch(passphrase, salt, work);
      const fitting = use(key);
      if (fitting === null) key.fill(0);
      else this.#hold(name, key);
      return fitting;
    });
    this.#turn = turn.catch(() => undefined);
    return await turn;
  }

  [Symbol.dispose](): void {
    this.#held?.key.fill(0);
    this.#held = undefined;
  }

  #hold(name: string, key: Buffer): void {
    this[Symbol.dispose]();
    this.#held = { name, key };
  }
}

/** A passphrase; age's scrypt recipient. Node's scrypt is used, since the library's would stop everything for a second. */
export class PassphraseKey implements AgeKey {
  readonly #passphrase: Buffer;
  readonly #stretched: StretchedKeys;

  /** Takes ownership of `passphrase`. Throws PROVIDER_FAILED for an empty one. */
  constructor(passphrase: Buffer, stretched: StretchedKeys) {
    if (passphrase.length === 0) throw new PosternError('PROVIDER_FAILED', 'the passphrase is empty');
    this.#passphrase = passphrase;
    this.#stretched = stretched;
  }

  openWith(decrypter: Decrypter): void {
    const identity: Identity = { unwrapFileKey: (stanzas) => this.#unwrap(stanzas) };
    decrypter.addIdentity(identity);
  }

  async sealWith(encrypter: Encrypter, { Stanza }: Library): Promise<void> {
    const wrap = async (fileKey: Uint8Array): Promise<Stanza[]> => {
      const salt = randomBytes(16);
      const body = await this.#stretched.with(this.#passphrase, salt, workFactor, (key) => {
        const cipher = createCipheriv('chacha20-poly1305', key, nonce, { authTagLength: 16 });
        return Buffer.concat([cipher.update(fileKey), cipher.final(), cipher.getAuthTag()]);
      });
      const text = encodeBase64(salt).toString('latin1').replaceAll('=', '');
      return body ? [new Stanza(['scrypt', text, String(workFactor)], body)] : [];
    };
    const recipient: Recipient = { wrapFileKey: wrap };
    encrypter.addRecipient(recipient);
  }

  [Symbol.dispose](): void {
    this.#passphrase.fill(0);
  }

  async #unwrap(stanzas: readonly Stanza[]): Promise<Uint8Array | null> {
    const [stanza] = stanzas.filter(({ args }) => args[0] === 'scrypt');
    if (!stanza) return null;
    // Whoever knows the passphrase is known to have written the file: another recipient beside it would break that.
    const [, saltText = '', work = ''] = stanza.args;
    const salt = decodeBase64(Buffer.from(saltText, 'latin1'));
    const valid = stanzas.length === 1 && stanza.args.length === 3 && stanza.body.length === 32;
    if (!valid || salt?.length !== 16 || !/^[1-9]\d?$/.test(work) || Number(work) > mostWork)
      throw new Error('not a scrypt stanza');
    return await this.#stretched.with(this.#passphrase, salt, Number(work), (key) =>
      unwrapped(Buffer.from(stanza.body), key),
    );
  }
}

function unwrapped(body: Buffer, key: Buffer): Uint8Array | null {
  const decipher = createDecipheriv('chacha20-poly1305', key, nonce, { authTagLength: 16 });
  decipher.setAuthTag(body.subarray(16));
  try {
    return Buffer.concat([decipher.update(body.subarray(0, 16)), decipher.final()]);
  } catch {
    return null;
  }
}

async function stretch(passphrase: Buffer, salt: Buffer, work: number): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const N = 2 ** work;
  const limits = { N, r: 8, p: 1, maxmem: 2 * 128 * N * 8 };
  scrypt(passphrase, Buffer.concat([saltLabel, salt]), 32, limits, (error, key) =>
    error ? reject(error) : resolve(key),
  );
  return await promise;
}
