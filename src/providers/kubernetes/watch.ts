import { type ClientRequest, type IncomingMessage, request as requestPlain } from 'node:http';
import { request as requestTls } from 'node:https';
import type { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';

import { copyOf } from '../../core/bytes.ts';
import { PosternError, reasonOf } from '../../core/errors.ts';
import { JsonBytes } from '../../core/json-bytes.ts';
import { refuseAborted } from '../deadline.ts';
import { jsonOf } from '../store-client.ts';
import { type ApiClient, bearer } from './api.ts';

/** One event holds one Secret, for whose size see secrets.ts. */
const maxLine = 4 * 1024 * 1024;
/** The server ends a watch after this time (and up to half more), so that watches spread over its replicas again. */
const watchSeconds = 240;
/** A watch that ended sooner than this was no success, in milliseconds. */
const shortWatch = 5000;
const longestPause = 30_000;
/** A peer that has vanished is noticed by the kernel, in milliseconds of silence before it asks. */
const keepAliveAfter = 10_000;

/** Where a Secret is. */
export interface Place {
  readonly namespace: string;
  readonly name: string;
}

interface Options {
  /** Milliseconds without a byte after which a watch is taken for dead. */
  readonly silence: number;
  readonly log: Logger;
}

/** A Secret as the server last told it, in bytes that are wiped when the next version comes. */
interface Kept {
  readonly bytes: Buffer;
  /** undefined: there is no such Secret. */
  readonly object: JsonBytes | undefined;
}

/**
 * Follows one Secret: lists it, watches from there, lists again when the server has forgotten where that was (410).
 * Between two watches, and from the first sign of trouble until a watch is open again, nothing is current: then
 * whoever wants the Secret reads it.
 */
export class SecretWatch {
  readonly #place: Place;
  readonly #api: ApiClient;
  readonly #options: Options;
  readonly #closing = new AbortController();
  readonly #ended: Promise<void>;
  #kept: Kept | undefined;
  #open = false;

  constructor(place: Place, api: ApiClient, options: Options) {
    this.#place = place;
    this.#api = api;
    this.#options = options;
    this.#ended = this.#run(this.#closing.signal);
  }

  /** The Secret while a watch is open on it; undefined: it must be read. The next turn of the event loop may wipe it. */
  current(): JsonBytes | undefined {
    return this.#open ? this.#kept?.object : undefined;
  }

  async close(): Promise<void> {
    this.#closing.abort(new PosternError('SHUTDOWN', 'the provider was closed'));
    await this.#ended;
  }

  async #run(signal: AbortSignal): Promise<void> {
    let failures = 0;
    let version: string | undefined;
    while (!signal.aborted) {
      const startedAt = performance.now();
      try {
        version ??= await this.#list(signal);
        version = await this.#follow(version, signal, () => {
          if (failures > 0) this.#say('info', 'watched again');
        });
        failures = performance.now() - startedAt < shortWatch ? failures + 1 : 0;
      } catch (thrown) {
        if (signal.aborted) break;
        // Where the watch stood is not known to be right any more.
        version = undefined;
        failures = performance.now() - startedAt < shortWatch ? failures + 1 : 1;
        const why = PosternError.from(thrown).message;
        if (failures === 1) this.#say('warn', `not watched, so it is read for each login: ${why}`);
      } finally {
        this.#open = false;
      }
      // By up to half more or less, so that many sidecars do not come back at once. Never a loop without a pause.
      const pause = failures === 0 ? 20 : Math.min(100 * 2 ** failures, longestPause);
      await delay(pause * (0.5 + Math.random()), undefined, { signal }).catch(() => undefined);
    }
    this.#keep(undefined);
  }

  /** Reads the Secret, or that there is none, and gives the version to watch from. */
  async #list(signal: AbortSignal): Promise<string> {
    const purpose = this.#purpose('listing');
    using answer = await this.#api.get(this.#url({ limit: '2' }), purpose, signal);
    if (answer.status !== 200) throw this.#api.refusal(answer, purpose);
    const list = jsonOf(answer);
    const version = list?.get('metadata')?.get('resourceVersion')?.publicText();
    if (list?.get('kind')?.publicText() !== 'SecretList' || !version) {
      throw this.#api.client.error('PROVIDER_UNAVAILABLE', `${purpose}: the answer is no list of Secrets`);
    }
    const item = list.get('items')?.first();
    this.#keep(item && copyOf(item.written()));
    return version;
  }

  /** Watches until the server ends it; gives the version to go on from, undefined when it has forgotten that. */
  async #follow(version: string, signal: AbortSignal, opened: () => void): Promise<string | undefined> {
    const url = this.#url({
      watch: 'true',
      allowWatchBookmarks: 'true',
      resourceVersion: version,
      timeoutSeconds: String(Math.round(watchSeconds * (1 + Math.random() / 2))),
    });
    let reached = version;
    using stream = new WatchStream(this.#options.silence);
    const status = await this.#connect(stream, url, signal);
    if (status === 410) return undefined;
    if (status === 401) this.#api.cluster.login.refused();
    if (status !== 200) {
      const code = status === 429 || status >= 500 ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED';
      throw this.#api.client.error(code, `${this.#purpose('watching')}: refused (HTTP ${status})`);
    }
    this.#open = true;
    opened();
    try {
      for await (const line of stream.lines()) {
        const event = this.#take(line);
        if (event === 'forgotten') return undefined;
        reached = event.version ?? reached;
      }
    } catch (thrown) {
      refuseAborted(signal);
      throw this.#failed(thrown);
    }
    return reached;
  }

  async #connect(stream: WatchStream, url: URL, signal: AbortSignal): Promise<number> {
    using token = await this.#api.token(signal);
    try {
      return await stream.open(url, this.#api, bearer(token), signal);
    } catch (thrown) {
      refuseAborted(signal);
      throw this.#failed(thrown);
    }
  }

  /** Takes an event and wipes its line, unless it is kept. Gives the version that it brings. */
  #take(line: Buffer): { readonly version: string | undefined } | 'forgotten' {
    let kept = false;
    try {
      const event = JsonBytes.parse(line);
      const object = event.get('object');
      const version = object?.get('metadata')?.get('resourceVersion')?.publicText();
      switch (event.get('type')?.publicText()) {
        case 'ADDED':
        case 'MODIFIED':
          if (!object || !version) throw new PosternError('PROVIDER_UNAVAILABLE', 'no object');
          this.#kept?.bytes.fill(0);
          this.#kept = { bytes: line, object };
          kept = true;
          return { version };
        case 'DELETED':
          this.#keep(undefined);
          return { version };
        case 'BOOKMARK':
          return { version };
        case 'ERROR':
          if (object?.get('code')?.publicText() === '410') return 'forgotten';
          throw new PosternError('PROVIDER_UNAVAILABLE', 'the server ended it with an error');
        default:
          return { version: undefined };
      }
    } finally {
      if (!kept) line.fill(0);
    }
  }

  #keep(bytes: Buffer | undefined): void {
    this.#kept?.bytes.fill(0);
    this.#kept = bytes && { bytes, object: JsonBytes.parse(bytes) };
  }

  #url(query: Readonly<Record<string, string>>): URL {
    const { namespace, name } = this.#place;
    // With this selector a role that names the secret (resourceNames) is enough.
    return this.#api.url(`/api/v1/namespaces/${namespace}/secrets`, {
      fieldSelector: `metadata.name=${name}`,
      ...query,
    });
  }

  #purpose(doing: string): string {
    return `${doing} the secret "${this.#place.namespace}/${this.#place.name}"`;
  }

  #failed(thrown: unknown): PosternError {
    const reason = thrown instanceof PosternError ? thrown.message : reasonOf(thrown);
    return this.#api.client.error('PROVIDER_UNAVAILABLE', `${this.#purpose('watching')}: ${reason}`);
  }

  #say(level: 'info' | 'warn', what: string): void {
    this.#options.log[level](`secret "${this.#place.namespace}/${this.#place.name}": ${what}`);
  }
}

