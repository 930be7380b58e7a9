import type { Credentials } from './credentials.ts';

/**
 * What a connector made of a service's current credentials (an HTTP header block, a signing key) for as long as they
 * are current. The lifecycle owns it: it is kept for the service's cache time, disposed of when the credentials
 * change, expire or are rejected, and when the service ends; no connector keeps a copy.
 *
 * The road for who needs a credential tens of thousands of times a second: `current` costs no promise and no
 * allocation. What it returns may be disposed of as soon as the caller returns to the event loop.
 */
export interface Prepared<Value extends Disposable> {
  /** The value while it is fresh; undefined: ask `get`. */
  readonly current: Value | undefined;
  /**
   * The value, made anew when it has to be; all who ask meanwhile share one fetch. Throws what a provider or the
   * preparation throws, and the signal's reason.
   */
  get(signal: AbortSignal): Promise<Value>;
  /**
   * The upstream rejected `value`: unless another has taken its place already, it is disposed of, and the next `get`
   * fetches again. A storm of rejections is one fetch. When the fetch brings the same credentials again, `get` throws
   * UPSTREAM_REJECTED until the provider has other ones, and asks it at most every second.
   */
  reject(value: Value): void;
}

/** Makes the value of one generation of credentials, which are wiped when it settles. */
export type Prepare<Value extends Disposable> = (
  credentials: Credentials,
  signal: AbortSignal,
  /** The one before it, disposed of afterwards: a refresh token that was exchanged lives on in its successor. */
  previous: Value | undefined,
) => Promise<Preparation<Value>> | Preparation<Value>;

export interface Preparation<Value extends Disposable> {
  readonly value: Value;
  /** When it has to be made anew although the credentials stay the same (an access token); undefined: never. */
  readonly expiresAt?: Date | undefined;
}
