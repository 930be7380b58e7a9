import { PosternError } from '../../core/errors.ts';
import type { Session } from '../../core/session.ts';
import { acceptTls } from '../../core/tls.ts';
import { defineConnector, type Protocol, type ServiceContext } from '../connector.ts';
import { attachAccepted, tryAccelerating } from './accelerator.ts';
import { openAuthority } from './authority.ts';
import { Client } from './client.ts';
import { explainRequest } from './explain.ts';
import { namedOrigins, reviewShared } from './forward.ts';
import { tryOut } from './probe.ts';
import { errorReply } from './replies.ts';
import { type Reverse, ReverseFront } from './reverse.ts';
import { review } from './review.ts';
import type { Front, Origin } from './route.ts';
import { type Forward, type Intercept, ListenerFront, takePart } from './router.ts';
import { Matcher } from './rules.ts';
import { openScheme, type Scheme } from './schemes/index.ts';
import { openMember } from './service.ts';
import { type EngineSettings, type Settings, settings } from './settings.ts';

/** HTTP/1.1: requests get the service's credential on their way. */
export const http = defineConnector({
  summary: 'HTTP/1.1, in front of one server or as a forward proxy',
  settings,
  credentials: {
    required: [],
    optional: [],
    others:
      'used by `authenticate`, by its name; `tlsCert`, `tlsKey`, `tlsKeyPassword` and `tlsCa` are for TLS towards the upstream',
  },
  review,
  reviewShared,
  open,
});

function open(settings: Settings, service: ServiceContext): Protocol {
  const { upstream, match, forceTls, allow, allowPlainHttp, intercept, hosts, origins } = settings;
  return openHttp(
    {
      engine: settings,
      scheme: openScheme(settings.authenticate, { name: service.name }),
      reverse: upstream === undefined ? undefined : { upstream: new URL(upstream), hosts, origins, allow },
      forward: match && { rules: new Matcher(match), forceTls, allowPlainHttp },
      intercept: intercept && {
        authority: openAuthority(intercept, service),
        unmatched: intercept.unmatched,
      },
      origins: namedOrigins(settings),
    },
    service,
  );
}

/** A service of the engine, whatever its settings look like. */
export interface HttpService {
  readonly engine: EngineSettings;
  readonly scheme: Scheme;
  readonly reverse?: Reverse | undefined;
  readonly forward?: Forward | undefined;
  readonly intercept?: Intercept | undefined;
  /** Servers to try a forward service out with. */
  readonly origins: readonly Origin[];
}

/** Opens a service for one of the connectors that the engine serves. */
export function openHttp(about: HttpService, service: ServiceContext): Protocol {
  if (about.engine.reads === 'auto') void tryAccelerating();
  const takesAuthorization = service.asksPassword === true && about.reverse !== undefined;
  const member = openMember(service, about.engine, about.scheme, takesAuthorization);
  const reverse = about.reverse && new ReverseFront(member, about.reverse);
  const front = new ListenerFront(member);
  const protocol: Protocol = {
    serve: (session) => serve(session, front),
    join: (members) => front.share(members),
    explain: (request) => explainRequest(front, about.reverse?.upstream, request),
    probe: (probe) => tryOut(probe, member, reverse ? [reverse.origin] : about.origins),
    drain: () => {
      member.draining = true;
    },
    close: () => member.scheme.close?.(),
    counters: () => member.counters,
  };
  takePart(protocol, { member, reverse, forward: about.forward, intercept: about.intercept });
  front.share([protocol]);
  return protocol;
}

/** Serves one connection of a client, with as many requests as it brings. */
async function serve(session: Session, front: Front): Promise<void> {
  if (session.localTls) return await serveTls(session, front);
  const client = new Client(front, session);
  attachAccepted(client.wire, session.client, front.first.settings.reads);
  await client.done;
}

async function serveTls(session: Session, front: Front): Promise<void> {
  const { localTls } = session;
  if (!localTls) throw new PosternError('INTERNAL', 'no certificate for clients');
  let socket: Awaited<ReturnType<typeof acceptTls>>;
  try {
    socket = await acceptTls(session.client, localTls, 'http/1.1', session.deadline('the TLS handshake'));
  } catch (thrown) {
    const error = PosternError.from(thrown);
    // Whoever speaks HTTP to a port with TLS reads this; a TLS client sees a record that is none.
    if (!session.client.destroyed) session.client.end(errorReply(error, session.id));
    throw error;
  }
  session.note({ clientTls: true });
  const client = new Client(front, session);
  client.wire.attach(socket, true);
  await client.done;
}
