import { syncBuiltinESMExports } from 'node:module';
import { mock } from 'node:test';

/**
 * Time that no busy machine can disturb: it goes on by one millisecond with each turn of the event loop, for timers,
 * `performance.now()` and `Date`, until it is disposed of. So what waits for a second waits for a thousand turns, and a test
 * may say to the millisecond when something has to happen. Only for what does no I/O.
 */
export function timeOfTurns(): Disposable {
  let now = performance.now();
  let stopped = false;
  mock.timers.enable({ apis: ['setTimeout', 'Date'], now: Date.now() });
  // For who imports the `setTimeout` of node:timers/promises.
  syncBuiltinESMExports();
  const monotonic = mock.method(performance, 'now', () => now);
  const turn = () => {
    if (stopped) return;
    now += 1;
    mock.timers.tick(1);
    setImmediate(turn);
  };
  setImmediate(turn);
  return {
    [Symbol.dispose]() {
      stopped = true;
      monotonic.mock.restore();
      mock.timers.reset();
      syncBuiltinESMExports();
    },
  };
}
