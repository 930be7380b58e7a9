import assert from 'node:assert/strict';
import { createHmac, hash } from 'node:crypto';

import type { Peer } from '../../support/session.ts';
import type { Driver } from '../connectors.test.ts';
import { http } from './http.ts';
import { serve } from './postgres.ts';

const upgrade = 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n';

/** Where the last upstream is: the server of a forward proxy is named by its client. */
let port = 0;

interface Kind {
  readonly credentials: Driver['credentials'];
  readonly config?: Readonly<Record<string, unknown>>;
  /** Further fields of the client. */
  readonly fields?: string;
  /** Whether the head that the server got has the credential in it. */
  readonly isFrom: (password: string, head: string) => boolean;
}

/** As the driver of `http`, with a whole URL in the request. */
function forward({ credentials, config, fields = '', isFrom }: Kind): Driver {
  return {
    ...http,
    credentials,
    settings: (upstream) => {
      port = upstream.port;
      return {
        authenticateURLsMatching: '^http://127\\.0\\.0\\.1(:[0-9]+)?/api/',
        timeouts: { response: '1s' },
        ...config,
      };
    },
    upstreams: {
      ...http.upstreams,
      accepting: (password, pace) =>
        serve(async (server) => {
          const head = await readHead(server);
          assert.match(head, /^GET \/api\/chat(\?\S*)? HTTP\/1\.1\r\n/);
          assert.ok(isFrom(password, head), head);
          server.send(Buffer.from(upgrade));
          server.socket.on('data', (chunk: Buffer) => server.socket.write(chunk));
          const early = server.received;
          if (early.length > 0) server.send(early);
        }, pace),
    },
    get hello() {
      return Buffer.from(
        `GET http://127.0.0.1:${port}/api/chat HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\n${fields}Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n`,
      );
    },
    longestFromClient: http.longestFromClient.map((bytes) =>
      Buffer.from(
        bytes.toString('latin1').replace(' /', ' http://127.0.0.1/api/').replace('localhost', '127.0.0.1'),
      ),
    ),
  };
}

async function readHead(server: Pick<Peer, 'read'>): Promise<string> {
  let head = '';
  while (!head.endsWith('\r\n\r\n')) head += (await server.read(1)).toString('latin1');
  return head;
}

/** As a head has it that was read byte by byte: the password is no ASCII. */
const bytesOf = (text: string) => Buffer.from(text).toString('latin1');
const base64 = (text: string) => Buffer.from(text).toString('base64');
const has = (line: string) => (_password: string, head: string) => head.includes(`\r\n${line}\r\n`);

/** The key of AWS's signatures for what `aws` signs below, and the signature that the server got. */
function isSignedWith(password: string, head: string): boolean {
  const [, names = '', signature] =
    /Credential=AKID\/20130524\/eu-west-1\/execute-api\/aws4_request, SignedHeaders=(\S+), Signature=([0-9a-f]{64})\r\n/.exec(
      head,
    ) ?? [];
  const value = (name: string) => new RegExp(`\r\n${name}: (.*)\r\n`, 'i').exec(head)?.[1];
  const lines = names.split(';').map((name) => `${name}:${value(name)}\n`);
  const empty = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';
  const canonical = `GET\n/api/chat\n\n${lines.join('')}\n${names}\n${empty}`;
  const hmac = (key: string | Buffer, text: string) => createHmac('sha256', key).update(text).digest();
  const key = ['20130524', 'eu-west-1', 'execute-api', 'aws4_request'].reduce<string | Buffer>(
    hmac,
    `AWS4${password}`,
  );
  const toSign = `AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/eu-west-1/execute-api/aws4_request\n${hash('sha256', canonical)}`;
  return createHmac('sha256', key).update(toSign).digest('hex') === signature;
}

/** Drivers of Secretless's HTTP connectors, by their names. */
export const secretlessHttp: Readonly<Record<string, Driver>> = {
  basic_auth: forward({
    credentials: (password) => ({ username: 'ann', password }),
    isFrom: (password, head) => has(`Authorization: Basic ${base64(`ann:${password}`)}`)(password, head),
  }),
  conjur: forward({
    credentials: (password) => ({ accessToken: password }),
    isFrom: (password, head) => has(`Authorization: Token token="${base64(password)}"`)(password, head),
  }),
  aws: forward({
    credentials: (password) => ({ accessKeyId: 'AKID', secretAccessKey: password }),
    fields: `Authorization: AWS4-HMAC-SHA256 Credential=DUMMY/20130524/eu-west-1/execute-api/aws4_request, SignedHeaders=host;x-amz-date, Signature=${'0'.repeat(64)}\r\nX-Amz-Date: 20130524T000000Z\r\n`,
    isFrom: isSignedWith,
  }),
  generic_http: forward({
    credentials: (password) => ({ password }),
    config: { headers: { 'X-Key': 'key {{ .password }}' }, queryParams: { key: '{{ .password }}' } },
    isFrom: (password, head) =>
      has(`X-Key: key ${bytesOf(password)}`)(password, head) &&
      head.includes(`/api/chat?key=${encodeURIComponent(password)} `),
  }),
};
