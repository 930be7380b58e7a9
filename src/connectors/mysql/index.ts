import type { Credentials } from '../../core/credentials.ts';
import { Deadline } from '../../core/deadline.ts';
import { PosternError } from '../../core/errors.ts';
import type { Probe, Session } from '../../core/session.ts';
import { type CredentialNames, defineConnector, type Protocol } from '../connector.ts';
import { loginFacts, serverCredentials } from '../upstream.ts';
import { ChangeUserWatch } from './change-user.ts';
import { Client, type Hello } from './client.ts';
import { IdleFollower } from './idle.ts';
import { logInLocally } from './local-login.ts';
import { type LoggedIn, leave, logIn, quit } from './login.ts';
import { textOf } from './names.ts';
import type { Greeting } from './packets.ts';
import { bareRequest, type LoginRequest, loginRequest } from './request.ts';
import { review } from './review.ts';
import { type Settings, settings } from './settings.ts';
import { findServer, type GreetedServer } from './upstream.ts';

const names = {
  required: ['username'],
  optional: ['password', ...serverCredentials],
  others: 'ignored, as in Secretless, in a service without `config.host`; an error in one with it',
} as const satisfies CredentialNames;
const known: ReadonlySet<string> = new Set([...names.required, ...names.optional]);

/** MySQL and MariaDB. Without `config.host` a service keeps the defaults of Secretless, which has the same name for it. */
export const mysql = defineConnector({
  summary: "MySQL and MariaDB; without `config.host` with Secretless's defaults",
  settings,
  credentials: names,
  review: (parsed, credentials) => review(parsed, credentials, known),
  open,
});

function open(settings: Settings): Protocol {
  const server: Remembered = { greeting: undefined };
  return {
    serve: (session) => serve(session, settings, server),
    probe: (probe) => tryLogin(probe, settings),
  };
}

/** What the server said last: a client that has to prove a local password is greeted with it before the server is asked. */
interface Remembered {
  greeting: Greeting | undefined;
}

async function serve(session: Session, settings: Settings, remembered: Remembered): Promise<void> {
  const client = new Client(session, settings);
  try {
    await logInLocally(session, client, () => greetingOf(session, settings, remembered));
    // A MySQL client says nothing before its server does: whoever connects wants a session.
    session.admit();
    const { hello, loggedIn } = await session.withCredentials(async (credentials, signal) => {
      const server = await findServer(settings, credentials, signal);
      remembered.greeting = server.greeting;
      const { hello, request } = await meet(client, server, session, settings, credentials, signal);
      return { hello, loggedIn: await logIn(server, request, settings, credentials, signal) };
    });
    session.note(loginFacts(loggedIn));
    client.welcome(loggedIn.ok);
    await session.relay(client.socket, loggedIn.socket, {
      watch: watchOf(session, client, hello, loggedIn, settings),
      follow: () => new IdleFollower(session.id, hello.agreed),
    });
  } catch (thrown) {
    const error = PosternError.from(thrown);
    await client.refuse(error);
    throw error;
  }
}

/** The first client of all has the server asked for it. */
async function greetingOf(session: Session, settings: Settings, remembered: Remembered): Promise<Greeting> {
  remembered.greeting ??= await session.withCredentials(async (credentials, signal) => {
    const server = await findServer(settings, credentials, signal);
    await leave(server, settings, credentials);
    return server.greeting;
  });
  return remembered.greeting;
}

/**
 * How long a client may take to answer the greeting, in milliseconds: the server waits too, and gives up after its
 * `connect_timeout`, 10 s by default.
 */
const CLIENT_PATIENCE = 8000;

/** Greets the client with what the server has said, and finds out what it wants. A server that nobody wants is left in order. */
async function meet(
  client: Client,
  server: GreetedServer,
  session: Session,
  settings: Settings,
  credentials: Credentials,
  signal: AbortSignal,
): Promise<{ readonly hello: Hello; readonly request: LoginRequest }> {
  const late = () =>
    new PosternError('TIMEOUT', `the client did not answer the greeting within ${CLIENT_PATIENCE / 1000} s`);
  using patience = new Deadline(CLIENT_PATIENCE, late, signal);
  try {
    const hello = await client.meet(server.greeting, patience.signal);
    const request = loginRequest(hello, settings);
    session.note(described(hello, request));
    return { hello, request };
  } catch (error) {
    // Before the courtesy to the server, which may take its time.
    await client.refuse(PosternError.from(error));
    if (signal.aborted) server.socket.destroy();
    else await leave(server, settings, credentials);
    throw error;
  }
}

/** What follows the client's commands; undefined where nothing has to, so that the relay looks at nothing. */
function watchOf(
  session: Session,
  client: Client,
  hello: Hello,
  loggedIn: LoggedIn,
  settings: Settings,
): ChangeUserWatch | undefined {
  if (settings.changeUser === 'relay') return undefined;
  return new ChangeUserWatch(session, client, hello, loggedIn, settings);
}

function described({ response }: Hello, { database }: LoginRequest): Record<string, string> {
  // A stranger's packet has room for thousands of characters.
  const short = (text: string) => textOf(text).slice(0, 64);
  const application = response.attributes.get('program_name');
  return {
    askedUser: short(response.user),
    ...(database !== undefined && { database: short(database) }),
    ...(application !== undefined && { application: short(application) }),
  };
}

async function tryLogin(probe: Probe, settings: Settings): Promise<string> {
  return await probe.withCredentials(async (credentials, signal) => {
    const server = await findServer(settings, credentials, signal);
    const request = bareRequest(server.greeting, settings);
    const loggedIn = await logIn(server, request, settings, credentials, signal);
    quit(loggedIn);
    const { upstream, auth, upstreamTls } = loginFacts(loggedIn);
    return `logged in to ${upstream} as ${credentials.text('username')} (${auth}, TLS ${upstreamTls})`;
  });
}
