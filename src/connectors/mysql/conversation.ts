import type { Credentials } from '../../core/credentials.ts';
import { PosternError } from '../../core/errors.ts';
import { isVerified, nameOf, readPem } from '../upstream.ts';
import { Authentication, authPlugins } from './auth/index.ts';
import type { AuthPolicy } from './auth/plugin.ts';
import type { Leg } from './leg.ts';
import { byteString } from './names.ts';
import { decodeLoginReply, type Greeting } from './packets.ts';
import { type Discretion, upstreamFailure } from './replies.ts';
import { type AuthMethod, authMethods, type Settings } from './settings.ts';
import type { GreetedServer } from './upstream.ts';

/** An honest server switches once or twice: to the account's plugin, or to the next of several (MariaDB). */
const MOST_SWITCHES = 5;

/** One login, or one COM_CHANGE_USER, as the server is told who we are: whatever it asks for, as far as the policy allows. */
export class Conversation {
  readonly #settings: Settings;
  readonly #credentials: Credentials;
  readonly #server: Pick<GreetedServer, 'target'>;
  readonly #policy: AuthPolicy;
  readonly #discretion: Discretion;
  #authentication: Authentication | undefined;
  /** How the server has let us in, as far as it is known: no answer yet, no method. */
  method: AuthMethod = 'none';

  private constructor(
    settings: Settings,
    credentials: Credentials,
    server: Pick<GreetedServer, 'target'>,
    policy: AuthPolicy,
    discretion: Discretion,
  ) {
    this.#settings = settings;
    this.#credentials = credentials;
    this.#server = server;
    this.#policy = policy;
    this.#discretion = discretion;
  }

  /** `named` are words that the client said itself, so it may hear them again. */
  static async prepare(
    settings: Settings,
    credentials: Credentials,
    server: Pick<GreetedServer, 'target' | 'address'>,
    named: readonly (string | undefined)[],
  ): Promise<Conversation> {
    const { allowAuth, allowPublicKeyRetrieval } = settings;
    const rsaPublicKey = await readPem(settings.rsaPublicKey);
    const policy = { allowAuth, allowPublicKeyRetrieval, rsaPublicKey };
    const { address } = server;
    const host = address.kind === 'tcp' ? address.host : nameOf(address);
    const names = [credentials.get('username').toString('latin1'), byteString(host)];
    return new Conversation(settings, credentials, server, policy, {
      secrets: credentials.has('password') ? [credentials.get('password')] : [],
      names: names.filter((name) => !named.includes(name)).map((name) => Buffer.from(name, 'latin1')),
      trusted: true,
    });
  }

  /**
   * What to say with the first packet: the answer for the plugin that the greeting names, before the server asks. Where that
   * plugin is unknown or not allowed: no name and no answer, so that the server asks for the account's own.
   */
  async begin(greeting: Greeting): Promise<{ readonly plugin: string; readonly authData: Buffer }> {
    const plugin = greeting.plugin ?? 'mysql_native_password';
    try {
      return { plugin, authData: await this.#answerAs(plugin, greeting.authData) };
    } catch (error) {
      if (!(error instanceof PosternError && error.code === 'AUTH_NOT_ALLOWED')) throw error;
      return { plugin: '', authData: Buffer.alloc(0) };
    }
  }

  /** Answers what the server asks until it is content, and resolves with the payload of its OK. */
  async finish(leg: Leg, signal: AbortSignal): Promise<Buffer> {
    for (let switches = 0; ; ) {
      const reply = decodeLoginReply(await leg.read(signal));
      switch (reply.kind) {
        case 'ok':
          if (this.method === 'none') this.#allow('none');
          return reply.payload;
        case 'error':
          throw upstreamFailure(reply.payload, this.#discretion);
        case 'switch':
          switches += 1;
          if (switches > MOST_SWITCHES)
            throw new PosternError('UPSTREAM_PROTOCOL', 'the server changes the plugin without end');
          await leg.writeSecret(await this.#answerAs(reply.plugin, reply.data), signal);
          break;
        case 'more': {
          if (!this.#authentication)
            throw new PosternError(
              'UPSTREAM_PROTOCOL',
              'the server goes on with a plugin that it has not named',
            );
          const answer = await this.#authentication.answer(reply.data);
          if (answer) await leg.writeSecret(answer, signal);
          break;
        }
        case 'old switch':
          throw new PosternError(
            'AUTH_NOT_ALLOWED',
            'the server asks for a password hash from before MySQL 4.1 (mysql_old_password), which is not supported',
          );
        case 'next factor':
          throw new PosternError(
            'AUTH_NOT_ALLOWED',
            'the server asks for more than a password (multi-factor authentication), which is not supported',
          );
      }
    }
  }

  /** The first answer by a plugin, to `data` of the server. Throws AUTH_NOT_ALLOWED where the policy does not accept it. */
  async #answerAs(plugin: string, data: Buffer): Promise<Buffer> {
    const { target } = this.#server;
    const password = this.#password();
    const method = password.length === 0 ? 'none' : methodOf(plugin);
    if (method) this.#allow(method);
    const { authentication, first } = await Authentication.begin(plugin, {
      password,
      data,
      channel: { secure: isVerified(target), tls: target.tls !== undefined },
      policy: this.#policy,
      derive: this.#credentials.derive,
    });
    this.#authentication = authentication;
    this.method = method ?? 'none';
    return first;
  }

  /** An account without a password has an empty one. */
  #password(): Buffer {
    return this.#credentials.has('password') ? this.#credentials.get('password') : Buffer.alloc(0);
  }

  #allow(method: AuthMethod): void {
    const { minimumAuth } = this.#settings;
    if (authMethods.indexOf(method) >= authMethods.indexOf(minimumAuth)) return;
    const asked = method === 'none' ? 'no password' : method;
    throw new PosternError(
      'AUTH_NOT_ALLOWED',
      `the server asks for ${asked}, and the service accepts nothing weaker than ${minimumAuth} (minimumAuth)`,
    );
  }
}

/** Rank of a plugin in the policy; undefined: nobody knows it. MariaDB's `dialog` shows the password as it is. */
function methodOf(plugin: string): AuthMethod | undefined {
  if (plugin === 'dialog') return 'mysql_clear_password';
  return authPlugins.has(plugin) ? authMethods.find((method) => method === plugin) : undefined;
}
