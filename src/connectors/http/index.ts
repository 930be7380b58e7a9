import { PosternError } from '../../core/errors.ts';
import type { Session } from '../../core/session.ts';
import { acceptTls } from '../../core/tls.ts';
import { defineConnector, type Protocol, type ServiceContext } from '../connector.ts';
import { attachAccepted, tryTakingOver } from './accelerator.ts';
import { openAuthority } from './authority.ts';
import { Client } from './client.ts';
import { namedOrigins, reviewShared } from './forward.ts';
import { tryOut } from './probe.ts';
import { errorReply } from './replies.ts';
import { ReverseFront } from './reverse.ts';
import { review } from './review.ts';
import type { Front } from './route.ts';
import { frontOf, takePart } from './router.ts';
import { Matcher } from './rules.ts';
import { openScheme } from './schemes/index.ts';
import { openMember } from './service.ts';
import { type Settings, settings } from './settings.ts';

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
  if (settings.reads === 'auto') void tryTakingOver();
  const member = openMember(service, settings, openScheme(settings.authenticate, { name: service.name }));
  const { upstream, match, forceTls, allowPlainHttp, intercept, hosts } = settings;
  const reverse = upstream === undefined ? undefined : new ReverseFront(member, new URL(upstream), hosts);
  let front: Front;
  const protocol: Protocol = {
    serve: (session) => serve(session, front),
    join: (members) => {
      front = frontOf(members, member);
    },
    probe: (probe) => tryOut(probe, member, reverse ? [reverse.origin] : namedOrigins(settings)),
    drain: () => {
      member.draining = true;
    },
    close: () => member.scheme.close?.(),
    counters: () => member.counters,
  };
  takePart(protocol, {
    member,
    reverse,
    forward: match && { rules: new Matcher(match), forceTls, allowPlainHttp },
    intercept: intercept && {
      authority: openAuthority(intercept, service),
      unmatched: intercept.unmatched,
    },
  });
  front = frontOf([protocol], member);
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
  const client = new Client(front, session);
  client.wire.attach(socket, true);
  await client.done;
}
