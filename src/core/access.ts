import { randomBytes, timingSafeEqual } from 'node:crypto';
import type { Socket } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';

import type { Credentials } from './credentials.ts';
import { PosternError } from './errors.ts';
import { hmacSha256 } from './hmac.ts';
import type { Peer } from './peer.ts';
import type { Prepared } from './prepared.ts';

/** How often something may happen: so often in a second, and so often at once. */
export interface Rate {
  readonly perSecond: number;
  readonly burst: number;
}

/** Who may use the port of a service; every rule that is given has to hold. */
export interface AccessRules {
  readonly uids: ReadonlySet<number> | undefined;
  readonly gids: ReadonlySet<number> | undefined;
  readonly executables: ReadonlySet<string> | undefined;
  readonly maxConnectionsPerPeer: number | undefined;
  readonly loginRate: Rate | undefined;
  readonly loginRatePerPeer: Rate | undefined;
}

/** The password that clients of a service have to know, as the lifecycle has it. */
export interface LocalPassword {
  /** undefined: any name will do. */
  readonly username: string | undefined;
  /** Lends the credential `password`. */
  readonly lend: <T>(use: (credentials: Credentials) => Promise<T>, signal: AbortSignal) => Promise<T>;
  /** For a protocol that asks with every request. */
  readonly prepared: Prepared<KnownPassword>;
}

/** What a client has to prove before it is served; a connector asks it in its own protocol. */
export interface LocalLogin {
  readonly username: string | undefined;
  readonly password: Prepared<KnownPassword>;
  /**
   * Runs one exchange, which says whether the client has proved that it knows the password. Throws ACCESS_DENIED, after a
   * while, when it has not, and RATE_LIMITED when the peer has guessed too often; then nothing is exchanged.
   */
  prove(exchange: (credentials: Credentials) => Promise<boolean>): Promise<void>;
  /** For an exchange of one's own: throws what keeps this peer from trying. */
  begin(): void;
  /** For an exchange of one's own: notes a wrong password, and returns what is to be thrown. */
  wrong(): PosternError;
}

/** How long a wrong password waits for its answer, in milliseconds. */
const WRONG_ANSWER_DELAY = 500;
/** How often a peer may be wrong. */
const WRONG_ANSWERS: Rate = { perSecond: 1 / 6, burst: 10 };
/** Answers that are wrong at the same time count each, up to this many: then a peer is shut out for ten minutes at most. */
const MOST_DEBT = 100;
/** Peers that are remembered one by one; beyond that all others are one peer. */
const MOST_PEERS = 10_000;

/** The rules of one service for who may use its port, and what each peer has had of it. */
export class Access {
  readonly password: LocalPassword | undefined;
  readonly #service: string;
  readonly #rules: AccessRules;
  readonly #identify: (client: Socket, signal: AbortSignal) => Promise<Peer | undefined>;
  readonly #logins: Bucket | undefined;
  readonly #peers = new Map<string, PeerRecord>();

  constructor(
    service: string,
    rules: AccessRules,
    password: LocalPassword | undefined,
    identify: (client: Socket, signal: AbortSignal) => Promise<Peer | undefined>,
  ) {
    this.#service = service;
    this.#rules = rules;
    this.password = password;
    this.#identify = identify;
    this.#logins = rules.loginRate && new Bucket(rules.loginRate);
  }

