import { hash, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Socket } from 'node:net';

import type { Credentials } from '../../core/credentials.ts';
import { PosternError } from '../../core/errors.ts';
import { hmacSha256 } from '../../core/hmac.ts';
import type { Session } from '../../core/session.ts';
import { readExactly } from '../../core/socket.ts';
import { deriveKeys } from './auth/scram.ts';
import type { Client, StartupHello } from './client.ts';
import { byteString, encodeMessage, int32, negotiationOf } from './messages.ts';
import { refusal } from './replies.ts';

/** The one mechanism that is offered: without -PLUS a client that requires channel binding says itself that it cannot. */
const MECHANISM = 'SCRAM-SHA-256';
/** PostgreSQL's own count (scram_iterations), which is also the least that RFC 7677 wants. */
const ITERATIONS = 4096;
/** Longest message of a client; those of libpq have about a hundred bytes. */
const LONGEST_MESSAGE = 2048;
/** Authentication requests (PostgreSQL documentation 54.7). */
const SASL = 10;
const SASL_CONTINUE = 11;
const SASL_FINAL = 12;

/** The same for all clients of this process, so that the keys are derived once for each version of the password. */
const salt = randomBytes(16);

/**
 * Has a client prove that it knows the local password, by SCRAM-SHA-256 as a server does it (RFC 5802, RFC 7677). The exchange
 * is the same to its last message whether the user name is right or not. Throws ACCESS_DENIED.
 */
export async function logInLocally(session: Session, client: Client, hello: StartupHello): Promise<void> {
  const { localLogin } = session;
  if (!localLogin) return;
  const { username } = localLogin;
  const named = hello.parameters.findLast(([name]) => name === 'user')?.[1];
  const rightName = username === undefined || named === byteString(username);
  try {
    await localLogin.prove(async (credentials) => {
      // A client that asks for more than there is hears it before anything else.
      for (const message of negotiationOf(hello)) client.socket.write(message);
      const proved = await converse(
        client.socket,
        credentials,
        rightName,
        session.deadline('the local login'),
      );
      return proved && rightName;
    });
  } catch (thrown) {
    const error = PosternError.from(thrown);
    // invalid_password: clients then say "password authentication failed".
    throw error.code === 'ACCESS_DENIED' && error.reply === undefined
      ? refusal('28P01', error.message, undefined, 'ACCESS_DENIED')
      : error;
  }
}

/** Whether the client knows the password. `confirm` false: it is not told so. */
async function converse(
  socket: Socket,
  credentials: Credentials,
  confirm: boolean,
  signal: AbortSignal,
): Promise<boolean> {
  socket.write(request(SASL, Buffer.from(`${MECHANISM}\0\0`)));
  const { gs2Header, bare, nonce } = parseClientFirst(await readResponse(socket, signal));

  const ownNonce = `${nonce}${randomBytes(18).toString('base64')}`;
  const serverFirst = `r=${ownNonce},s=${salt.toString('base64')},i=${ITERATIONS}`;
  // Before anything is said of the password: how long that takes says nothing about it.
  const label = `local ${MECHANISM} ${ITERATIONS} ${salt.toString('base64')}`;
  const keys = await credentials.derive(label, () =>
    deriveKeys(credentials.get('password'), salt, ITERATIONS),
  );
  try {
    socket.write(request(SASL_CONTINUE, Buffer.from(serverFirst)));
    const final = parseClientFinal(await readMessage(socket, signal));
    // Without channel binding all that is bound is the header itself.
    if (final.binding !== Buffer.from(gs2Header, 'latin1').toString('base64') || final.nonce !== ownNonce)
      throw malformed('the last message does not belong to the first');
    const authMessage = Buffer.from(`${bare},${serverFirst},${final.withoutProof}`, 'latin1');
    if (!isProof(final.proof, keys.subarray(0, 32), authMessage)) return false;
    const signature = hmacSha256(keys.subarray(32), authMessage);
    if (confirm) socket.write(request(SASL_FINAL, Buffer.from(`v=${signature.toString('base64')}`)));
    return true;
  } finally {
    keys.fill(0);
  }
}

/** The client's key, under a signature of the exchange, has the hash that the server knows (RFC 5802 section 3). */
function isProof(proof: Buffer, clientKey: Buffer, authMessage: Buffer): boolean {
  const storedKey = hash('sha256', clientKey, 'buffer');
  const shown = hmacSha256(storedKey, authMessage);
  for (const [i, byte] of proof.entries()) shown[i] = (shown[i] as number) ^ byte;
  const storedAsShown = hash('sha256', shown, 'buffer');
  try {
    return timingSafeEqual(storedAsShown, storedKey);
  } finally {
    for (const secret of [storedKey, shown, storedAsShown]) secret.fill(0);
  }
}

function request(kind: number, data: Buffer): Buffer {
  return encodeMessage('R', int32(kind), data);
}

/** Body of the client's next message, which can only be one that has to do with passwords. */
async function readMessage(socket: Socket, signal: AbortSignal): Promise<Buffer> {
  const head = await readExactly(socket, 'client', 5, signal);
  const length = head.readInt32BE(1) - 4;
  if (head[0] !== 0x70 || length < 0 || length > LONGEST_MESSAGE)
    throw malformed('a message of another kind or length came');
  return await readExactly(socket, 'client', length, signal);
}

/** SASLInitialResponse: the mechanism, and what it begins with. */
async function readResponse(socket: Socket, signal: AbortSignal): Promise<Buffer> {
  const body = await readMessage(socket, signal);
  const end = body.indexOf(0);
  const mechanism = body.toString('latin1', 0, Math.max(end, 0));
  if (mechanism !== MECHANISM || body.length < end + 5) throw malformed(`the mechanism is not ${MECHANISM}`);
  const data = body.subarray(end + 5);
  if (body.readInt32BE(end + 1) !== data.length) throw malformed('the first message is cut off');
  return data;
}

/**
 * `n,,` or `y,,`, then `n=` name `,r=` nonce (RFC 5802 section 7). `y` says that the client could bind and believes that this
 * end cannot, which is so. The name is ignored, as PostgreSQL does: the start-up message has it.
 */
function parseClientFirst(message: Buffer): { gs2Header: string; bare: string; nonce: string } {
  const text = message.toString('latin1');
  const [, gs2Header, bare, nonce] = /^([ny],,)(n=[^,]*,r=([\x21-\x2b\x2d-\x7e]{1,256}))$/.exec(text) ?? [];
  if (gs2Header !== undefined && bare !== undefined && nonce !== undefined) return { gs2Header, bare, nonce };
  throw text.startsWith('p=')
    ? malformed('the client binds to a channel, which was not offered')
    : malformed('the first message is not a nonce and what goes with it');
}

interface ClientFinal {
  readonly binding: string;
  readonly nonce: string;
  readonly withoutProof: string;
  readonly proof: Buffer;
}

/** `c=` header `,r=` nonce `,p=` proof. */
function parseClientFinal(message: Buffer): ClientFinal {
  const [, withoutProof, binding, nonce, encoded] =
    /^(c=([^,]+),r=([^,]+)),p=([^,]+)$/.exec(message.toString('latin1')) ?? [];
  const proof = Buffer.from(encoded ?? '', 'base64');
  if (
    withoutProof === undefined ||
    binding === undefined ||
    nonce === undefined ||
    proof.length !== 32 ||
    proof.toString('base64') !== encoded
  )
    throw malformed('the last message is not a nonce and a proof');
  return { binding, nonce, withoutProof, proof };
}

function malformed(what: string): PosternError {
  return new PosternError('CLIENT_PROTOCOL', `SCRAM: ${what}`);
}
