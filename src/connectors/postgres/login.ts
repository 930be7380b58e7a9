import type { Socket } from 'node:net';

import type { Credentials } from '../../core/credentials.ts';
import { PosternError } from '../../core/errors.ts';
import { writeAll } from '../../core/socket.ts';
import { tlsServerEndPoint } from './auth/channel-binding.ts';
import { md5Response } from './auth/md5.ts';
import { passwordMessage, saslInitialResponse, saslResponse } from './auth/password-message.ts';
import { chooseMechanism, ScramClient } from './auth/scram.ts';
import { type BackendKey, decodeBackendKey, encodeStartup, type Message, readMessage } from './messages.ts';
import type { StartupRequest } from './parameters.ts';
import { type Discretion, sqlstateOf, upstreamFailure } from './replies.ts';
import { type AuthMethod, authMethods, type Settings } from './settings.ts';
import { connectUpstream, type Target, targetsOf, type Upstream } from './upstream.ts';

/** A greeting longer than this, or of more messages, is not a greeting. */
const LONGEST_GREETING = 1024 * 1024;
const MOST_MESSAGES = 1000;

/** A server connection that is logged in and idle. */
export interface LoggedIn {
  readonly socket: Socket;
  /** What the server said between AuthenticationOk and ReadyForQuery, without BackendKeyData and ReadyForQuery. */
  readonly greeting: readonly Buffer[];
  readonly readyForQuery: Buffer;
  /** undefined: this server takes no cancel requests. */
  readonly backendKey: BackendKey | undefined;
  readonly reached: Target;
  readonly method: AuthMethod;
}

/**
 * Connects to the first server of the list that takes the session and logs in as the configured user. The next one
 * is tried where libpq would: it cannot be reached, or says that it cannot take connections now (57P03).
 */
export async function logIn(
  request: StartupRequest,
  settings: Settings,
  credentials: Credentials,
  signal: AbortSignal,
): Promise<LoggedIn> {
  const targets = await targetsOf(settings, credentials);
  let last: PosternError | undefined;
  for (const target of targets) {
    try {
      return await logInTo(target, request, settings, credentials, signal);
    } catch (error) {
      if (!(error instanceof PosternError && sqlstateOf(error) === '57P03') || signal.aborted) throw error;
      last = error;
    }
  }
  throw last ?? new PosternError('CONFIG_INVALID', 'the service names no host');
}

async function logInTo(
  target: Target,
  request: StartupRequest,
  settings: Settings,
  credentials: Credentials,
  signal: AbortSignal,
): Promise<LoggedIn> {
  const upstream = await connectUpstream(target, settings.connectTimeout, signal);
  try {
    return await new Login(upstream, target, request, settings, credentials, signal).run();
  } catch (error) {
    upstream.socket.destroy();
    throw error;
  }
}

/** One login on one connection; PostgreSQL documentation 54.2.1. */
class Login {
  readonly #upstream: Upstream;
  readonly #request: StartupRequest;
  readonly #settings: Settings;
  readonly #credentials: Credentials;
  readonly #signal: AbortSignal;
  readonly #discretion: Discretion;
  /** Notices that came before AuthenticationOk: libpq takes them only after it. */
  readonly #heldNotices: Buffer[] = [];
  #messages = 0;
  #bytes = 0;