  /** Finds out who has connected, and whether that one may; the visitor throws what is to be told when it wants something. */
  async meet(client: Socket, signal: AbortSignal): Promise<Visitor> {
    const address = client.remoteAddress ?? 'unix';
    // What cannot be found out in time is unknown, and the rules decide on that.
    const peer = await this.#identify(client, signal).catch(() => undefined);
    const key = peer ? `uid ${peer.uid}` : address;
    return new Visitor(this.#service, this.#rules, this.#record(key), this.#logins, peer, key);
  }

  #record(key: string): PeerRecord {
    const known = this.#peers.get(key);
    if (known) return known;
    if (this.#peers.size >= MOST_PEERS)
      for (const [other, record] of this.#peers) if (record.idle) this.#peers.delete(other);
    if (this.#peers.size >= MOST_PEERS && key !== 'others') return this.#record('others');
    const record = new PeerRecord(this.#rules.loginRatePerPeer);
    this.#peers.set(key, record);
    return record;
  }
}

/** One connection of a peer, as the rules see it. */
export class Visitor {
  /** Who it is, for log and audit. */
  readonly facts: Readonly<Record<string, string | number>>;
  readonly #service: string;
  readonly #rules: AccessRules;
  readonly #record: PeerRecord;
  readonly #logins: Bucket | undefined;
  readonly #refusal: PosternError | undefined;
  readonly #who: string;
  #inside = false;

  constructor(
    service: string,
    rules: AccessRules,
    record: PeerRecord,
    logins: Bucket | undefined,
    peer: Peer | undefined,
    who: string,
  ) {
    this.#service = service;
    this.#rules = rules;
    this.#record = record;
    this.#logins = logins;
    this.#who = who;
    this.#refusal = refusalOf(service, rules, peer);
    this.facts = {
      ...(peer && { peerUid: peer.uid }),
      ...(peer?.pid !== undefined && { peerPid: peer.pid }),
      ...(peer?.executables && { peerExecutable: peer.executables.slice(0, 4).join(', ') }),
    };
  }

  /** Takes one of the peer's places. Throws ACCESS_DENIED, RATE_LIMITED or LIMIT_REACHED. */
  enter(): void {
    if (this.#refusal) throw this.#refusal;
    const { maxConnectionsPerPeer: most } = this.#rules;
    if (most !== undefined && this.#record.active >= most)
      throw new PosternError(
        'LIMIT_REACHED',
        `service "${this.#service}" has its ${most} connections for one peer (${this.#who}) in use`,
      );
    // The peer's own rate first: what it is refused is not taken from all others.
    if (this.#record.logins?.take() === false)
      throw new PosternError(
        'RATE_LIMITED',
        `${this.#who} logs in to service "${this.#service}" more often than loginRatePerPeer allows`,
      );
    if (this.#logins?.take() === false)
      throw new PosternError(
        'RATE_LIMITED',
        `clients log in to service "${this.#service}" more often than loginRate allows`,
      );
    this.#inside = true;
    this.#record.active += 1;
  }

  /** Can be called again, to no effect. */
  leave(): void {
    if (this.#inside) this.#record.active -= 1;
    this.#inside = false;
  }

  begin(): void {
    if (this.#refusal) throw this.#refusal;
    if (this.#record.wrong.empty)
      throw new PosternError(
        'RATE_LIMITED',
        `${this.#who} has given service "${this.#service}" a wrong password too often`,
      );
  }

  wrong(): PosternError {
    this.#record.wrong.charge();
    // One text for both: nobody learns which of them was right.
    return new PosternError('ACCESS_DENIED', `wrong user name or password for service "${this.#service}"`);
  }

  async prove(
    password: LocalPassword,
    exchange: (credentials: Credentials) => Promise<boolean>,
    signal: AbortSignal,
  ): Promise<void> {
    this.begin();
    if (await password.lend(exchange, signal)) return;
    const error = this.wrong();
    await pause(WRONG_ANSWER_DELAY, undefined, { signal }).catch(() => {});
    throw error;
  }
}

function refusalOf(
  service: string,
  { uids, gids, executables }: AccessRules,
  peer: Peer | undefined,
): PosternError | undefined {
  if (!uids && !gids && !executables) return undefined;
  const no = (who: string) => new PosternError('ACCESS_DENIED', `service "${service}" is not open to ${who}`);
  if (!peer) return no('a peer whose user cannot be found out');
  if (uids && !uids.has(peer.uid)) return no(`processes of user ${peer.uid}`);
  if (gids && !peer.gids?.some((gid) => gids.has(gid))) return no(`the groups of this process`);
  if (!executables) return undefined;
  if (!peer.executables) return no('a process whose program cannot be found out');
  return peer.executables.every((path) => executables.has(path)) ? undefined : no('this program');
}

/** What one peer has had of a service. */
class PeerRecord {
  active = 0;
  readonly logins: Bucket | undefined;
  readonly wrong = new Bucket(WRONG_ANSWERS);

  constructor(logins: Rate | undefined) {
    this.logins = logins && new Bucket(logins);
  }

  /** It could as well be forgotten. */
  get idle(): boolean {
    return this.active === 0 && this.wrong.full && (this.logins?.full ?? true);
  }
}

/** Holds `burst` tokens and is filled with `perSecond`. */
export class Bucket {
  readonly #rate: Rate;
  #tokens: number;
  #at = performance.now();

  constructor(rate: Rate) {
    this.#rate = rate;
    this.#tokens = rate.burst;
  }

  /** Takes a token, if there is one. */
  take(): boolean {
    if (this.empty) return false;
    this.#tokens -= 1;
    return true;
  }

  /** Takes a token that has to be there later. */
  charge(): void {
    this.#fill();
    this.#tokens = Math.max(this.#tokens - 1, -MOST_DEBT);
  }

  get empty(): boolean {
    this.#fill();
    return this.#tokens < 1;
  }

  get full(): boolean {
    this.#fill();
    return this.#tokens >= this.#rate.burst;
  }

  #fill(): void {
    const now = performance.now();
    const { perSecond, burst } = this.#rate;
    this.#tokens = Math.min(burst, this.#tokens + ((now - this.#at) / 1000) * perSecond);
    this.#at = now;
  }
}

/** A password that can be compared with and not be read. */
export class KnownPassword implements Disposable {
  readonly #key = randomBytes(32);
  readonly #mac: Buffer;

  constructor(password: Buffer) {
    this.#mac = this.#macOf(password);
  }

  /** Takes as long for any bytes of the same length. */
  equals(candidate: Buffer): boolean {
    return timingSafeEqual(this.#macOf(candidate), this.#mac);
  }

  [Symbol.dispose](): void {
    this.#key.fill(0);
    this.#mac.fill(0);
  }

  #macOf(bytes: Buffer): Buffer {
    return hmacSha256(this.#key, bytes);
  }
}
