import type { Credentials } from '../../core/credentials.ts';
import { PosternError } from '../../core/errors.ts';
import type { Watch } from '../../core/relay.ts';
import type { Session } from '../../core/session.ts';
import type { Client, Hello } from './client.ts';
import { CommandFollower } from './commands.ts';
import { Conversation } from './conversation.ts';
import { Leg } from './leg.ts';
import type { LoggedIn } from './login.ts';
import { type ChangeUser, decodeChangeUser, encodeChangeUser, rewriteLoginOk } from './packets.ts';
import { errorReply, refusal } from './replies.ts';
import { chooseDatabase, namedAttributes } from './request.ts';
import type { Settings } from './settings.ts';

/**
 * Serves COM_CHANGE_USER, by which pools and PHP's persistent connections reset a session. Passed on as it is it would
 * fail, as the client has no password, or log in as whomever the application has the password of. So Postern sends its own,
 * with the service's user and credential, answers what the server asks, and gives the client the result.
 */
export class ChangeUserWatch extends CommandFollower implements Watch {
  readonly #session: Session;
  readonly #client: Client;
  readonly #hello: Hello;
  readonly #server: LoggedIn;
  readonly #settings: Settings;

  constructor(session: Session, client: Client, hello: Hello, server: LoggedIn, settings: Settings) {
    super();
    this.#session = session;
    this.#client = client;
    this.#hello = hello;
    this.#server = server;
    this.#settings = settings;
  }

  /** A refusal leaves the session as it was; after a failure the server ends it. */
  async stepIn(): Promise<void> {
    const leg = new Leg(this.#client.socket, 'client');
    try {
      const signal = this.#session.deadline('COM_CHANGE_USER');
      const asked = decodeChangeUser(await leg.read(signal), this.#hello.agreed.flags);
      const refused = this.#refusalOf(asked);
      if (refused) return leg.write(errorReply(refused, this.#session.id));
      const ok = await this.#logInAgain(asked);
      leg.write(...this.#client.loginAnswer(asked, ok));
    } catch (thrown) {
      const error = PosternError.from(thrown);
      if (error.code !== 'CLIENT_CLOSED') leg.write(errorReply(error, this.#session.id));
      throw error;
    }
  }

  #refusalOf({ database }: ChangeUser): PosternError | undefined {
    if (this.#settings.changeUser === 'refuse')
      return refusal(
        'CLIENT_REFUSED',
        [1047, '08S01'],
        'COM_CHANGE_USER is not allowed by this service (changeUser)',
      );
    try {
      chooseDatabase(database, this.#settings);
      return undefined;
    } catch (thrown) {
      return PosternError.from(thrown);
    }
  }

  async #logInAgain(asked: ChangeUser): Promise<Buffer> {
    let rejected: PosternError | undefined;
    return await this.#session.withCredentials(async (credentials, signal) => {
      // The server has closed the connection: there is nowhere to try a newer credential.
      if (rejected) throw rejected;
      try {
        return await this.#changeUser(asked, credentials, signal);
      } catch (thrown) {
        throw (rejected = PosternError.from(thrown));
      }
    });
  }

  async #changeUser(asked: ChangeUser, credentials: Credentials, signal: AbortSignal): Promise<Buffer> {
    const { socket, capabilities } = this.#server;
    const leg = new Leg(socket, 'upstream');
    const named = [asked.database];
    const conversation = await Conversation.prepare(this.#settings, credentials, this.#server, named);
    const change = {
      user: credentials.get('username').toString('latin1'),
      // No answer yet, and no plugin: the server then asks for the account's own, with a new salt. With the name of a
      // plugin that sends the password as it is (PAM), MariaDB would take no answer for an empty password.
      authData: Buffer.alloc(0),
      plugin: '',
      database: chooseDatabase(asked.database, this.#settings),
      collation: asked.collation,
      attributes: namedAttributes(asked.attributes, this.#settings),
    };
    leg.write(encodeChangeUser(change, capabilities.flags));
    return rewriteLoginOk(await conversation.finish(leg, signal), capabilities.flags);
  }
}
