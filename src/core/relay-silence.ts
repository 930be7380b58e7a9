/** What is watched: how many bytes have passed so far, and what is to happen when there come no more. */
interface Watched {
  readonly total: () => number;
  readonly silent: () => void;
  seen: number;
  since: number;
}

interface Round {
  readonly timer: NodeJS.Timeout;
  readonly watched: Set<Watched>;
}

/** How often in a limit counters are compared: a silence is noticed after at most one and a half times the limit. */
const ROUNDS = 4;

/** One timer for each limit, whatever the number of sessions. */
const rounds = new Map<number, Round>();

/**
 * Calls `silent` once `total` has not grown for `limit` milliseconds, by comparing it now and then, so that whatever counts
 * pays nothing for it. Returns what ends the watch, which has to be called.
 */
export function watchSilence(limit: number, total: () => number, silent: () => void): () => void {
  const watched: Watched = { total, silent, seen: total(), since: performance.now() };
  const round = rounds.get(limit) ?? newRound(limit);
  round.watched.add(watched);
  return () => {
    round.watched.delete(watched);
    if (round.watched.size > 0 || rounds.get(limit) !== round) return;
    clearInterval(round.timer);
    rounds.delete(limit);
  };
}

function newRound(limit: number): Round {
  const watched = new Set<Watched>();
  const timer = setInterval(() => compare(watched, limit), Math.max(1, limit / ROUNDS)).unref();
  const round = { timer, watched };
  rounds.set(limit, round);
  return round;
}

function compare(watched: ReadonlySet<Watched>, limit: number): void {
  const now = performance.now();
  for (const each of watched) {
    const total = each.total();
    if (total !== each.seen) {
      each.seen = total;
      each.since = now;
    } else if (now - each.since >= limit) each.silent();
  }
}
