import { createReadStream } from 'node:fs';
import { readdir, readFile, readlink } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { endianness } from 'node:os';

import { descriptorOf, type Native } from './native.ts';

/** A process of this machine at the other end of a connection, as the kernel knows it. */
export interface Peer {
  /** Who it was when it made the socket. */
  readonly uid: number;
  /** Its group and its supplementary ones; undefined over TCP, where the kernel does not tell. */
  readonly gids: readonly number[] | undefined;
  /** undefined: nobody asked, or it cannot be seen from here (another pid namespace). */
  readonly pid: number | undefined;
  /** Paths of the programs of all processes that have the socket; undefined: nobody asked, or it cannot be known. */
  readonly executables: readonly string[] | undefined;
}

/** What `identifyPeer` is to find out, and with what. */
export interface PeerQuestion {
  readonly native: Native | undefined;
  /** Looks for the programs, too: over TCP that is a walk through the descriptors of every process. */
  readonly executables: boolean;
}

/** States of a socket whose process is still there: ESTABLISHED, and both in which it has only finished sending. */
const ALIVE: ReadonlySet<number> = new Set([1, 4, 5]);
/** Longest table of TCP connections that is read, in bytes: about 400,000 of them. */
const LONGEST_TABLE = 64 * 1024 * 1024;
/** Most processes and descriptors that are looked at for one socket. */
const MOST_PROCESSES = 8192;
const MOST_DESCRIPTORS = 200_000;

/**
 * Who is at the other end of a client's connection: SO_PEERCRED for a unix socket, the owner of the other socket for TCP over
 * loopback. undefined: it cannot be known, because the peer is gone, elsewhere, or of a user that this user namespace has no
 * number for.
 */
export async function identifyPeer(
  client: Socket,
  { native, executables }: PeerQuestion,
  signal: AbortSignal,
): Promise<Peer | undefined> {
  const overflow = await unmappedIds();
  if (client.remoteAddress === undefined) {
    const fd = descriptorOf(client);
    const found = fd === undefined ? undefined : native?.peerCredentials(fd);
    if (!found || found.uid === overflow.uid) return undefined;
    const { pid, uid, gid, groups } = found;
    const gids = [gid, ...groups].filter((each) => each !== overflow.gid);
    const seen = pid > 0 ? pid : undefined;
    const program = executables && seen !== undefined ? await programOf(seen) : undefined;
    return { uid, gids, pid: seen, executables: program === undefined ? undefined : [program] };
  }
  const owner = await tcpOwner(client, native, signal);
  // A socket that no process has any more is shown as root's.
  if (!owner || owner.inode === 0 || !ALIVE.has(owner.state) || owner.uid === overflow.uid) return undefined;
  const holders = executables ? await holdersOf(owner.inode, signal) : undefined;
  return {
    uid: owner.uid,
    gids: undefined,
    pid: holders?.length === 1 ? holders[0]?.pid : undefined,
    executables: holders?.map(({ program }) => program),
  };
}

interface Owner {
  readonly uid: number;
  readonly inode: number;
  readonly state: number;
}

async function tcpOwner(
  { remoteAddress, remotePort, localAddress, localPort }: Socket,
  native: Native | undefined,
  signal: AbortSignal,
): Promise<Owner | undefined> {
  if (!remoteAddress || !remotePort || !localAddress || !localPort || !isLoopback(remoteAddress))
    return undefined;
  const peer = { address: unmapped(remoteAddress), port: remotePort };
  const own = { address: unmapped(localAddress), port: localPort };
  if (native?.tcpOwner)
    try {
      return native.tcpOwner(written(peer), written(own)) ?? undefined;
    } catch {
      // A sandbox without netlink has the tables.
    }
  return await ownerByTables(peer, own, signal);
}

interface End {
  readonly address: string;
  readonly port: number;
}

/** `::ffff:127.0.0.1` is IPv4 that came to a socket of IPv6. */
function unmapped(address: string): string {
  return address.startsWith('::ffff:') && address.includes('.') ? address.slice(7) : address;
}

function isLoopback(address: string): boolean {
  return address === '::1' || unmapped(address).startsWith('127.');
}

function written({ address, port }: End): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

/**
 * The same from /proc/net/tcp and tcp6, which list every connection of the network namespace. A client over IPv4 may have a
 * socket of either kind (Java has IPv6).
 */
