import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';

/** A request as the fake saw it. */
export interface Seen {
  readonly method: string;
  /** The target of the request line, byte for byte. */
  readonly target: string;
  readonly headers: IncomingMessage['headers'];
  readonly body: string;
}

/** A variable; a role that is not named in `execute` or `read` does not see it. */
interface FakeVariable {
  /** Oldest first; none: it was never given a value. */
  readonly values: Buffer[];
  readonly execute: readonly string[];
  readonly read?: readonly string[];
}

export interface FakeOptions {
  readonly account?: string;
  /** Base path of the URL, as behind a proxy or in the hosted service. */
  readonly path?: string;
  /** API keys by login (`host/app`). */
  readonly keys?: Record<string, string>;
  /** JWTs by service id: which token is which host. */
  readonly jwts?: Record<string, Record<string, string>>;
  readonly variables?: Record<string, FakeVariable>;
  /** Seconds that a token lives; 480 by default. undefined in the token (`exp: false`): as servers before it. */
  readonly life?: number;
  readonly exp?: boolean;
  /** How far the server's clock is from ours, in seconds. */
  readonly clockSkew?: number;
  /** A server that does not know `Accept-Encoding: base64` for a batch. */
  readonly old?: boolean;
  readonly tls?: { readonly cert: Buffer; readonly key: Buffer };
  /** Answers by hand; true: it has. */
  readonly behave?: (seen: Seen, response: ServerResponse, count: number) => boolean;
}

/**
 * A FAKE of Conjur, strict where the server is: what it checks and answers was written down from the server's source
 * (1.24). No real Conjur can be had for the tests.
 */
export interface FakeConjur {
  readonly url: string;
  readonly seen: Seen[];
  readonly options: FakeOptions;
  /** A token as the server would sign it for a role. */
  readonly token: (role: string, secondsFromNow?: number) => string;
  /** What the server does not take any more, though it is not expired. */
  readonly revokeTokens: () => void;
  readonly count: (part: string) => number;
  readonly stop: () => Promise<void>;
}

export async function fakeConjur(options: FakeOptions = {}): Promise<FakeConjur> {
  const fake = new Fake(options);
  const { server } = fake;
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const scheme = options.tls ? 'https://localhost' : 'http://127.0.0.1';
  return {
    url: `${scheme}:${(server.address() as AddressInfo).port}${options.path ?? ''}`,
    seen: fake.seen,
    options,
    token: (role, seconds) => fake.sign(role, seconds),
    revokeTokens: () => fake.newKey(),
    count: (part) => fake.seen.filter(({ target }) => target.includes(part)).length,
    stop: () => fake.stop(),
  };
}

class Fake {
  readonly seen: Seen[] = [];
  readonly server: Server;
  readonly #options: FakeOptions;
  readonly #account: string;
  readonly #sockets = new Set<Socket>();
  #key = randomBytes(32);