/** One watch: a response without an end, read as lines. What it has read is wiped, and its connection closed, at the end. */
export class WatchStream implements Disposable {
  readonly #silence: number;
  #request: ClientRequest | undefined;
  #response: IncomingMessage | undefined;
  #quiet: NodeJS.Timeout | undefined;
  #abort: (() => void) | undefined;
  #parts: Buffer[] = [];
  #size = 0;

  constructor(silence: number) {
    this.#silence = silence;
  }

  /** Gives the status; throws when there is no answer. */
  async open(
    url: URL,
    api: ApiClient,
    headers: Record<string, string>,
    signal: AbortSignal,
  ): Promise<number> {
    const send = url.protocol === 'https:' ? requestTls : requestPlain;
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const request = send(url, {
      agent: api.client.agentFor(url),
      headers: { accept: 'application/json', ...headers },
    });
    this.#request = request;
    const abort = () => request.destroy(signal.reason as Error);
    this.#abort = () => signal.removeEventListener('abort', abort);
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort);
    request.on('socket', (socket: Socket) => {
      socket.setKeepAlive(true, keepAliveAfter);
      // The parser has copied the body out of the chunk by then, see exchange.ts.
      const wipe = (chunk: Buffer) => chunk.fill(0);
      socket.on('data', wipe);
      request.once('close', () => socket.off('data', wipe));
    });
    request.on('response', resolve);
    // Also after it has settled: an error that nobody listens to would end the process.
    request.on('error', reject);
    request.on('close', () => reject(new PosternError('PROVIDER_UNAVAILABLE', 'the connection closed')));
    this.#listen();
    request.end();
    this.#response = await promise;
    this.#response.on('error', () => undefined);
    return this.#response.statusCode ?? 0;
  }

  /** Each line in a buffer of its own, which is the caller's to wipe. Throws when the connection breaks or goes silent. */
  async *lines(): AsyncGenerator<Buffer> {
    for await (const chunk of this.#response as AsyncIterable<Buffer>) {
      this.#listen();
      let from = 0;
      try {
        for (let at = chunk.indexOf(newline); at !== -1; at = chunk.indexOf(newline, from)) {
          this.#hold(chunk.subarray(from, at));
          from = at + 1;
          yield this.#line();
        }
        this.#hold(chunk.subarray(from));
      } finally {
        chunk.fill(0);
      }
    }
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#quiet);
    this.#abort?.();
    this.#request?.destroy();
    for (const part of this.#parts) part.fill(0);
  }

  #hold(bytes: Buffer): void {
    this.#size += bytes.length;
    if (this.#size > maxLine) throw new PosternError('PROVIDER_UNAVAILABLE', 'an event is larger than 4 MiB');
    if (bytes.length > 0) this.#parts.push(copyOf(bytes));
  }

  #line(): Buffer {
    const line = Buffer.allocUnsafe(this.#size);
    let at = 0;
    for (const part of this.#parts) {
      at += part.copy(line, at);
      part.fill(0);
    }
    this.#parts = [];
    this.#size = 0;
    return line;
  }

  /** Starts the clock of silence anew. */
  #listen(): void {
    clearTimeout(this.#quiet);
    this.#quiet = setTimeout(() => {
      const text = `nothing was heard for ${this.#silence / 1000} s`;
      this.#response?.destroy(new PosternError('PROVIDER_UNAVAILABLE', text));
      this.#request?.destroy(new PosternError('PROVIDER_UNAVAILABLE', text));
    }, this.#silence);
  }
}

const newline = 0x0a;
