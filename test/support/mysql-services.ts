import { Postern } from './postern.ts';
import type { Account, MySqlInfo, OpenBao } from './servers.ts';
import { certificates } from './servers.ts';

/** One service of a configuration, as JSON, which is YAML too. */
export interface MySqlService {
  readonly connector: string;
  readonly listenOn: string;
  readonly credentials: Readonly<Record<string, unknown>>;
  readonly [key: string]: unknown;
}

let written = 0;

/** Puts a username and a password where only this caller reads them; gives the path. */
export async function store(bao: OpenBao, username: string, password: string): Promise<string> {
  written += 1;
  const path = `app/mysql-${process.pid}-${written}`;
  await bao.write(`secret/data/${path}`, { data: { username, password } });
  return `secret/${path}`;
}

/** The credentials of a service that reads them from OpenBao. */
export function fromVault(path: string): Record<string, unknown> {
  return {
    username: { from: 'vault', get: `${path}#username` },
    password: { from: 'vault', get: `${path}#password` },
  };
}

/** `config:` for one of the test servers: its certificate is verified, an account that needs a certificate gets one. */
export async function upstreamConfig(info: MySqlInfo, account?: Account): Promise<Record<string, unknown>> {
  const { client } = await certificates();
  return {
    host: 'localhost',
    port: info.port,
    tls: {
      ca: info.ca,
      ...(account?.needs === 'certificate' ? { cert: client.cert, key: client.key } : {}),
    },
  };
}

/** A service for one account of one server. `more` is laid over `config`. */
export async function serviceFor(
  bao: OpenBao,
  info: MySqlInfo,
  account: Account,
  more: Readonly<Record<string, unknown>> = {},
): Promise<MySqlService> {
  return {
    connector: 'mysql',
    listenOn: 'tcp://127.0.0.1:0',
    credentials: fromVault(await store(bao, account.user, account.password)),
    config: { ...(await upstreamConfig(info, account)), ...more },
  };
}

/** The program with these services, logged in to OpenBao. */
export function startServices(
  bao: OpenBao,
  services: Readonly<Record<string, MySqlService>>,
  more: Readonly<Record<string, unknown>> = {},
): Promise<Postern> {
  return Postern.start(JSON.stringify({ version: 2, services, ...more }), {
    env: { VAULT_ADDR: bao.address, VAULT_TOKEN: bao.rootToken },
  });
}

/** The account of that name. */
export function accountOf(info: MySqlInfo, user: string): Account {
  const account = info.accounts.find((each) => each.user === user);
  if (!account) throw new Error(`${info.kind} has no account ${user}`);
  return account;
}
