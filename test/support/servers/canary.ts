/**
 * Every secret that the test servers know. Each is a text that occurs nowhere else, so a test can search everything
 * Postern wrote for it.
 */
export const canary = {
  /** Password of every PostgreSQL role that has one, `unicode_user` excepted. */
  postgres: 's3cr3t-canary-postgres',
  /** Contains what SASLprep (RFC 4013) changes: a soft hyphen, which it removes, and a no-break space, which becomes a space. */
  postgresUnicode: 'I\u00ADX\u00A0s3cr3t-c\u00E4nary',
  /** Password of every MySQL and MariaDB account that has one, `unicode_user` excepted. */
  mysql: 's3cr3t-canary-mysql',
  /** More bytes than letters, and characters that a shell or a connection string might take for its own. */
  mysqlUnicode: 's3cr3t-p\u00E4$$w\u00F6rd-mysql',
  /** Password of the `app` user of OpenBao's userpass method. */
  openbaoUserpass: 's3cr3t-canary-openbao-userpass',
  /** Passphrase of the client's encrypted key. */
  passphrase: 's3cr3t-canary-passphrase',
} as const;
