import { createHash, createHmac, pbkdf2Sync } from 'node:crypto';
import { canary } from './canary.ts';

/**
 * Every role of the test servers, and how the server lets it in over TCP (over the unix socket everybody may be
 * anybody). A role that a test makes by itself is asked for SCRAM.
 */
export const roleMethods = {
  /** SCRAM-SHA-256; may replicate. */
  scram_user: 'scram-sha-256',
  md5_user: 'md5',
  /** The server asks for the password as it is. */
  clear_user: 'password',
  /** No password at all; may replicate. */
  trust_user: 'trust',
  /** Refused before any question, with a password that would be right. */
  reject_user: 'reject',
  /** A client certificate over TLS; refused without TLS. */
  cert_user: 'cert',
  /** SCRAM over TLS; refused without. */
  tls_only_user: 'scram-sha-256',
  /** For tests that change its password: it is one role for all of them, so set it before you rely on it. */
  rotate_user: 'scram-sha-256',
  /** SCRAM with 16384 iterations instead of 4096. */
  scram16k_user: 'scram-sha-256',
  /** Its password is `canary.postgresUnicode`. */
  unicode_user: 'scram-sha-256',
  /** A superuser. */
  admin: 'scram-sha-256',
} as const;

export type Role = keyof typeof roleMethods;

/** pg_hba.conf for clients from `address`; the first line that fits decides. */
export function hba(tls: boolean, address = '127.0.0.1/32'): string {
  return `local all,replication all trust
host all,replication trust_user ${address} trust
host all reject_user ${address} reject
host all md5_user ${address} md5
host all clear_user ${address} password
${tls ? `hostssl all cert_user ${address} cert\nhostssl all tls_only_user ${address} scram-sha-256` : ''}
host all cert_user,tls_only_user ${address} reject
host all,replication all ${address} scram-sha-256
`;
}

/** What PostgreSQL stores for a SCRAM password: it takes a ready one too, so every version can have any iteration count. */
function scramVerifier(password: string, iterations: number): string {
  const salt = createHash('sha256').update('postern').digest().subarray(0, 16);
  const salted = pbkdf2Sync(password, salt, iterations, 32, 'sha256');
  const hmac = (text: string) => createHmac('sha256', salted).update(text).digest();
  const storedKey = createHash('sha256').update(hmac('Client Key')).digest('base64');
  const serverKey = hmac('Server Key').toString('base64');
  return `SCRAM-SHA-256$${iterations}:${salt.toString('base64')}$${storedKey}:${serverKey}`;
}

/** The roles, for the whole cluster. */
export const cluster = `
SET password_encryption = 'scram-sha-256';
CREATE ROLE scram_user LOGIN REPLICATION PASSWORD '${canary.postgres}';
CREATE ROLE clear_user LOGIN PASSWORD '${canary.postgres}';
CREATE ROLE trust_user LOGIN REPLICATION;
CREATE ROLE reject_user LOGIN PASSWORD '${canary.postgres}';
CREATE ROLE cert_user LOGIN;
CREATE ROLE tls_only_user LOGIN PASSWORD '${canary.postgres}';
CREATE ROLE rotate_user LOGIN PASSWORD '${canary.postgres}';
CREATE ROLE scram16k_user LOGIN PASSWORD '${scramVerifier(canary.postgres, 16384)}';
CREATE ROLE unicode_user LOGIN PASSWORD '${canary.postgresUnicode}';
CREATE ROLE admin LOGIN SUPERUSER PASSWORD '${canary.postgres}';
SET password_encryption = 'md5';
CREATE ROLE md5_user LOGIN PASSWORD '${canary.postgres}';
`;

/** What the database `app` holds. */
export const database = `
GRANT ALL ON SCHEMA public TO PUBLIC;
CREATE TABLE notes (id serial PRIMARY KEY, body text NOT NULL);
INSERT INTO notes (body) SELECT 'note ' || n FROM generate_series(1, 100) n;
GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC;
`;
