import { PosternError } from '../../core/errors.ts';
import { jsonObject } from '../../core/json-bytes.ts';
import type { Secret } from '../../core/secret.ts';
import { untilAborted } from '../deadline.ts';
import type { ProviderContext } from '../provider.ts';
import type { Call, Reply, VaultClient } from './client.ts';
import { Logins, type NewToken, secondsIn } from './login.ts';
import type { AuthSettings } from './settings.ts';

/** How long a path stays denied that was denied to a token fresh from a login, before another login is tried; doubled each time. */
const denialHolds = { first: 10_000, longest: 300_000 } as const;
/** Revoking tokens must not hold up the end of the program. */
const revokeTimeout = 2000;
/** A file with a token is looked at for changes at most this often. */
const fileLookEvery = 1000;
/** What Node's timers can wait: beyond 2^31-1 ms they fire at once, and a token of 32 days would be renewed in a loop. */
const longestTimer = 2 ** 31 - 1;
/** Between attempts to renew a token after Vault could not be asked. */
const renewBackoff = { shortest: 100, first: 1000, longest: 60_000 } as const;

/** What hangs on a token: it ends when the token does. */
export interface Hanging {
  /** By the monotonic clock; when it ends by itself. */
  readonly end: number;
}

/** A reply and the token it was made for, which stays as it is until this is disposed of. */
export interface Answered extends Disposable {
  readonly reply: Reply;
  /** undefined: made without a token (an Agent adds its own). */
  readonly token: Token | undefined;
}

/**
 * The tokens that requests are made with: read or logged in for when first needed, and shared.
 *
 * A lease dies with the token that asked for it, whatever its own duration says. So a token is renewed for as long
 * as a lease hangs on it; one that cannot be renewed any further is replaced in time, by a new login, and given up
 * only when the last of its leases is gone. A token without leases has no timer: its end is looked at when it is used.
 */
export class Tokens {
  readonly #auth: AuthSettings;
  readonly #client: VaultClient;
  readonly #context: ProviderContext;
  readonly #logins: Logins;
  readonly #denied = new Map<string, { until: number; holds: number }>();
  /** Replaced, but not yet given up. */
  readonly #former = new Set<Token>();
  readonly #chores = new Set<Promise<void>>();
  readonly #closing = new AbortController();
  #current: Token | undefined;
  #flight: Flight | undefined;
  #fileLook: { readonly at: number; readonly done: Promise<void> } | undefined;

  constructor(auth: AuthSettings, client: VaultClient, context: ProviderContext) {
    this.#auth = auth;
    this.#client = client;
    this.#context = context;
    this.#logins = new Logins(auth, client, context);
  }

  /** Makes a request with the token. A 403 may mean that the token has died, so it leads to one new token and one repetition. */
  async call(call: Call, signal: AbortSignal): Promise<Reply> {
    const answered = await this.#ask(call, signal, false);
    answered[Symbol.dispose]();
    return answered.reply;
  }

  /** The same for a request that may bring a lease: by a token with enough of its life before it. */
  async callForLease(call: Call, signal: AbortSignal): Promise<Answered> {
    const answered = await this.#ask(call, signal, true);
    const { token } = answered;
    // A token that was given to Postern says only now how long it lives.
    if (token && token.life === undefined) await this.#learn(token);
    return answered;
  }

