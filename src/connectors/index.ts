import type { Connector } from './connector.ts';
import { http } from './http/index.ts';
import { awsHttp, basicAuth, conjurHttp, genericHttp } from './http/secretless.ts';
import { mysql } from './mysql/index.ts';
import { pg, postgres } from './postgres/index.ts';

/** Every connector the configuration may name. A new one is a folder beside this and a line here. */
export const connectors: Readonly<Record<string, Connector>> = {
  postgres,
  pg,
  mysql,
  http,
  basic_auth: basicAuth,
  conjur: conjurHttp,
  aws: awsHttp,
  generic_http: genericHttp,
};
