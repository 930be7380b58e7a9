import { createRequire } from 'node:module';

/** What Node's own parser made of some bytes. */
export interface Read {
  /** The code of its error. */
  readonly error: string | undefined;
  /** Messages that were complete. */
  readonly complete: number;
  readonly minor: number;
  readonly method: string;
  readonly target: string;
  readonly status: number;
  readonly upgrade: boolean;
  /** Names and values in turn. */
  readonly fields: readonly string[];
  /** Without its chunk framing. */
  readonly body: Buffer;
}

interface Parser {
  initialize(type: number, resource: object): void;
  execute(bytes: Buffer): number | (Error & { code: string });
  finish(): unknown;
  free?(): void;
  [event: number]: unknown;
}

/** Not documented, and what Node itself is built on. A test may look at it. */
const { HTTPParser, methods } = createRequire(import.meta.url)('_http_common') as {
  HTTPParser: {
    new (): Parser;
    readonly REQUEST: number;
    readonly RESPONSE: number;
    readonly kOnHeaders: number;
    readonly kOnHeadersComplete: number;
    readonly kOnBody: number;
    readonly kOnMessageComplete: number;
  };
  methods: readonly string[];
};

/** The methods that it knows; it refuses others. */
export const knownMethods: ReadonlySet<string> = new Set(methods);

/** Reads bytes with llhttp as Node sets it up: strictly. */
export function readByLlhttp(kind: 'request' | 'response', bytes: Buffer): Read {
  const parser = new HTTPParser();
  parser.initialize(kind === 'request' ? HTTPParser.REQUEST : HTTPParser.RESPONSE, {});
  let complete = 0;
  let head = { minor: -1, method: '', target: '', status: 0, upgrade: false };
  const fields: string[] = [];
  let target = '';
  const body: Buffer[] = [];
  // More than 32 fields come in portions; behind the head, trailers come in the same way.
  parser[HTTPParser.kOnHeaders] = (portion: readonly string[], url: string) => {
    if (head.minor >= 0) return;
    fields.push(...portion);
    target += url;
  };
  parser[HTTPParser.kOnHeadersComplete] = (
    _major: number,
    minor: number,
    rest: readonly string[] | undefined,
    method: number | undefined,
    url: string | undefined,
    status: number | undefined,
    _reason: string | undefined,
    upgrade: boolean,
  ) => {
    if (complete > 0) return 0;
    if (rest) fields.push(...rest);
    head = {
      minor,
      method: method === undefined ? '' : (methods[method] ?? ''),
      target: target + (url ?? ''),
      status: status ?? 0,
      upgrade,
    };
    return 0;
  };
  parser[HTTPParser.kOnBody] = (part: Buffer) => {
    if (complete === 0) body.push(Buffer.from(part));
  };
  parser[HTTPParser.kOnMessageComplete] = () => {
    complete += 1;
  };
  const result = parser.execute(Buffer.from(bytes));
  const error = typeof result === 'number' ? undefined : result.code;
  return { ...head, error, complete, fields, body: Buffer.concat(body) };
}