  /** Does the token work? A policy without `default` may deny the question itself: then by whether it has worked. */
  async check(signal: AbortSignal): Promise<void> {
    const token = await this.#borrow(signal, false);
    // Each use of a token with few of them counts.
    if (!token) return;
    this.#handBack(token);
    if (token.uses !== undefined) return;
    const answered = await this.#ask(lookup, signal, false);
    using reply = answered.reply;
    const asked = answered.token;
    answered[Symbol.dispose]();
    if (!asked || reply.status !== 403) {
      if (reply.status !== 200 && reply.status !== 403) throw this.#client.refusal(lookup, reply);
      return;
    }
    // A login has just been answered with it.
    if (asked.fromLogin || asked.works) return;
    throw this.#client.refusal(lookup, reply, {
      code: 'PROVIDER_FAILED',
      text: 'permission denied: the token is not valid (any more), or its policy does not let it look itself up',
    });
  }

  /** Hangs something on a token: until it has ended the token is kept alive. */
  hang(token: Token, lease: Hanging): void {
    token.leases.add(lease);
    this.#tend(token);
  }

  /** What hung on it has ended. */
  letGo(token: Token, lease: Hanging): void {
    token.leases.delete(lease);
    this.#tend(token);
  }

  /** Renews a token that would end before `until`, where that helps. Never throws but for the signal: the lease then ends with its token. */
  async keepUntil(token: Token, until: number, signal: AbortSignal): Promise<void> {
    if (token.end >= until || !token.canBeRenewed) return;
    const doing = this.#client.naming('renewing the token');
    await untilAborted(this.#renew(token), signal, doing);
  }

  /** Revokes the tokens that logins made; one that was given to Postern is not Postern's to revoke. */
  async close(signal: AbortSignal): Promise<void> {
    this.#closing.abort(new PosternError('SHUTDOWN', `provider "${this.#context.name}" was closed`));
    const tokens = [...this.#former, ...(this.#current ? [this.#current] : [])];
    this.#former.clear();
    this.#current = undefined;
    const bounded = AbortSignal.any([signal, AbortSignal.timeout(revokeTimeout)]);
    await Promise.all(
      tokens.map(async (token) => {
        clearTimeout(token.alarm);
        try {
          if (token.revocable) await this.#revoke(token, bounded);
        } catch (thrown) {
          this.#context.log.warn(`token not revoked: ${PosternError.from(thrown).message}`);
        } finally {
          token.retire();
        }
      }),
    );
    this.#logins.close();
    await Promise.allSettled(this.#chores);
  }

  async #ask(call: Call, signal: AbortSignal, forLease: boolean): Promise<Answered> {
    const token = await this.#borrow(signal, forLease);
    if (!token) return this.#held(await this.#client.call(call, signal), undefined);
    let kept = token;
    try {
      const first = await this.#send(call, token, signal);
      if (first.status !== 403 || this.#wasDenied(call.path)) return this.#held(first, token);
      const another = await this.#borrowAnother(token, forLease, signal).catch((thrown: unknown) => {
        first[Symbol.dispose]();
        throw thrown;
      });
      if (!another) return this.#held(first, token);
      first[Symbol.dispose]();
      this.#handBack(token);
      kept = another;
      const second = await this.#send(call, another, signal);
      if (second.status === 403) this.#rememberDenial(call.path);
      else this.#denied.delete(call.path);
      return this.#held(second, another);
    } catch (thrown) {
      this.#handBack(kept);
      throw thrown;
    }
  }

  #held(reply: Reply, token: Token | undefined): Answered {
    return { reply, token, [Symbol.dispose]: () => (token ? this.#handBack(token) : undefined) };
  }

  #handBack(token: Token): void {
    token.giveBack();
    if (token.replaced) this.#tend(token);
  }

  async #send(call: Call, token: Token, signal: AbortSignal): Promise<Reply> {
    if (token.uses !== undefined) token.uses -= 1;
    const reply = await this.#client.call({ ...call, token: token.secret }, signal);
    if (reply.status < 400) {
      token.works = true;
      // A token that was given to Postern has to be renewed before it ends, and only Vault knows when that is.
      if (token.life === undefined && call !== lookup) void this.#learn(token);
    } else if (reply.status === 403 && call !== lookup) {
      token.works = false;
    }
    return reply;
  }

  async #borrow(signal: AbortSignal, forLease: boolean): Promise<Token | undefined> {
    if (this.#auth.method === 'none') return undefined;
    await this.#lookAtFile(signal);
    for (;;) {
      const current = this.#current;
      if (current?.usable() && (!forLease || (await this.#hasEnoughLife(current, signal)))) {
        if (current.borrow()) return current;
        continue;
      }
      // A fresh one is used even when its life is too short for us. It may have been replaced already, by another
      // request that was refused with it.
      try {
        const fresh = await this.#obtain(signal);
        if (fresh.borrow()) return fresh;
      } catch (thrown) {
        // The new login came early, so the old token still serves.
        if (signal.aborted || !current?.usable() || !current.borrow()) throw thrown;
        this.#context.log.warn(`token not replaced: ${PosternError.from(thrown).message}`);
        return current;
      }
    }
  }

  /** A lease is worth no more than what is left of its token: less than half is too little, if there is a better one. */
  async #hasEnoughLife(token: Token, signal: AbortSignal): Promise<boolean> {
    if (!token.fromLogin) return true;
    // Vault revokes at once what the last use of a token brings.
    if (token.uses !== undefined && token.uses < 2) return false;
    if (token.life === undefined || token.life === Infinity) return true;
    const half = performance.now() + token.life / 2;
    if (token.end < half) await this.keepUntil(token, half, signal);
    return token.end >= half;
  }

  /** Another token than the refused one; undefined when there is none to be had. */
  async #borrowAnother(refused: Token, forLease: boolean, signal: AbortSignal): Promise<Token | undefined> {
    if (this.#current === refused) {
      const fresh = await this.#obtain(signal);
      if (fresh === refused) return undefined;
    }
    return await this.#borrow(signal, forLease);
  }

  /** A token file that was replaced is read at once, not only when the old token is refused. */
  async #lookAtFile(signal: AbortSignal): Promise<void> {
    if (this.#auth.method !== 'tokenFile' || !this.#current) return;
    const now = performance.now();
    if (!this.#fileLook || now - this.#fileLook.at > fileLookEvery) {
      this.#fileLook = { at: now, done: this.#rereadWhenChanged(signal) };
    }
    await untilAborted(this.#fileLook.done, signal, this.#client.naming('the token file'));
  }

  async #rereadWhenChanged(signal: AbortSignal): Promise<void> {
    const mark = await this.#logins.fileMark();
    if (mark === undefined || mark === this.#current?.fileMark) return;
    try {
      await this.#obtain(signal);
    } catch (thrown) {
      // In the middle of being written: the old token serves until it is refused.
      this.#context.log.debug(`token file not taken: ${PosternError.from(thrown).message}`);
    }
  }

  /** All who need a token at once share one login, which goes on while one of them still waits for it. */
  async #obtain(signal: AbortSignal): Promise<Token> {
    const flight = this.#flight ?? this.#takeOff();
    flight.waiting++;
    try {
      return await untilAborted(flight.token, signal, this.#client.naming('the login'));
    } finally {
      if (--flight.waiting === 0 && this.#flight === flight) {
        this.#flight = undefined;
        flight.controller.abort();
      }
    }
  }

  #takeOff(): Flight {
    const controller = new AbortController();
    const signal = AbortSignal.any([controller.signal, this.#closing.signal]);
    const token = this.#logins.fileMark().then(async (mark) => {
      const fresh = new Token(await this.#logins.obtain(signal), mark);
      return this.#takeIntoUse(fresh);
    });
    const flight: Flight = { token, controller, waiting: 0 };
    this.#flight = flight;
    const land = () => {
      if (this.#flight === flight) this.#flight = undefined;
    };
    token.then(land, land);
    return flight;
  }

  /** The token to use from now on: the fresh one, or the old one when it is the same (a file that was read again). */
  #takeIntoUse(fresh: Token): Token {
    const before = this.#current;
    if (this.#closing.signal.aborted) {
      // Logged in at the last moment: nobody else knows of it.
      this.#former.add(fresh);
      fresh.replaced = true;
      this.#tend(fresh);
      throw this.#closing.signal.reason;
    }
    if (before && !fresh.fromLogin && before.equals(fresh)) {
      before.fileMark = fresh.fileMark;
      fresh.retire();
      return before;
    }
    this.#current = fresh;
    if (before) {
      before.replaced = true;
      this.#former.add(before);
      this.#tend(before);
    }
    return fresh;
  }

  /** Asks how long a token lives that was given to Postern. What cannot be learnt is taken as: for ever. */
  #learn(token: Token): Promise<void> {
    token.learning ??= this.#chore(async () => {
      if (!token.borrow()) return;
      try {
        const asked = { ...lookup, token: token.secret };
        const askedAt = performance.now();
        using reply = await this.#client.call(asked, this.#closing.signal);
        const data = reply.status === 200 ? reply.json()?.get('data') : undefined;
        token.learn(askedAt, {
          ttl: secondsIn(data?.get('ttl')?.publicText()) * 1000,
          life: secondsIn((data?.get('period') ?? data?.get('creation_ttl'))?.publicText()) * 1000,
          renewable: data?.get('renewable')?.publicText() === 'true',
          uses: secondsIn(data?.get('num_uses')?.publicText()),
        });
      } catch (thrown) {
        // Unreachable at the moment: the next use asks again.
        token.learning = undefined;
        this.#context.log.debug(`token not looked up: ${PosternError.from(thrown).message}`);
      } finally {
        token.giveBack();
        this.#tend(token);
      }
    });
    return token.learning;
  }

  /** Asks for as long a life as the token had at first. */
  #renew(token: Token): Promise<void> {
    token.renewing ??= this.#chore(async () => {
      if (!token.borrow()) return;
      const increment = Buffer.from(`${Math.ceil((token.life ?? 0) / 1000)}s`);
      const call: Call = {
        method: 'POST',
        path: 'auth/token/renew-self',
        token: token.secret,
        body: jsonObject({ increment }),
        retries: 0,
        purpose: 'renewing the token',
      };
      try {
        const askedAt = performance.now();
        using reply = await this.#client.call(call, this.#closing.signal);
        if (reply.status >= 500 || reply.status === 429 || reply.status === 412)
          throw this.#client.refusal(call, reply);
        const auth = reply.status === 200 ? reply.json()?.get('auth') : undefined;
        token.renewed(askedAt, secondsIn(auth?.get('lease_duration')?.publicText()) * 1000);
        if (!auth) this.#context.log.warn(this.#client.refusal(call, reply).message);
        else this.#context.log.debug(`provider "${this.#context.name}": renewed the token`);
      } catch (thrown) {
        token.notRenewed();
        if (!this.#closing.signal.aborted) this.#context.log.warn(PosternError.from(thrown).message);
      } finally {
        token.renewing = undefined;
        token.giveBack();
        this.#tend(token);
      }
    });
    return token.renewing;
  }

  /** Sets a token's alarm to the next thing that has to be done for it, or gives it up when nothing hangs on it any more. */
  #tend(token: Token): void {
    clearTimeout(token.alarm);
    const now = performance.now();
    for (const lease of token.leases) if (Math.min(lease.end, token.end) <= now) token.leases.delete(lease);
    if (token.replaced && token.leases.size === 0 && token.unused) return this.#giveUp(token);
    if (this.#closing.signal.aborted || token.renewing) return;
    const due = token.nextDue();
    if (due === Infinity) return;
    token.alarm = setTimeout(
      () => {
        if (token.renewalDue()) void this.#renew(token);
        else this.#tend(token);
      },
      Math.min(Math.max(due - now, 0) + 1, longestTimer),
    );
    token.alarm.unref();
  }

  #giveUp(token: Token): void {
    if (!this.#former.delete(token)) return;
    void this.#chore(async () => {
      try {
        if (token.revocable && token.uses !== 0 && token.end > performance.now()) {
          await this.#revoke(token, AbortSignal.timeout(revokeTimeout));
        }
      } catch (thrown) {
        const { code, message } = PosternError.from(thrown);
        // Refused: it was dead already, which is why it was replaced.
        if (code === 'PROVIDER_FAILED') this.#context.log.debug(`the former token had died: ${message}`);
        else this.#context.log.warn(`token not revoked: ${message}`);
      } finally {
        token.retire();
      }
    });
  }

  async #revoke(token: Token, signal: AbortSignal): Promise<void> {
    const call: Call = {
      method: 'POST',
      path: 'auth/token/revoke-self',
      token: token.secret,
      retries: 0,
      purpose: 'revoking the token',
    };
    using answer = await this.#client.call(call, signal);
    if (answer.status !== 200 && answer.status !== 204) throw this.#client.refusal(call, answer);
  }

  /** Something nobody waits for, but the end does. */
  #chore(work: () => Promise<void>): Promise<void> {
    const chore = work().finally(() => this.#chores.delete(chore));
    this.#chores.add(chore);
    return chore;
  }

  #wasDenied(path: string): boolean {
    const denial = this.#denied.get(path);
    return denial !== undefined && denial.until > performance.now();
  }

  /** Keeps a denied path, asked for with every connection, from making as many logins. */
  #rememberDenial(path: string): void {
    const before = this.#denied.get(path);
    if (!before && this.#denied.size >= 1000) this.#denied.clear();
    const holds = before ? Math.min(before.holds * 2, denialHolds.longest) : denialHolds.first;
    this.#denied.set(path, { until: performance.now() + holds, holds });
  }
}

