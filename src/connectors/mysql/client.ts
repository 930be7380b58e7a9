import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';

import { Deadline } from '../../core/deadline.ts';
import { PosternError } from '../../core/errors.ts';
import type { Session } from '../../core/session.ts';
import { endLingering } from '../../core/socket.ts';
import { acceptTls } from '../../core/tls.ts';
import {
  agreedCapabilities,
  type Capabilities,
  capability,
  has,
  offeredCapabilities,
} from './capabilities.ts';
import { Leg } from './leg.ts';
import {
  type ClientHello,
  decodeClientHello,
  encodeAuthSwitch,
  encodeGreeting,
  fastAuthSuccess,
  type Greeting,
  type HandshakeResponse,
} from './packets.ts';
import { errorReply, refusal, withoutSqlstate } from './replies.ts';
import type { Settings } from './settings.ts';

const ALPN = 'mysql';
/** The one plugin that every client answers whatever it was given, and that an OK may follow at once. */
const PLUGIN = 'mysql_native_password';
/** What proves a local password: every client of MySQL 8 and of MariaDB 10.2 or later has it. */
const LOCAL_PLUGIN = 'caching_sha2_password';
/** How long a client may take to answer the greeting of Postern's own that goes before an error, in milliseconds. */
const REFUSAL_PATIENCE = 2000;

/** What a client said about itself, and what it and Postern have agreed on by that. */
export interface Hello {
  readonly response: HandshakeResponse;
  readonly agreed: Capabilities;
}

/** The client's end of a session, from the greeting until the relay takes over. */
export class Client {
  readonly #session: Session;
  readonly #settings: Settings;
  readonly #leg: Leg;
  #greeted = false;
  #refused = false;
  /** A client from before MySQL 4.1 knows no SQLSTATE. */
  #tooOld = false;
  #hello: Hello | undefined;

  constructor(session: Session, settings: Settings) {
    this.#session = session;
    this.#settings = settings;
    this.#leg = new Leg(session.client, 'client');
  }

  /** The client's socket, or the TLS one around it. */
  get socket(): Socket {
    return this.#leg.socket;
  }

  /**
   * Shows the client the greeting of its server, as far as it can be shown, and reads the answer. With a second server,
   * after a rejected credential, the client knows the first one's greeting: it stands if the second can do the same.
   */
  async meet(greeting: Greeting, signal: AbortSignal): Promise<Hello> {
    const offered = offeredCapabilities(greeting.capabilities, {
      tls: this.#session.localTls !== undefined,
      localFiles: this.#settings.allowLocalInfile,
    });
    this.#hello ??= await this.#introduce({ ...greeting, capabilities: offered }, signal);
    const { response, agreed } = this.#hello;
    const now = agreedCapabilities(response.capabilities, offered);
    if (now.flags !== agreed.flags || now.extended !== agreed.extended)
      throw new PosternError(
        'UPSTREAM_PROTOCOL',
        'the server of the second login cannot do what the first one had offered',
      );
    return this.#hello;
  }

