import type { Table } from '../core/table.ts';
import type { Connector } from './connector.ts';

const fromSecretless = () => import('./http/secretless.ts');

/** Every connector the configuration may name. A new one is a folder beside this and a line here. */
export const connectors: Table<Connector> = {
  postgres: async () => (await import('./postgres/index.ts')).postgres,
  pg: async () => (await import('./postgres/index.ts')).pg,
  mysql: async () => (await import('./mysql/index.ts')).mysql,
  http: async () => (await import('./http/index.ts')).http,
  basic_auth: async () => (await fromSecretless()).basicAuth,
  conjur: async () => (await fromSecretless()).conjurHttp,
  aws: async () => (await fromSecretless()).awsHttp,
  generic_http: async () => (await fromSecretless()).genericHttp,
};
