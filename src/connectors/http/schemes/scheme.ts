import type { Credentials } from '../../../core/credentials.ts';
import type { Preparation } from '../../../core/prepared.ts';

/** How a service's credentials get into its requests: one file beside this for each way. Opened once for each service. */
export interface Scheme {
  /**
   * Names of header fields, in lower case, that a client may not send: they are cut from its request in every
   * spelling (`_` for `-` too) before anything is added, and may not be nominated in `Connection`.
   */
  readonly ownedHeaders: readonly string[];
  /** Names of query parameters that are cut from a client's target before anything is added. */
  readonly ownedQuery: readonly string[];
  /**
   * Makes what goes into the requests of one generation of credentials. Throws a PosternError for a value that is
   * missing or cannot go where it belongs (a line break in a header): nothing is sent then.
   */
  prepare(
    credentials: Credentials,
    signal: AbortSignal,
  ): Promise<Preparation<Injection>> | Preparation<Injection>;
  /** Overwrites what is kept beside the injections (a refresh token that was exchanged). Called once, when the service ends. */
  close?(): void;
}

/** What goes into each request while one generation of credentials is current. Disposing overwrites the bytes. */
export interface Injection extends Disposable {
  /** Complete lines, `Name: value\r\n` each, the same for every request. */
  readonly headers: Buffer;
  /** `name=value&name=value`, percent-encoded, the same for every request; empty: none. */
  readonly query: Buffer;
  /** undefined: all requests get the same. */
  readonly signer?: Signer;
  /** Values that the signer puts into requests as they are, and that are worth something to whoever reads them. */
  readonly shown?: readonly Buffer[];
}

/** Signs each request by itself: the slow road, with strings. */
export interface Signer {
  /** Whether `sign` has to see the whole body first (a bounded one: a request with a larger one is refused). */
  needsBody(request: RequestView): boolean;
  /**
   * Synchronous. Throws CLIENT_REFUSED, with the reason, for a request that cannot be signed honestly: nothing is sent.
   */
  sign(request: RequestView, body: Buffer | undefined): Signed;
}

/** A request as it would go upstream without the credential: hop-by-hop fields and owned names are cut already. */
export interface RequestView {
  readonly method: string;
  readonly origin: { readonly tls: boolean; readonly host: string; readonly port: number };
  /** The `Host` that goes upstream: with the port unless it is the scheme's own. */
  readonly authority: string;
  /** Path and query as they go upstream. */
  readonly target: string;
  /** In the order of the request; the names as the client spelled them. */
  readonly headers: readonly (readonly [name: string, value: string])[];
  /** The owned fields that were cut, for a signer that has to know what the client's own signature covered. */
  readonly cut: readonly (readonly [name: string, value: string])[];
  readonly framing: 'none' | 'length' | 'chunked';
  /** With `framing` "length". */
  readonly contentLength: number | undefined;
}

export interface Signed {
  /** Complete lines to add. */
  readonly headers: Buffer;
  /** Names, in lower case, of further fields of the client that do not go upstream. */
  readonly without?: readonly string[];
  /** Path and query in place of the request's. */
  readonly target?: string;
}
