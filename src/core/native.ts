import { createRequire } from 'node:module';
import { Socket } from 'node:net';

import { reasonOf } from './errors.ts';

/** The part of Postern that is compiled: an addon of Node-API, built from `native/`. */
export interface Native {
  readonly apiVersion: () => number;
  readonly Relays: new (dedicated: number, onEvents: () => void) => NativeEngine;
  /** Carries a few bytes through a relay of its own; throws when they do not arrive. */
  selfTest(): void;
  /** Two connected unix sockets, as descriptors of the caller's. */
  socketPair(): readonly [number, number];
  /**
   * Who connected a unix socket; null where the system does not say (TCP). `pid` is 0 for a process that cannot be seen from
   * here, such as one of another container.
   */
  peerCredentials(fd: number): {
    readonly pid: number;
    readonly uid: number;
    readonly gid: number;
    readonly groups: readonly number[];
  } | null;
  /**
   * Whose the TCP socket of this machine is that is connected from `local` to `remote` (`127.0.0.1:5432`, `[::1]:5432`); null
   * where there is none. `state` as in /proc/net/tcp. Only on Linux.
   */
  readonly tcpOwner?: (
    local: string,
    remote: string,
  ) => { readonly uid: number; readonly inode: number; readonly state: number } | null;
  /** Keep-alive probes of a TCP connection, with the settings that Node has none for. Throws with the system's code. */
  setKeepAlive(fd: number, settings: KeepAlive): void;
}

/** When a silent TCP connection is given up. 0: as the system has it. */
export interface KeepAlive {
  /** Seconds of silence before the first probe. */
  readonly idleSeconds: number;
  /** Seconds between probes. */
  readonly intervalSeconds: number;
  /** Probes without an answer that end the connection. */
  readonly count: number;
  /** Milliseconds that bytes sent may stay unacknowledged (Linux alone). */
  readonly userTimeoutMs: number;
}

/** The threads that relay, as the addon shows them. Belongs to the thread of JavaScript that made it. */
export interface NativeEngine {
  /** Duplicates both descriptors and relays between them; throws when the system has no more of them. */
  relay(client: number, upstream: number, fromClient: Buffer | null, fromUpstream: Buffer | null): number;
  close(id: number): void;
  /** Bytes read so far from client and upstream; null once the end was taken. */
  bytes(id: number): readonly [number, number] | null;
  /** What has happened since the last call. Ends come once for each session, and close its descriptors. */
  take(): readonly NativeEvent[];
  /** Ends every session, and all threads. */
  stop(): void;
}

/**
 * A session is over (`ended`, once for each); its upstream has finished and its client has not; or one end has broken off
 * and what the other is still owed takes its time. The counts belong to an end.
 */
export interface NativeEvent {
  readonly id: number;
  readonly kind: 'ended' | 'upstreamEnded' | 'broke';
  /** Which end broke off first. */
  readonly side: 'none' | 'client' | 'upstream';
  readonly errno: number;
  readonly closedByUs: boolean;
  readonly fromClient: number;
  readonly fromUpstream: number;
}

/** What `loadNative` found: the addon, or why there is none. */
export type NativeFound =
  | { readonly native: Native; readonly from: string }
  | { readonly native: undefined; readonly reason: string };

/** Raised with every change of what `Native` promises: a binary of another version is not used. */
const API_VERSION = 2;

/**
 * Looks for the addon of this platform: in `native/` of a checkout, then in the package for it. Never throws; without one
 * (or with `POSTERN_NATIVE=off`) Postern does the same in TypeScript.
 */
export function loadNative(environment: NodeJS.ProcessEnv = process.env): NativeFound {
  if (environment['POSTERN_NATIVE'] === 'off')
    return { native: undefined, reason: 'POSTERN_NATIVE=off says not to use it' };
  const targets = nativeTargets();
  const require = createRequire(import.meta.url);
  let reason: string | undefined;
  for (const target of targets)
    for (const name of [`../../native/postern-native.${target}.node`, `@postern/native-${target}`])
      try {
        const native = require(name) as Partial<Native>;
        const version = native.apiVersion?.();
        if (version !== API_VERSION) throw new NotUsable(`is of version ${version ?? 0}, not ${API_VERSION}`);
        if (!native.Relays) throw new NotUsable('has no relay for this system');
        proveUsable(native as Native);
        return { native: native as Native, from: name };
      } catch (thrown) {
        if (thrown instanceof NotUsable) reason ??= `the binary ${thrown.message}`;
        else if (reasonOf(thrown) !== 'MODULE_NOT_FOUND')
          reason ??= `the binary cannot be used (${reasonOf(thrown)})`;
      }
  return { native: undefined, reason: reason ?? `there is no binary for ${targets.join(' or ')}` };
}

/**
 * Names this platform as the packages of the addon do: system, processor and, on Linux, C library. Which one that is, only
 * loading tells at once: a binary for the other one does not load.
 */
export function nativeTargets(): readonly string[] {
  const system = `${process.platform}-${process.arch}`;
  return process.platform === 'linux' ? [`${system}-gnu`, `${system}-musl`] : [system];
}

/** The descriptor beneath a plain socket that is open. Node documents no way to it, so each use must do without one. */
export function descriptorOf(socket: Socket): number | undefined {
  const fd = (socket as { _handle?: { readonly fd?: unknown } | null })._handle?.fd;
  return typeof fd === 'number' && fd >= 0 ? fd : undefined;
}

/** The binary was loaded, and is none that this Postern can use. */
class NotUsable extends Error {}

/** A binary of another Node.js, or a kernel that refuses what it needs, is found here and not by the first client. */
function proveUsable(native: Native): void {
  native.selfTest();
  const [near, far] = native.socketPair();
  const socket = new Socket({ fd: near });
  const seen = descriptorOf(socket);
  for (const end of [socket, new Socket({ fd: far })]) end.destroy();
  if (seen !== near)
    throw new NotUsable('needs the descriptors of sockets, and this runtime does not show them');
}