  /**
   * Greets a client that has to prove a local password, with what is known of its server, and has it answer by the one plugin
   * for that, whatever it would have chosen itself.
   */
  async meetLocally(
    greeting: Greeting,
    signal: AbortSignal,
  ): Promise<{ readonly user: string; readonly answer: Buffer; readonly salt: Buffer }> {
    const capabilities = offeredCapabilities(greeting.capabilities, {
      tls: this.#session.localTls !== undefined,
      localFiles: this.#settings.allowLocalInfile,
    });
    let salt = freshSalt();
    const hello = await this.#introduce({ ...greeting, capabilities }, signal, LOCAL_PLUGIN, salt);
    let { response } = hello;
    if (response.plugin !== LOCAL_PLUGIN) {
      if (!has(hello.agreed.flags, capability.pluginAuth))
        throw refusal('ACCESS_DENIED', [1251, '08004'], `the client does not know ${LOCAL_PLUGIN}`);
      salt = freshSalt();
      this.#leg.write(encodeAuthSwitch(LOCAL_PLUGIN, salt));
      response = { ...response, plugin: LOCAL_PLUGIN, authData: await this.#leg.read(signal) };
    }
    this.#hello = { ...hello, response };
    return { user: response.user, answer: response.authData, salt };
  }

  /** The client is logged in. `ok` is the server's word on it. */
  welcome(ok: Buffer): void {
    this.#leg.write(...this.loginAnswer(this.#hello?.response, ok));
  }

  /**
   * The packets that tell a client of its success. Those that have proved a password by caching_sha2_password wait for the
   * word that the proof was right; others, and those without a password, take it for a malformed packet.
   */
  loginAnswer(asked: Pick<HandshakeResponse, 'authData' | 'plugin'> | undefined, ok: Buffer): Buffer[] {
    const proved = asked?.plugin === 'caching_sha2_password' && asked.authData.length === 32;
    return proved ? [fastAuthSuccess, ok] : [ok];
  }

  /** Tells the client why it is not served, so that it hears it to the end. Once: the first reason is the one that counts. */
  async refuse(error: PosternError): Promise<void> {
    if (this.#refused) return;
    this.#refused = true;
    try {
      if (error.code !== 'CLIENT_CLOSED' && !this.socket.destroyed) await this.#tell(error);
    } finally {
      endLingering(this.socket);
    }
  }

  async #tell(error: PosternError): Promise<void> {
    const reply = errorReply(error, this.#session.id);
    // Some clients show an error in place of a greeting as a failure of TLS. There is no time for more at shutdown.
    if (!this.#greeted && error.code !== 'SHUTDOWN') {
      using patience = new Deadline(REFUSAL_PATIENCE, late);
      try {
        await this.#introduce(ownGreeting(this.#session.localTls !== undefined), patience.signal);
      } catch (thrown) {
        if (PosternError.from(thrown).code === 'CLIENT_CLOSED') return;
      }
    }
    this.#leg.write(this.#greeted && !this.#tooOld ? reply : withoutSqlstate(reply));
  }

  /** Greets, with a salt of Postern's own: with the server's, the client could try passwords on what it hears later. */
  async #introduce(
    greeting: Greeting,
    signal: AbortSignal,
    plugin = PLUGIN,
    salt = freshSalt(),
  ): Promise<Hello> {
    this.#greeted = true;
    this.#leg.write(encodeGreeting({ ...greeting, authData: salt, plugin }));
    let hello = await this.#readHello(signal);
    if (hello.kind === 'sslRequest') {
      await this.#startTls(greeting, signal);
      hello = await this.#readHello(signal);
    }
    if (hello.kind !== 'response')
      throw new PosternError('CLIENT_PROTOCOL', 'the client asked for TLS inside TLS');
    return { response: hello, agreed: agreedCapabilities(hello.capabilities, greeting.capabilities) };
  }

  async #readHello(signal: AbortSignal): Promise<Exclude<ClientHello, { kind: 'too old' }>> {
    const hello = decodeClientHello(await this.#leg.read(signal));
    if (hello.kind !== 'too old') return hello;
    this.#tooOld = true;
    throw refusal('CLIENT_PROTOCOL', [1251, '08004'], 'the client is from before MySQL 4.1');
  }

  async #startTls({ capabilities }: Greeting, signal: AbortSignal): Promise<void> {
    const { localTls } = this.#session;
    if (!localTls || !has(capabilities.flags, capability.ssl))
      throw refusal(
        'CLIENT_PROTOCOL',
        [1043, '08S01'],
        'the client asked for TLS, which this service does not have (listenTls)',
      );
    // The client begins its handshake without waiting for a word. Whatever it sent behind the request is read as part of
    // that, so nothing that came in clear is ever taken for something that came encrypted.
    this.#leg.socket = await acceptTls(this.socket, localTls, ALPN, signal);
    this.#session.note({ clientTls: true });
  }
}

function late(): PosternError {
  return new PosternError('TIMEOUT', 'the client did not answer the greeting');
}

/** As a server makes it: 20 bytes, none of them zero (it would end the text) or `$` (which separates in stored hashes). */
function freshSalt(): Buffer {
  return Buffer.from(
    randomBytes(20).map((byte) => {
      const character = 1 + (byte % 126);
      return character < 0x24 ? character : character + 1;
    }),
  );
}

/** For a client that is to hear an error, and has no server. Id 0 is nobody's, so a KILL of it hits nobody. */
function ownGreeting(tls: boolean): Greeting {
  return {
    serverVersion: '8.0.0-postern',
    connectionId: 0,
    capabilities: { flags: (ownFlags | (tls ? capability.ssl : 0)) >>> 0, extended: 0 },
    collation: 45, // utf8mb4_general_ci
    status: 2, // autocommit
    authData: Buffer.alloc(0),
    plugin: PLUGIN,
  };
}

const ownFlags =
  capability.longPassword |
  capability.foundRows |
  capability.longFlag |
  capability.connectWithDatabase |
  capability.odbc |
  capability.ignoreSpace |
  capability.protocol41 |
  capability.interactive |
  capability.transactions |
  capability.secureConnection |
  capability.multiStatements |
  capability.multiResults |
  capability.preparedMultiResults |
  capability.pluginAuth |
  capability.connectAttributes |
  capability.longAuthData;