const lookup: Call = { method: 'GET', path: 'auth/token/lookup-self', purpose: 'looking up the token' };

interface Flight {
  readonly token: Promise<Token>;
  readonly controller: AbortController;
  waiting: number;
}

/** A token, who uses it, and what hangs on it; wiped when it is given up and nobody uses it any more. */
export class Token {
  readonly secret: Secret;
  readonly fromLogin: boolean;
  readonly revocable: boolean;
  readonly leases = new Set<Hanging>();
  /** Milliseconds that it was good for at first; undefined: nobody has said yet. */
  life: number | undefined;
  /** When it ends, by the monotonic clock. */
  end: number;
  /** Requests that it is still good for; undefined: any number. */
  uses: number | undefined;
  /** Whether its last request was allowed; undefined: there was none. */
  works: boolean | undefined;
  fileMark: string | undefined;
  replaced = false;
  alarm: NodeJS.Timeout | undefined;
  renewing: Promise<void> | undefined;
  learning: Promise<void> | undefined;
  #renewable: boolean;
  #renewAt = Infinity;
  #failures = 0;
  #users = 0;
  #retired = false;

  constructor(got: NewToken, fileMark: string | undefined) {
    this.secret = got.secret;
    this.fromLogin = got.fromLogin;
    this.revocable = got.revocable;
    this.life = got.life;
    this.end = got.bornAt + (got.life ?? Infinity);
    this.uses = got.uses;
    this.fileMark = fileMark;
    this.#renewable = got.renewable;
    this.#planRenewal(got.bornAt);
  }

