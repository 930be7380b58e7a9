import * as z from 'zod';

import { Secret } from '../core/secret.ts';
import { refuseAborted } from './deadline.ts';
import { defineProvider } from './provider.ts';

/** The value itself, written into the configuration: for hosts, user names and trials. */
export const literal = defineProvider({
  summary: 'The value itself, as it is written in the configuration.',
  reference: 'The value.',
  settings: z.strictObject({}),
  open: () => ({
    async fetch(references, signal) {
      refuseAborted(signal);
      return { secrets: references.map((value) => new Secret(Buffer.from(value, 'utf8'))) };
    },
    check: async () => undefined,
    close: async () => undefined,
  }),
});
