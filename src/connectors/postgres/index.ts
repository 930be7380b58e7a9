import type { Socket } from 'node:net';

import type { Credentials } from '../../core/credentials.ts';
import { PosternError } from '../../core/errors.ts';
import type { Probe, Session } from '../../core/session.ts';
import { type CredentialNames, defineConnector, type Protocol } from '../connector.ts';
import { loginFacts, serverCredentials } from '../upstream.ts';
import { CancelKeys } from './cancel.ts';
import { Client, type StartupHello } from './client.ts';
import { IdleFollower } from './idle.ts';
import { logInLocally } from './local-login.ts';
import { type LoggedIn, logIn } from './login.ts';
import {
  authenticationOk,
  byteString,
  encodeBackendKey,
  encodeMessage,
  negotiationOf,
  type Parameter,
  textOf,
} from './messages.ts';
import { type StartupRequest, startupRequest } from './parameters.ts';
import { sqlstateOf } from './replies.ts';
import { review } from './review.ts';
import { type Settings, secretlessSettings, settings } from './settings.ts';

const names = {
  required: ['username'],
  optional: ['password', 'address', ...serverCredentials],
  others: 'sent to the server as a startup parameter of that name, which the client cannot override',
} as const satisfies CredentialNames;
const known: ReadonlySet<string> = new Set([...names.required, ...names.optional]);

/** PostgreSQL with Postern's defaults: TLS verified in full, a password in clear only to a verified server. */
export const postgres = defineConnector({
  summary: 'PostgreSQL, protocol 3.0 and 3.2',
  settings,
  credentials: names,
  review,
  open,
});

/** The same under Secretless's name and with its defaults, so that its files run unchanged. */
export const pg = defineConnector({
  summary: "PostgreSQL under Secretless's name, with Secretless's defaults",
  settings: secretlessSettings,
  credentials: names,
  review,
  open,
});

/** One for the whole process: a client may send its cancel request to any listener, also after a reload. */
const cancelKeys = new CancelKeys();

function open(settings: Settings): Protocol {
  return {
    serve: (session) => serve(session, settings),
    probe: (probe) => tryLogin(probe, settings),
    hearsOfSessions: true,
  };
}

/** What is left of a login when the relay begins. */
interface Way {
  readonly client: Socket;
  readonly upstream: Socket;
  readonly cancelKey: Disposable | undefined;
}

/** No async function: what such a one has in its hands stays in memory while it waits, for thousands of idle sessions. */
function serve(session: Session, settings: Settings): Promise<void> {
  const client = new Client(session);
  return reachServer(session, client, settings)
    .then((way) => way && relay(session, way))
    .catch((thrown: unknown) => {
      const error = PosternError.from(thrown);
      client.refuse(error);
      throw error;
    });
}

function relay(session: Session, { client, upstream, cancelKey }: Way): Promise<void> {
  const follow = followerOf(session.id);
  return session.relay(client, upstream, { follow }).finally(() => cancelKey?.[Symbol.dispose]());
}

function followerOf(id: string): () => IdleFollower {
  return () => new IdleFollower(id);
}

/** Undefined for a cancel request, which is over then. */
async function reachServer(session: Session, client: Client, settings: Settings): Promise<Way | undefined> {
  const hello = await client.readHello(session.deadline('the start-up message'));
  if (hello.kind === 'cancel') {
    const known = await cancelKeys.forward(
      hello.target,
      settings.connectTimeout,
      session.deadline('the cancel request'),
    );
    session.note({ cancel: known ? 'forwarded' : 'unknown key' });
    client.end();
    return undefined;
  }
  await logInLocally(session, client, hello);
  session.admit();
  const loggedIn = await session.withCredentials(async (credentials, signal) => {
    const request = startupRequest(hello, settings, pinnedParameters(settings, credentials));
    session.note(described(hello, request));
    return await logIn(request, settings, credentials, signal);
  });
  session.note(loginFacts({ ...loggedIn, address: loggedIn.reached.address }));

  const cancelKey =
    loggedIn.backendKey && cancelKeys.issue(loggedIn.backendKey, loggedIn.reached, hello.minor);
  // A client that has logged in here has heard it then.
  const negotiation = session.localLogin ? [] : negotiationOf(hello);
  client.socket.write(
    Buffer.concat([...negotiation, greetingFor(loggedIn, cancelKey && encodeBackendKey(cancelKey.given))]),
  );
  return { client: client.socket, upstream: loggedIn.socket, cancelKey };
}

/** `parameters.set` of the configuration, and credentials that are no part of the connection itself. */
function pinnedParameters(settings: Settings, credentials: Credentials): Parameter[] {
  const fromSettings = Object.entries(settings.parameters.set).map(
    ([name, value]): Parameter => [byteString(name), byteString(value)],
  );
  const others = credentials.names().filter((name) => !known.has(name));
  return [
    ...fromSettings,
    ...others.map((name): Parameter => [byteString(name), byteString(credentials.text(name) ?? '')]),
  ];
}

/** All that the client hears at once, when the server is ready for it: as if it had logged in itself. */
function greetingFor({ greeting, readyForQuery }: LoggedIn, backendKey: Buffer | undefined): Buffer {
  return Buffer.concat([
    authenticationOk,
    ...greeting,
    // Some drivers take nothing between BackendKeyData and ReadyForQuery.
    ...(backendKey ? [backendKey] : []),
    readyForQuery,
  ]);
}

function described(hello: StartupHello, { database, askedUser }: StartupRequest): Record<string, string> {
  const application = hello.parameters.findLast(([name]) => name === 'application_name')?.[1];
  // The server cuts names at 63 bytes, and a stranger's packet has room for thousands.
  const short = (text: string) => textOf(text).slice(0, 64);
  return {
    database: short(database),
    askedUser: short(askedUser),
    ...(application !== undefined && { application: short(application) }),
  };
}

async function tryLogin(probe: Probe, settings: Settings): Promise<string> {
  return await probe.withCredentials(async (credentials, signal) => {
    const pinned = pinnedParameters(settings, credentials);
    const database = byteString(settings.database ?? settings.databases?.[0] ?? 'postgres');
    const request = { database, askedUser: '', parameters: [['database', database], ...pinned] as const };
    const user = credentials.text('username');
    try {
      const loggedIn = await logIn(request, settings, credentials, signal);
      loggedIn.socket.end(encodeMessage('X'));
      loggedIn.socket.destroySoon();
      const { upstream, auth, upstreamTls } = loginFacts({ ...loggedIn, address: loggedIn.reached.address });
      return `logged in to ${upstream} as ${user} (${auth}, TLS ${upstreamTls})`;
    } catch (error) {
      // The login itself succeeded; which database applications ask for is theirs to say.
      if (error instanceof PosternError && sqlstateOf(error) === '3D000' && !settings.database)
        return `logged in as ${user}; there is no database "${textOf(database)}"`;
      throw error;
    }
  });
}