  /** Not about to expire on the way: what is left is more than a tenth of its life, or half a minute. */
  usable(): boolean {
    // With the last use Vault revokes it, and all that hangs on it.
    if (this.uses !== undefined && this.uses <= (this.leases.size > 0 ? 1 : 0)) return false;
    // Of a token that was given there is no other: Vault may say whether it has ended.
    if (!this.fromLogin || this.life === undefined) return true;
    return performance.now() < this.end - Math.min(this.life / 10, 30_000);
  }

  get canBeRenewed(): boolean {
    return this.#renewable && !this.#retired && this.end > performance.now();
  }

  get unused(): boolean {
    return this.#users === 0;
  }

  learn(askedAt: number, { ttl, life, renewable, uses }: Learnt): void {
    if (uses > 0) this.uses = uses;
    this.life = ttl > 0 ? Math.max(ttl, life) : Infinity;
    this.end = ttl > 0 ? askedAt + ttl : Infinity;
    this.#renewable = renewable && ttl > 0 && uses === 0;
    this.#planRenewal(askedAt);
  }

  /** `left` is what it has now: less than half of what it had at first says that its end is near, for good; 0, that it cannot be renewed. */
  renewed(askedAt: number, left: number): void {
    this.#failures = 0;
    if (left > 0) this.end = askedAt + left;
    if (left < (this.life ?? 0) / 2) this.#renewable = false;
    this.#planRenewal(askedAt);
  }

