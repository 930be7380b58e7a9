import { canary } from './canary.ts';

/** Which server: MySQL 9 from Debian sid, MariaDB 10.11 from Debian 12, MariaDB 11.8 from Debian 13. */
export type MySqlKind = 'mysql9' | 'mariadb10' | 'mariadb11';

/** One account of a test server, and what a client must bring to be let in. */
export interface Account {
  readonly user: string;
  /** How the server authenticates it, by the name that the protocol has for it. */
  readonly plugin: string;
  readonly password: string;
  /** Without it the password alone does not help: error 1045. */
  readonly needs?: 'tls' | 'certificate';
  /** The number of the error that even the right password gets. */
  readonly refused?: number;
}

const password = canary.mysql;

const common = (plugin: string): readonly Account[] => [
  { user: 'tls_only_user', plugin, password, needs: 'tls' },
  { user: 'cert_user', plugin, password, needs: 'certificate' },
  /** No password at all. */
  { user: 'empty_user', plugin, password: '' },
  { user: 'unicode_user', plugin, password: canary.mysqlUnicode },
  { user: 'locked_user', plugin, password, refused: plugin === 'caching_sha2_password' ? 3118 : 4151 },
  /** For tests that change its password: it is one account for all of them, so set it before you rely on it. */
  { user: 'rotate_user', plugin, password },
  /** May do everything. */
  { user: 'admin', plugin, password },
];

const mariadb: readonly Account[] = [
  { user: 'native_user', plugin: 'mysql_native_password', password },
  { user: 'ed_user', plugin: 'client_ed25519', password },
  /** Either of two plugins will do; the server asks for the first one first. */
  { user: 'multi_user', plugin: 'client_ed25519', password },
  /** Let in by PAM, which needs the password itself: it asks for it by mysql_clear_password. */
  { user: 'clear_user', plugin: 'mysql_clear_password', password },
  ...common('mysql_native_password'),
  { user: 'expired_user', plugin: 'mysql_native_password', password, refused: 1820 },
  /** Only who comes by the unix socket as the operating system's user of this name; there is no secret. */
  { user: 'socket_user', plugin: 'unix_socket', password, refused: 1698 },
];

/** Every account that each server has. */
export const mysqlAccounts: { readonly [Kind in MySqlKind]: readonly Account[] } = {
  mysql9: [
    { user: 'sha2_user', plugin: 'caching_sha2_password', password },
    { user: 'sha256_user', plugin: 'sha256_password', password },
    ...common('caching_sha2_password'),
    { user: 'expired_user', plugin: 'caching_sha2_password', password, refused: 1862 },
    { user: 'socket_user', plugin: 'auth_socket', password, refused: 1698 },
  ],
  mariadb10: mariadb,
  mariadb11: [...mariadb, { user: 'parsec_user', plugin: 'parsec', password }],
};

/** Name of the PAM service of `clear_user`, and what /etc/pam.d must hold: exactly one password is right. */
export const pam = {
  service: 'postern-test-mysql',
  rules: `auth required pam_exec.so quiet expose_authtok /bin/sh -c [read -r p; test "$p" = "${password}"]
account required pam_permit.so
`,
};

/** SQL that makes the accounts and the database `app`, one statement each. */
export function population(kind: MySqlKind): readonly string[] {
  const accounts = mysqlAccounts[kind];
  const mysql = kind === 'mysql9';
  return [
    'CREATE DATABASE app CHARACTER SET utf8mb4',
    'CREATE TABLE app.notes (id int PRIMARY KEY AUTO_INCREMENT, body varchar(200) NOT NULL)',
    `INSERT INTO app.notes (body) ${
      mysql
        ? `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100) SELECT concat('note ', i) FROM n`
        : `SELECT concat('note ', seq) FROM seq_1_to_100`
    }`,
    ...accounts.flatMap((account) => [
      `CREATE USER ${account.user}@'%' IDENTIFIED ${identified(account, mysql)}${requirement(account)}`,
      account.user === 'admin'
        ? `GRANT ALL ON *.* TO admin@'%' WITH GRANT OPTION`
        : `GRANT ALL ON app.* TO ${account.user}@'%'`,
    ]),
  ];
}

function identified({ user, plugin, password: secret }: Account, mysql: boolean): string {
  if (mysql) return plugin === 'auth_socket' ? `WITH auth_socket` : `WITH ${plugin} BY '${secret}'`;
  switch (plugin) {
    case 'unix_socket':
      return 'VIA unix_socket';
    case 'mysql_clear_password':
      return `VIA pam USING '${pam.service}'`;
    default: {
      const using = (name: string) => `${name} USING PASSWORD('${secret}')`;
      const own = using(plugin.replace('client_', ''));
      return `VIA ${own}${user === 'multi_user' ? ` OR ${using('mysql_native_password')}` : ''}`;
    }
  }
}

function requirement({ user, needs }: Account): string {
  const tls = { tls: ' REQUIRE SSL', certificate: ' REQUIRE X509' };
  const state: Readonly<Record<string, string>> = {
    expired_user: ' PASSWORD EXPIRE',
    locked_user: ' ACCOUNT LOCK',
  };
  return `${needs ? tls[needs] : ''}${state[user] ?? ''}`;
}