  constructor(
    upstream: Upstream,
    { address }: Target,
    request: StartupRequest,
    settings: Settings,
    credentials: Credentials,
    signal: AbortSignal,
  ) {
    this.#upstream = upstream;
    this.#request = request;
    this.#settings = settings;
    this.#credentials = credentials;
    this.#signal = signal;
    const host = Buffer.from(address.kind === 'tcp' ? address.host : address.path);
    const named = [request.database, request.askedUser].map((text) => Buffer.from(text, 'latin1'));
    this.#discretion = {
      secrets: credentials.has('password') ? [credentials.get('password')] : [],
      names: [credentials.get('username'), host].filter((name) => !named.some((text) => text.equals(name))),
    };
  }

  async run(): Promise<LoggedIn> {
    const user = this.#credentials.get('username').toString('latin1');
    const { socket } = this.#upstream;
    socket.write(encodeStartup([['user', user], ...this.#request.parameters]));

    const method = await this.#authenticate();
    const greeting: Buffer[] = [...this.#heldNotices];
    let backendKey: BackendKey | undefined;
    for (;;) {
      const message = await this.#next();
      switch (message.type) {
        case 'S':
        case 'N':
          greeting.push(message.bytes);
          break;
        case 'K':
          backendKey = decodeBackendKey(message.body);
          break;
        case 'Z':
          return {
            socket,
            greeting,
            readyForQuery: message.bytes,
            backendKey,
            reached: this.#upstream.reached,
            method,
          };
        default:
          throw unexpected(message);
      }
    }
  }

  /** Answers whatever the server asks for, as far as the policy allows, until AuthenticationOk. */
  async #authenticate(): Promise<AuthMethod> {
    let method: AuthMethod = 'none';
    let scram: ScramClient | undefined;
    for (;;) {
      const message = await this.#next();
      if (message.type === 'N') {
        this.#heldNotices.push(message.bytes);
        continue;
      }
      // Only asked of a server that we ask for more than 3.0; some poolers send it all the same.
      if (message.type === 'v') continue;
      if (message.type !== 'R' || message.body.length < 4) throw unexpected(message);

      const code = message.body.readInt32BE();
      const data = message.body.subarray(4);
      // One conversation of one method: a server that changes its mind is hoping for the weaker answer.
      if (method !== 'none' && (code === 3 || code === 5 || code === 10)) throw unexpected(message);
      switch (code) {
        case 0:
          if (scram && !scram.verified)
            throw new PosternError(
              'UPSTREAM_PROTOCOL',
              'the server skipped the proof that it knows the password',
            );
          if (method === 'none') this.#allow(method);
          return method;
        case 3:
          this.#allow((method = 'password'));
          await this.#sendSecret(passwordMessage(this.#password()));
          break;
        case 5: {
          if (data.length !== 4) throw unexpected(message);
          this.#allow((method = 'md5'));
          const response = md5Response(this.#credentials.get('username'), this.#password(), data);
          const answer = passwordMessage(response);
          response.fill(0);
          await this.#sendSecret(answer);
          break;
        }
        case 10: {
          const choice = chooseMechanism({
            offered: mechanismsOf(data),
            tls: this.#upstream.secure !== undefined,
            bindingData: this.#bindingData(),
            channelBinding: this.#settings.channelBinding,
          });
          this.#allow(
            (method = choice.mechanism === 'SCRAM-SHA-256' ? 'scram-sha-256' : 'scram-sha-256-plus'),
          );
          scram = new ScramClient(choice);
          await this.#sendSecret(saslInitialResponse(choice.mechanism, scram.clientFirst()));
          break;
        }
        case 11: {
          if (!scram) throw unexpected(message);
          const final = await scram.clientFinal(data, this.#password(), {
            maxIterations: this.#settings.scramMaxIterations,
            derive: this.#credentials.derive,
          });
          await this.#sendSecret(saslResponse(final));
          break;
        }
        case 12:
          if (!scram) throw unexpected(message);
          scram.verify(data);
          break;
        default:
          throw new PosternError(
            'AUTH_NOT_ALLOWED',
            `the server asks for ${foreignMethods.get(code) ?? `authentication method ${code}`}, which Postern does not support`,
          );
      }
    }
  }

  /** Throws AUTH_NOT_ALLOWED unless the service's policy accepts the method on this connection. */
  #allow(method: AuthMethod): void {
    const { minimumAuth, allowAuth, channelBinding } = this.#settings;
    if (authMethods.indexOf(method) < authMethods.indexOf(minimumAuth))
      throw new PosternError(
        'AUTH_NOT_ALLOWED',
        `the server asks for ${described[method]}, and the service accepts nothing weaker than ${minimumAuth} (minimumAuth)`,
      );
    if (channelBinding === 'require' && method !== 'scram-sha-256-plus')
      throw new PosternError(
        'AUTH_NOT_ALLOWED',
        `the server asks for ${described[method]}, and the service requires channel binding`,
      );
    if (
      (method === 'password' || method === 'md5') &&
      !this.#upstream.verified &&
      !allowAuth.includes(method)
    )
      throw new PosternError(
        'AUTH_NOT_ALLOWED',
        `the server asks for ${described[method]} on a connection that is not verified; verify it (tls.mode) or accept that (allowAuth)`,
      );
  }

  #password(): Buffer {
    if (this.#credentials.has('password')) {
      const password = this.#credentials.get('password');
      if (!password.includes(0)) return password;
      throw new PosternError(
        'AUTH_NOT_ALLOWED',
        'the credential "password" has a zero byte, which no PostgreSQL password can have',
      );
    }
    throw new PosternError(
      'AUTH_NOT_ALLOWED',
      'the server asks for a password, and the service has no credential "password"',
    );
  }

  #bindingData(): Buffer | undefined {
    if (this.#settings.channelBinding === 'disable') return undefined;
    const certificate = this.#upstream.secure?.getPeerX509Certificate();
    return certificate && tlsServerEndPoint(certificate.raw);
  }

  async #sendSecret(message: Buffer): Promise<void> {
    try {
      await writeAll(this.#upstream.socket, 'upstream', message, this.#signal);
    } finally {
      message.fill(0);
    }
  }

  /** The next message that is not an error. */
  async #next(): Promise<Message> {
    const message = await readMessage(this.#upstream.socket, this.#signal);
    this.#messages += 1;
    this.#bytes += message.bytes.length;
    if (this.#messages > MOST_MESSAGES || this.#bytes > LONGEST_GREETING)
      throw new PosternError('UPSTREAM_PROTOCOL', 'the server talks without end during the login');
    if (message.type === 'E') throw upstreamFailure(message.body, this.#discretion);
    return message;
  }
}

const described: Readonly<Record<AuthMethod, string>> = {
  none: 'no authentication at all',
  password: 'the password in clear',
  md5: 'MD5 authentication',
  'scram-sha-256': 'SCRAM-SHA-256 without channel binding',
  'scram-sha-256-plus': 'SCRAM-SHA-256-PLUS',
};

/** Authentication requests that need more than a password. */
const foreignMethods: ReadonlyMap<number, string> = new Map([
  [2, 'Kerberos V5'],
  [6, 'SCM credentials'],
  [7, 'GSSAPI'],
  [8, 'GSSAPI'],
  [9, 'SSPI'],
]);

/** AuthenticationSASL: names, each with a zero byte, and an empty one at the end. */
function mechanismsOf(data: Buffer): string[] {
  return data.toString('latin1').split('\0').filter(Boolean);
}

function unexpected({ type, body }: Message): PosternError {
  const what =
    type === 'R' && body.length >= 4
      ? `authentication request ${body.readInt32BE()}`
      : `message 0x${Buffer.from(type, 'latin1').toString('hex')}`;
  return new PosternError('UPSTREAM_PROTOCOL', `the server sent an unexpected ${what} during the login`);
}