  /** Tried again after a pause; one that has little left does not wait for long. */
  notRenewed(): void {
    const pause = Math.min(renewBackoff.first * 2 ** this.#failures, renewBackoff.longest);
    const now = performance.now();
    const soon = Math.max((this.end - now) / 4, renewBackoff.shortest);
    this.#failures = Math.min(this.#failures + 1, 10);
    this.#renewAt = now + Math.min(pause, soon) * (0.5 + Math.random());
  }

  renewalDue(): boolean {
    return this.#wanted() && performance.now() >= this.#renewAt;
  }

  /** When something has to be done for it next; Infinity: nothing. */
  nextDue(): number {
    const firstEnd = this.replaced
      ? Math.min(...[...this.leases].map(({ end }) => Math.min(end, this.end)))
      : Infinity;
    return Math.min(firstEnd, this.#wanted() ? this.#renewAt : Infinity);
  }

  borrow(): boolean {
    if (!this.#retired) this.#users++;
    return !this.#retired;
  }

  giveBack(): void {
    this.#users--;
    this.#wipeWhenUnused();
  }

  retire(): void {
    clearTimeout(this.alarm);
    this.#retired = true;
    this.#wipeWhenUnused();
  }

  equals(other: Token): boolean {
    return this.secret.reveal().equals(other.secret.reveal());
  }

  /** One that a login made is renewed only for its leases: without any, another login is as good. */
  #wanted(): boolean {
    if (!this.canBeRenewed) return false;
    return this.leases.size > 0 || (!this.fromLogin && !this.replaced);
  }

  /** At two thirds of what is left, and a little to either side, so that many sidecars do not come at once. */
  #planRenewal(from: number): void {
    const left = this.end - from;
    this.#renewAt = Number.isFinite(left) ? from + left * (2 / 3) * (0.9 + 0.2 * Math.random()) : Infinity;
  }

  #wipeWhenUnused(): void {
    if (this.#retired && this.#users === 0) this.secret.wipe();
  }
}

interface Learnt {
  readonly ttl: number;
  readonly life: number;
  readonly renewable: boolean;
  readonly uses: number;
}
