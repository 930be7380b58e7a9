import type { Credentials } from './credentials.ts';

/**
 * What a connector made of a service's current credentials (an HTTP header block, a signing key) for as long as they
 * are current. The lifecycle owns it: it is kept for the service's cache time, disposed of when another takes its place,
 * when its time is over, and when the service ends; no connector keeps a copy. Leases of its credentials are kept alive
 * for as long as it is asked for, and for `cache.linger` after that.
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
   * The upstream did not take `value`. Unless another has taken its place already, the credentials are fetched again: once,
   * however many say so, and at most every second. Until that is answered `current` is undefined and `get` waits. What
   * `get` gives then is another object if the provider has other credentials by now; the same object says that there is
   * nothing better, so that asking the upstream again is pointless and its refusal is the client's to see. (A service is
   * not shut for everybody because one of its paths says no.)
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