export async function ownerByTables(peer: End, own: End, signal: AbortSignal): Promise<Owner | undefined> {
  const four = !peer.address.includes(':');
  if (four) {
    const found = await ownerInTable('/proc/self/net/tcp', inTable(peer), inTable(own), signal);
    if (found) return found;
  }
  const [asSix, ownAsSix] = four ? [inTable(peer, true), inTable(own, true)] : [inTable(peer), inTable(own)];
  return await ownerInTable('/proc/self/net/tcp6', asSix, ownAsSix, signal);
}

/** `0100007F:1538`: the address as words in the order of this machine, and the port. */
function inTable({ address, port }: End, mapped = false): string {
  const words = address.includes(':')
    ? [...Array.from({ length: 3 }, () => Buffer.alloc(4)), Buffer.of(0, 0, 0, 1)]
    : [
        ...(mapped ? [Buffer.alloc(4), Buffer.alloc(4), Buffer.of(0, 0, 0xff, 0xff)] : []),
        Buffer.from(address.split('.').map(Number)),
      ];
  const hex = words.map((word) => (endianness() === 'LE' ? word.reverse() : word).toString('hex')).join('');
  return `${hex.toUpperCase()}:${port.toString(16).toUpperCase().padStart(4, '0')}`;
}

async function ownerInTable(
  file: string,
  peer: string,
  own: string,
  signal: AbortSignal,
): Promise<Owner | undefined> {
  const needle = ` ${peer} ${own} `;
  let rest = '';
  let length = 0;
  try {
    for await (const chunk of createReadStream(file, { encoding: 'latin1', signal })) {
      const text = rest + String(chunk);
      const at = text.indexOf(needle);
      const end = at < 0 ? -1 : text.indexOf('\n', at);
      if (end >= 0) {
        // st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
        const [state = '', , , , uid, , inode] = text.slice(at + needle.length, end).split(/ +/);
        return { state: Number.parseInt(state, 16), uid: Number(uid), inode: Number(inode) };
      }
      rest = text.slice(text.lastIndexOf('\n') + 1);
      length += text.length;
      if (length > LONGEST_TABLE) return undefined;
    }
  } catch {
    signal.throwIfAborted();
  }
  return undefined;
}

/** The processes that have a socket; undefined where none of them can be seen, or there are too many to look at. */
async function holdersOf(
  inode: number,
  signal: AbortSignal,
): Promise<{ readonly pid: number; readonly program: string }[] | undefined> {
  const wanted = `socket:[${inode}]`;
  const pids = (await readdir('/proc').catch(() => [])).filter((name) => /^\d+$/.test(name));
  if (pids.length > MOST_PROCESSES) return undefined;
  const holders: { pid: number; program: string }[] = [];
  let looked = 0;
  for (const pid of pids) {
    signal.throwIfAborted();
    // Those of other users are closed to all but root.
    const descriptors = await readdir(`/proc/${pid}/fd`).catch(() => []);
    looked += descriptors.length;
    if (looked > MOST_DESCRIPTORS) return undefined;
    const links = await Promise.all(
      descriptors.map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')),
    );
    if (!links.includes(wanted)) continue;
    const program = await programOf(Number(pid));
    if (program === undefined) return undefined;
    holders.push({ pid: Number(pid), program });
  }
  return holders.length > 0 ? holders : undefined;
}

/** Path of the program that a process runs; undefined where it may not be seen, or the process has changed meanwhile. */
async function programOf(pid: number): Promise<string | undefined> {
  const before = await startOf(pid);
  const program = await readlink(`/proc/${pid}/exe`).catch(() => undefined);
  return before !== undefined && before === (await startOf(pid)) ? program : undefined;
}

/** When a process began, in ticks since the machine did: another one with the same pid began at another time. */
async function startOf(pid: number): Promise<string | undefined> {
  const text = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => '');
  // The name before it, in parentheses, may hold anything; the 22nd field is the 20th behind it.
  return text.slice(text.lastIndexOf(')') + 2).split(' ')[19];
}

/** The ids that stand for all that this user namespace has none for; undefined where it has all of them. */
async function unmappedIds(): Promise<{
  readonly uid: number | undefined;
  readonly gid: number | undefined;
}> {
  const [uid, gid] = await Promise.all(
    (['uid', 'gid'] as const).map(async (kind) => {
      const map = await readFile(`/proc/self/${kind}_map`, 'latin1').catch(() => undefined);
      if (map === undefined || /^\s*0\s+\d+\s+4294967295\s*$/.test(map)) return undefined;
      return Number(await readFile(`/proc/sys/kernel/overflow${kind}`, 'latin1').catch(() => '65534'));
    }),
  );
  return { uid, gid };
}
