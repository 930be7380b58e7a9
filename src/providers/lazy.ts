import { refuseAborted, untilAborted } from './deadline.ts';
import type { Provider } from './provider.ts';

/**
 * A provider whose code is imported when it is first asked: what a configuration does not use costs a start nothing.
 * A provider that cannot be opened (a file of its settings that is not there yet) is tried again with the next question.
 */
export function openLazily(load: () => Promise<Provider>): Provider {
  let opened: Promise<Provider> | undefined;
  const provider = (): Promise<Provider> => {
    if (!opened) {
      const opening = load();
      opened = opening;
      opening.catch(() => {
        if (opened === opening) opened = undefined;
      });
    }
    return opened;
  };
  return {
    async fetch(references, signal) {
      refuseAborted(signal);
      const one = await untilAborted(provider(), signal, 'opening the provider');
      return await one.fetch(references, signal);
    },
    async check(signal) {
      refuseAborted(signal);
      const one = await untilAborted(provider(), signal, 'opening the provider');
      await one.check(signal);
    },
    async close(signal) {
      if (!opened) return;
      const there = opened.catch(() => undefined);
      const one = await untilAborted(there, signal, 'closing the provider');
      await one?.close(signal);
    },
  };
}
