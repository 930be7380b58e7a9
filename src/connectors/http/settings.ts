import * as z from 'zod';

import { duration } from '../../core/duration.ts';
import { forwardShape } from './forward.ts';
import { allowRule } from './rules.ts';
import { authenticate } from './schemes/index.ts';

const tls = z.strictObject({
  ca: z
    .string()
    .min(1)
    .optional()
    .describe('File with the CA certificates to trust (PEM), instead of the system ones.'),
  cert: z
    .string()
    .min(1)
    .optional()
    .describe('File with the client certificate and its chain (PEM). May also be the credential `tlsCert`.'),
  key: z
    .string()
    .min(1)
    .optional()
    .describe('File with the key of the client certificate (PEM). May also be the credential `tlsKey`.'),
  serverName: z
    .string()
    .min(1)
    .optional()
    .describe(
      'Name to send as SNI and to expect in the certificate, where it is not the host of `upstream`.',
    ),
  minVersion: z.enum(['TLSv1.2', 'TLSv1.3']).default('TLSv1.2').describe('Oldest TLS version to accept.'),
  verify: z
    .enum(['full', 'ca', 'none'])
    .default('full')
    .describe(
      'full: the certificate comes from a trusted CA and names the host. ca: it comes from a trusted CA. none: nothing is checked, and the credential goes to whoever answers.',
    ),
});

const pool = z.strictObject({
  maxConnections: z
    .int()
    .min(1)
    .max(10_000)
    .default(256)
    .describe('Connections to one origin at the same time; further requests wait for one.'),
  maxWaiting: z
    .int()
    .min(0)
    .max(100_000)
    .default(1024)
    .describe('Requests that may wait for a connection; further ones get 503.'),
  idleTimeout: duration
    .prefault('4s')
    .describe(
      'How long an unused connection is kept. Less than the server keeps it: Node keeps them 5 s, nginx 75 s.',
    ),
});

const timeouts = z.strictObject({
  connect: duration.prefault('5s').describe('How long a connection to the upstream may take, with TLS.'),
  response: duration
    .prefault('5m')
    .describe('Longest silence of the upstream while it owes a response or the rest of one. 0s: no limit.'),
  requestBody: duration
    .prefault('1m')
    .describe('Longest silence of a client in the middle of its request. 0s: no limit.'),
  keepAlive: duration.prefault('75s').describe('How long a client may keep a connection without a request.'),
  tunnel: duration
    .prefault('1h')
    .describe('Longest silence on a WebSocket, in both directions. 0s: no limit.'),
});

/** What of the settings the engine needs; the same for every mode and for Secretless's connectors. */
export const engineShape = {
  tls: tls.prefault({}).describe('TLS towards the upstream.'),
  pool: pool.prefault({}).describe('Connections to the upstream.'),
  timeouts: timeouts
    .prefault({})
    .describe('How long things may take. The head of a request has `limits.loginTimeout`.'),
  requestsPerConnection: z
    .int()
    .min(1)
    .default(100_000)
    .describe('Requests after which a connection of a client is closed.'),
  bufferLimit: z
    .int()
    .min(0)
    .max(64 * 1024 * 1024)
    .default(1024 * 1024)
    .describe('Longest body in bytes that is held back because it has to be signed; a longer one gets 413.'),
  rejected: z
    .array(z.int().min(400).max(499))
    .default([401])
    .describe(
      'Statuses that mean that the credential was rejected: it is fetched again and, if it changed, the request is sent once more, as far as its body was held.',
    ),
  scrub: z
    .boolean()
    .default(true)
    .describe("Whether fields of a response's head that repeat the credential are taken out."),
  accessLog: z
    .boolean()
    .default(false)
    .describe('A line in the log for each request: method, path without query, status, durations, bytes.'),
  reads: z
    .enum(['auto', 'onread', 'data'])
    .default('auto')
    .describe(
      "How connections are read and written to. onread: clients' are read into buffers that are used again, and all are written to past their streams, by ways that Node does not document. data: by Node's own. auto: by the first, where a try at the start has shown that it works.",
    ),
};

const engine = z.strictObject(engineShape);
export type EngineSettings = z.output<typeof engine> & {
  /** File with CA certificates to trust beside those of the system. */
  readonly extraCa?: string;
};

/** `config:` of the connector `http`. */
export const settings = z.strictObject({
  upstream: z
    .url({ protocol: /^https?$/ })
    .optional()
    .describe(
      'Base URL of the server, such as `https://api.github.com`; its path is put in front of what clients ask for.',
    ),
  authenticate: authenticate.optional().describe('How the credentials get into requests.'),
  allow: z
    .array(allowRule)
    .min(1)
    .optional()
    .describe(
      'What clients may ask of `upstream`: a list of `METHOD /path`, `/path`, or of objects. Checked in every way in which servers are known to read a path; anything else gets 403. Default: everything below the path of `upstream`.',
    ),
  allowPlainHttp: z
    .boolean()
    .default(false)
    .describe(
      'Whether the credential may travel in clear to an `upstream` or to URLs that begin with `http://`, also on this machine.',
    ),
  hosts: z
    .array(z.string().min(1).max(253))
    .default([])
    .describe(
      "Names that clients may use for this listener in `Host`, beside `localhost`, loopback addresses and the upstream's own. Other ones get 421: a web page could have its name resolve to this machine.",
    ),
  origins: z
    .array(
      z.union([
        z.literal('*'),
        z
          .string()
          .regex(/^[a-z][a-z0-9+.-]*:\/\/[^/]+$/, 'must be an origin such as https://app.example.com, or *'),
      ]),
    )
    .default([])
    .describe(
      'Origins of web pages that may use `upstream` through a browser, beside pages of the listener itself; `*`: of any. Requests of other pages get 403: browsers name the page in `Origin` or `Sec-Fetch-Site`, programs send neither.',
    ),
  ...forwardShape,
  ...engineShape,
});

export type Settings = z.output<typeof settings>;
