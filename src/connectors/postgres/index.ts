import { defineConnector } from '../connector.ts';
import { secretlessSettings, settings } from './settings.ts';

const credentials = {
  required: ['username'],
  optional: [
    'password',
    'host',
    'port',
    'address',
    'sslmode',
    'sslrootcert',
    'sslcert',
    'sslkey',
    'sslpassword',
    'sslhost',
  ],
  others: 'sent to the server as a startup parameter of that name, which the client cannot override',
};

export const postgres = defineConnector({
  summary: 'PostgreSQL, protocol 3.0 and 3.2',
  settings,
  credentials,
  review: () => ({ problems: [], warnings: [] }),
  open: () => ({ serve: async () => {}, probe: async () => '' }),
});
export const pg = defineConnector({
  summary: "PostgreSQL under Secretless's name, with Secretless's defaults",
  settings: secretlessSettings,
  credentials,
  review: () => ({ problems: [], warnings: [] }),
  open: () => ({ serve: async () => {}, probe: async () => '' }),
});
