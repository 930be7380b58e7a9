import { hash, pbkdf2, randomBytes, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';

import type { Derive } from '../../../core/credentials.ts';
import { PosternError } from '../../../core/errors.ts';
import { hmacSha256 } from '../../../core/hmac.ts';
import { saslprep } from './saslprep.ts';

const SCRAM = 'SCRAM-SHA-256';
const SCRAM_PLUS = 'SCRAM-SHA-256-PLUS';

/** Longest message of a server that is looked at. PostgreSQL's own are about a hundred bytes. */
const LONGEST_MESSAGE = 2048;

/** What the server offers and what this side can and may do about it. */
export interface MechanismOffer {
  /** Mechanism names of AuthenticationSASL, as the server sent them. */
  readonly offered: readonly string[];
  readonly tls: boolean;
  /** `tlsServerEndPoint` of the server's certificate; undefined when there is none to bind to. */
  readonly bindingData: Buffer | undefined;
  readonly channelBinding: 'disable' | 'prefer' | 'require';
}

/** How this login is going to be done: the mechanism, and what the client says about channel binding (RFC 5802 section 6). */
export type MechanismChoice =
  | { readonly mechanism: typeof SCRAM; readonly gs2Flag: 'n' | 'y' }
  | {
      readonly mechanism: typeof SCRAM_PLUS;
      readonly gs2Flag: 'p=tls-server-end-point';
      readonly bindingData: Buffer;
    };

/**
 * Chooses the strongest mechanism that both ends can do. Throws AUTH_NOT_ALLOWED when the settings forbid what is left,
 * UPSTREAM_PROTOCOL when the offer cannot be honest or names nothing that is known.
 */
export function chooseMechanism({
  offered,
  tls,
  bindingData,
  channelBinding,
}: MechanismOffer): MechanismChoice {
  const plusOffered = offered.includes(SCRAM_PLUS);
  if (plusOffered && !tls) {
    // The server believes in a TLS that this end does not have: somebody between them took it off.
    throw new PosternError(
      'UPSTREAM_PROTOCOL',
      `server offers ${SCRAM_PLUS} on a connection without TLS: TLS was stripped on the way`,
    );
  }

  const canBind = tls && bindingData !== undefined && channelBinding !== 'disable';
  if (plusOffered && canBind)
    return { mechanism: SCRAM_PLUS, gs2Flag: 'p=tls-server-end-point', bindingData };

  if (channelBinding === 'require') {
    throw new PosternError(
      'AUTH_NOT_ALLOWED',
      `channel binding is required, but ${whyUnbound(tls, bindingData)}`,
    );
  }
  if (!offered.includes(SCRAM)) {
    if (!plusOffered) {
      throw new PosternError(
        'UPSTREAM_PROTOCOL',
        `server offers no SASL mechanism that is known: ${listed(offered)}`,
      );
    }
    const why = channelBinding === 'disable' ? 'channel binding is disabled' : whyUnbound(tls, bindingData);
    throw new PosternError('AUTH_NOT_ALLOWED', `server offers only ${SCRAM_PLUS}, but ${why}`);
  }

  // `y` tells the server that this end would have bound: one that did offer -PLUS then knows that its offer was tampered
  // with, and refuses. So a client that declines an offered -PLUS must say `n` (RFC 5802 section 6).
  return { mechanism: SCRAM, gs2Flag: canBind ? 'y' : 'n' };
}

function whyUnbound(tls: boolean, bindingData: Buffer | undefined): string {
  if (!tls) return 'the connection has no TLS';
  if (!bindingData) return "the server's certificate is of a kind that has no hash to bind to";
  return `the server does not offer ${SCRAM_PLUS}`;
}

/** Names from a stranger, for a message: few, short, printable. */
function listed(names: readonly string[]): string {
  if (names.length === 0) return 'none at all';
  return names.slice(0, 5).map(printable).join(', ') + (names.length > 5 ? ', ...' : '');
}

/** What one `clientFinal` may use. */
export interface ClientFinalOptions {
  /** Upper bound for the work that the server may ask for (`scramMaxIterations`). */
  readonly maxIterations: number;
  /** Where the derived keys are kept between logins with the same password. */
  readonly derive: Derive;
}

type Progress = 'waits for server-first' | 'derives keys' | 'waits for server-final' | 'verified' | 'failed';

/**
 * The client of one SCRAM-SHA-256 or SCRAM-SHA-256-PLUS exchange (RFC 5802, RFC 7677), one method per message in the order
 * they are sent. The exchange is good only once `verified` is true: an AuthenticationOk before that comes from a server
 * that has not shown that it knows the password.
 */
export class ScramClient {
  readonly #gs2Header: string;
  readonly #bindingData: Buffer;
  readonly #nonce: string;
  readonly #clientFirstBare: string;
  #progress: Progress = 'waits for server-first';
  #iterations: number | undefined;
  #serverSignature: Buffer = Buffer.alloc(0);

  /** `nonce` and `username` are for test vectors: PostgreSQL ignores the name here and takes the one of the startup message. */
  constructor(choice: MechanismChoice, options: { nonce?: string; username?: string } = {}) {
    this.#gs2Header = `${choice.gs2Flag},,`;
    this.#bindingData = 'bindingData' in choice ? choice.bindingData : Buffer.alloc(0);
    this.#nonce = options.nonce ?? randomBytes(18).toString('base64');
    const username = (options.username ?? '').replaceAll('=', '=3D').replaceAll(',', '=2C');
    this.#clientFirstBare = `n=${username},r=${this.#nonce}`;
  }

  /** True once the server has proved that it knows the password. */
  get verified(): boolean {
    return this.#progress === 'verified';
  }

  /** The iteration count of the server's verifier, once it is known; below 4096 is weaker than RFC 7677 asks for. */
  get iterations(): number | undefined {
    return this.#iterations;
  }

  clientFirst(): Buffer {
    return Buffer.from(this.#gs2Header + this.#clientFirstBare);
  }

  /** Proves to the server that this end knows the password. The work is bounded by `maxIterations`; it cannot be aborted. */
  async clientFinal(
    serverFirst: Buffer,
    password: Buffer,
    { maxIterations, derive }: ClientFinalOptions,
  ): Promise<Buffer> {
    this.#step('waits for server-first', 'derives keys');
    const { nonce, salt, iterations } = parseServerFirst(serverFirst, this.#nonce, maxIterations);
    this.#iterations = iterations;

    const channelBinding = Buffer.concat([Buffer.from(this.#gs2Header), this.#bindingData]);
    const withoutProof = `c=${channelBinding.toString('base64')},r=${nonce}`;
    const authMessage = Buffer.concat([
      Buffer.from(`${this.#clientFirstBare},`),
      serverFirst,
      Buffer.from(`,${withoutProof}`),
    ]);

    const keys = await derive(`${SCRAM} ${iterations} ${salt.toString('base64')}`, () =>
      deriveKeys(password, salt, iterations),
    );
    const clientKey = keys.subarray(0, 32);
    const serverKey = keys.subarray(32);
    const storedKey = hash('sha256', clientKey, 'buffer');
    const proof = hmacSha256(storedKey, authMessage); // ClientSignature, until the key is mixed in
    try {
      for (const [i, byte] of clientKey.entries()) proof[i] = (proof[i] as number) ^ byte;
      this.#serverSignature = hmacSha256(serverKey, authMessage);
      this.#step('derives keys', 'waits for server-final');
      return Buffer.from(`${withoutProof},p=${proof.toString('base64')}`);
    } finally {
      for (const secret of [keys, storedKey, proof]) secret.fill(0);
    }
  }

  /** Throws unless the server has proved that it knows the password too. */
  verify(serverFinal: Buffer): void {
    this.#step('waits for server-final', 'failed');
    const signature = parseServerFinal(serverFinal);
    if (!timingSafeEqual(signature, this.#serverSignature)) {
      throw new PosternError(
        'UPSTREAM_PROTOCOL',
        'SCRAM: the server does not know the password: it is an impostor, or someone changed what it said',
      );
    }
    this.#step('failed', 'verified');
  }

  /** A server that repeats a message or leaves one out gets no further. */
  #step(from: Progress, to: Progress): void {
    if (this.#progress !== from) throw malformed('a message came out of order');
    this.#progress = to;
  }
}

/** ClientKey and ServerKey, one after the other: all that a login needs, and as secret as the password. */
export async function deriveKeys(password: Buffer, salt: Buffer, iterations: number): Promise<Buffer> {
  const prepared = saslprep(password);
  let saltedPassword = Buffer.alloc(0);
  const keys: Buffer[] = [];
  try {
    saltedPassword = await promisify(pbkdf2)(prepared, salt, iterations, 32, 'sha256');
    for (const label of ['Client Key', 'Server Key'])
      keys.push(hmacSha256(saltedPassword, Buffer.from(label)));
    return Buffer.concat(keys);
  } finally {
    for (const secret of [prepared, saltedPassword, ...keys]) secret.fill(0);
  }
}

interface ServerFirst {
  readonly nonce: string;
  readonly salt: Buffer;
  readonly iterations: number;
}

/** `r=` nonce `,s=` salt `,i=` iterations (RFC 5802 section 7), and nothing else: PostgreSQL has no extensions. */
function parseServerFirst(message: Buffer, clientNonce: string, maxIterations: number): ServerFirst {
  const [r = '', s = '', i = '', ...extensions] = text(message).split(',');
  if (r.startsWith('m=')) throw malformed('the server asks for an extension that is not known');
  if (!r.startsWith('r=') || !s.startsWith('s=') || !i.startsWith('i=') || extensions.length > 0)
    throw malformed('the first message of the server is not nonce, salt and iterations');

  const nonce = r.slice(2);
  if (!nonce.startsWith(clientNonce)) throw malformed("the server's nonce does not begin with ours");
  if (nonce.length === clientNonce.length) throw malformed('the server added nothing to the nonce');

  const salt = base64(s.slice(2), 'salt');
  if (salt.length === 0) throw malformed('the salt is empty');

  const count = i.slice(2);
  if (!/^[1-9][0-9]*$/.test(count)) throw malformed('the iteration count is not a positive number');
  const iterations = Number(count);
  if (iterations > maxIterations) {
    // Each iteration is work, and the server that asks for it has proved nothing yet.
    throw new PosternError(
      'AUTH_NOT_ALLOWED',
      `SCRAM: the server asks for ${abbreviated(count)} iterations, more than scramMaxIterations (${maxIterations})`,
    );
  }
  return { nonce, salt, iterations };
}

/** `v=` signature, or `e=` and why the server refuses. */
function parseServerFinal(message: Buffer): Buffer {
  if (message.subarray(0, 2).equals(Buffer.from('e='))) {
    const reason = message.toString('latin1', 2, LONGEST_MESSAGE);
    // These two say that the credential is wrong, and a fresh one may help; all others are about the protocol.
    const rejected = reason === 'invalid-proof' || reason === 'unknown-user';
    throw new PosternError(
      rejected ? 'UPSTREAM_REJECTED' : 'UPSTREAM_PROTOCOL',
      `SCRAM: the server refuses: ${printable(reason)}`,
    );
  }
  const attribute = text(message);
  if (!attribute.startsWith('v=')) throw malformed('the last message of the server has no signature');
  const signature = base64(attribute.slice(2), 'signature');
  if (signature.length !== 32) throw malformed('the signature of the server has the wrong length');
  return signature;
}

/** All that is left of SCRAM without names and extensions is printable ASCII. */
function text(message: Buffer): string {
  if (message.length > LONGEST_MESSAGE) throw malformed(`a message is longer than ${LONGEST_MESSAGE} bytes`);
  if (!message.every((byte) => byte >= 0x21 && byte <= 0x7e))
    throw malformed('a message has characters that do not belong there');
  return message.toString('latin1');
}

/** Node's decoder forgives padding, white space and the URL alphabet; only what it would write itself is accepted here. */
function base64(encoded: string, what: string): Buffer {
  const decoded = Buffer.from(encoded, 'base64');
  if (decoded.toString('base64') !== encoded) throw malformed(`the ${what} is not base64`);
  return decoded;
}

function malformed(what: string): PosternError {
  return new PosternError('UPSTREAM_PROTOCOL', `SCRAM: ${what}`);
}

function printable(words: string): string {
  return abbreviated(words.replaceAll(/[^\x20-\x7e]/g, '?'));
}

function abbreviated(words: string): string {
  return words.length > 40 ? `${words.slice(0, 40)}...` : words;
}