  constructor(options: FakeOptions) {
    this.#options = options;
    this.#account = options.account ?? 'demo';
    const answer = (request: IncomingMessage, response: ServerResponse) =>
      void this.#serve(request, response);
    this.server = options.tls ? createTlsServer(options.tls, answer) : createServer(answer);
    for (const event of ['connection', 'secureConnection'])
      this.server.on(event, (socket: Socket) => {
        this.#sockets.add(socket);
        socket.on('close', () => this.#sockets.delete(socket));
        socket.on('error', () => undefined);
      });
  }

  newKey(): void {
    this.#key = randomBytes(32);
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.server.close();
    await once(this.server, 'close');
  }

  sign(role: string, seconds = this.#options.life ?? 480): string {
    const now = Math.floor(Date.now() / 1000) + (this.#options.clockSkew ?? 0);
    // base64 of the url alphabet, padded.
    const part = (value: object) =>
      Buffer.from(JSON.stringify(value)).toString('base64').replaceAll('+', '-').replaceAll('/', '_');
    const protectedPart = part({ alg: 'conjur.org/slosilo/v2', kid: 'fake' });
    const exp = this.#options.exp === false ? {} : { exp: now + seconds };
    const payload = part({ sub: role, ...exp, iat: now });
    const signature = this.#signature(`${protectedPart}.${payload}`);
    return JSON.stringify({ protected: protectedPart, payload, signature });
  }

  #signature(text: string): string {
    return createHmac('sha256', this.#key).update(text).digest('base64');
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    try {
      for await (const chunk of request) chunks.push(chunk as Buffer);
    } catch {
      return;
    }
    const { method = '', url: target = '', headers } = request;
    const seen: Seen = { method, target, headers, body: Buffer.concat(chunks).toString() };
    this.seen.push(seen);
    if (this.#options.behave?.(seen, response, this.seen.length)) return;
    this.#answer(seen, response);
  }

  #answer(seen: Seen, response: ServerResponse): void {
    const prefix = this.#options.path ?? '';
    if (!seen.target.startsWith(`${prefix}/`)) return empty(response, 404);
    const [path = '', query] = seen.target.slice(prefix.length).split('?');
    const segments = path.slice(1).split('/');
    if (segments.at(-1) === 'authenticate') return this.#authenticate(seen, segments, response);

    // Authentication comes before routing: an unknown path is 401 without a token, 404 with one.
    const role = this.#roleOf(seen.headers.authorization);
    if ('refused' in role) return text(response, 401, role.refused);
    if (seen.method !== 'GET') return empty(response, 404);
    if (segments.join('/') === 'whoami') {
      return json(response, 200, { client_ip: '127.0.0.1', account: this.#account, username: role.name });
    }
    if (segments[0] !== 'secrets') return empty(response, 404);
    if (segments.length === 1) return this.#batch(seen, query, role.name, response);
    return this.#single(segments, query, role.name, response);
  }

  #authenticate(seen: Seen, segments: readonly string[], response: ServerResponse): void {
    if (seen.method !== 'POST') return empty(response, 404);
    const [authenticator = '', ...rest] = segments.slice(0, -1);
    const parts = rest.map(decodeURIComponent);
    if (authenticator === 'authn') {
      // A login with a literal slash routes as a service id of another authenticator, and that is not enabled.
      const [account, login] = parts;
      const key =
        parts.length === 2 && account === this.#account ? this.#options.keys?.[login ?? ''] : undefined;
      if (key === undefined || seen.body !== key) return empty(response, 401);
      return this.#hand(seen, login ?? '', response);
    }
    if (authenticator === 'authn-jwt') {
      const [service = '', account, host] = parts;
      if (!/^application\/x-www-form-urlencoded\b/.test(seen.headers['content-type'] ?? '')) {
        return empty(response, 400);
      }
      const given = new URLSearchParams(seen.body).get('jwt');
      if (!given) return empty(response, 400);
      const role = this.#options.jwts?.[service]?.[given];
      if (given.startsWith('expired')) {
        const error = { code: 'unauthorized', message: 'CONJ00016E Token expired' };
        return json(response, 401, { error });
      }
      if (given.startsWith('not-permitted')) return empty(response, 403);
      const right = account === this.#account && parts.length <= 3 && (host === undefined || host === role);
      if (role === undefined || !right) return empty(response, 401);
      return this.#hand(seen, role, response);
    }
    empty(response, 401);
  }

  #hand(seen: Seen, role: string, response: ServerResponse): void {
    const token = this.sign(role);
    const accepted = (seen.headers['accept-encoding'] ?? '').toString().toLowerCase().split(',');
    if (accepted.some((item) => item.trim() === 'base64')) {
      response.writeHead(200, { 'content-type': 'text/plain', 'content-encoding': 'base64' });
      response.end(Buffer.from(token).toString('base64'));
      return;
    }
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(token);
  }

  #roleOf(header: string | undefined): { name: string } | { refused: string } {
    // The quotes are required by the server's regular expression.
    const encoded = /^Token token="(.*)"/.exec(header ?? '')?.[1];
    if (encoded === undefined) return { refused: 'Authorization missing' };
    try {
      const token = JSON.parse(Buffer.from(encoded, 'base64').toString()) as Record<string, string>;
      const [head = '', payload = '', signature = ''] = ['protected', 'payload', 'signature'].map(
        (key) => token[key],
      );
      const expected = Buffer.from(this.#signature(`${head}.${payload}`));
      const given = Buffer.from(signature);
      const claims = JSON.parse(Buffer.from(payload, 'base64url').toString()) as {
        sub: string;
        exp?: number;
        iat: number;
      };
      const now = Date.now() / 1000 + (this.#options.clockSkew ?? 0);
      const alive = now < (claims.exp ?? claims.iat + 480);
      if (given.length === expected.length && timingSafeEqual(given, expected) && alive) {
        return { name: claims.sub };
      }
      return { refused: 'Unauthorized: Invalid token' };
    } catch {
      return { refused: 'Malformed authorization token' };
    }
  }

  #find(fullId: string, role: string): FakeVariable | undefined {
    const [account, kind, ...id] = fullId.split(':');
    if (account !== this.#account || kind !== 'variable') return undefined;
    const variables = this.#options.variables ?? {};
    const found = Object.hasOwn(variables, id.join(':')) ? variables[id.join(':')] : undefined;
    const visible = found?.execute.includes(role) || found?.read?.includes(role);
    return visible ? found : undefined;
  }

  #single(
    segments: readonly string[],
    query: string | undefined,
    role: string,
    response: ServerResponse,
  ): void {
    const [, account = '', kind = '', ...id] = segments.map(decodeURIComponent);
    const fullId = `${account}:${kind}:${id.join('/')}`;
    const version = query === undefined ? undefined : new URLSearchParams(query).get('version');
    if (version !== undefined && !/^\d+$/.test(version ?? '')) {
      return json(response, 422, { error: { code: 'argument_error', message: 'invalid type given' } });
    }
    const variable = this.#find(fullId, role);
    if (!variable) return notFound(response, fullId);
    if (!variable.execute.includes(role)) return empty(response, 403);
    const value = version ? variable.values[Number(version) - 1] : variable.values.at(-1);
    if (!value) return notFound(response, fullId);
    response.writeHead(200, { 'content-type': 'application/octet-stream' });
    response.end(value);
  }

  #batch(seen: Seen, query: string | undefined, role: string, response: ServerResponse): void {
    // `+` in a query is a space, as everywhere in Rack.
    const ids = (new URLSearchParams(query ?? '').get('variable_ids') ?? '').split(',');
    if (ids.some((id) => id.trim() === '')) {
      return json(response, 422, { error: { code: 'argument_error', message: 'variable_ids' } });
    }
    if (new Set(ids).size < ids.length) return empty(response, 500);
    const found = ids.map((id) => [id, this.#find(id, role)] as const);
    const exists = (id: string) =>
      Object.hasOwn(this.#options.variables ?? {}, id.split(':').slice(2).join(':'));
    // What there is and may not be had comes before what there is not.
    if (found.some(([id, variable]) => exists(id) && !variable?.execute.includes(role))) {
      return empty(response, 403);
    }
    const missing = found.find(([, variable]) => !variable?.values.length);
    if (missing) return notFound(response, missing[0]);
    // All of the header, unlike in a login.
    const encoded =
      !this.#options.old && seen.headers['accept-encoding']?.toString().toLowerCase() === 'base64';
    const values = found.map(([id, variable]) => [id, variable?.values.at(-1) ?? Buffer.alloc(0)] as const);
    if (!encoded && values.some(([, value]) => !Buffer.from(value.toString()).equals(value))) {
      const message =
        "CONJ00074E Issue encoding secret into JSON format, try including 'Accept-Encoding: base64' header in request.";
      return json(response, 406, { error: { code: 'not_acceptable', message } });
    }
    const shown = values.map(([id, value]) => [
      id,
      encoded ? value.toString('base64').replace(/.{1,60}/g, '$&\n') : value.toString(),
    ]);
    // The order of the ids is not kept.
    const body = Object.fromEntries(shown.reverse()) as object;
    json(response, 200, body, encoded ? { 'content-encoding': 'base64' } : {});
  }
}

function empty(response: ServerResponse, status: number): void {
  response.writeHead(status);
  response.end();
}

function text(response: ServerResponse, status: number, body: string): void {
  response.writeHead(status, { 'content-type': 'text/plain' });
  response.end(body);
}

function json(response: ServerResponse, status: number, body: object, headers: object = {}): void {
  response.writeHead(status, { 'content-type': 'application/json; charset=utf-8', ...headers });
  response.end(JSON.stringify(body));
}

function notFound(response: ServerResponse, fullId: string): void {
  const message = `CONJ00076E Variable ${fullId} is empty or not found.`;
  json(response, 404, { error: { code: 'not_found', message } });
}
