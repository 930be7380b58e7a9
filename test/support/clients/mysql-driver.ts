import type { MySqlKind } from '../servers/mysql-accounts.ts';

/** Where a MySQL client connects to. */
export interface MySqlTarget {
  /** A name, an address, or the path of a unix socket. */
  readonly host: string;
  readonly port: number;
  /** For `logins`, instead of `port`. */
  readonly ports?: readonly number[];
  readonly user: string;
  readonly database: string;
  /** Default `disable`. */
  readonly sslmode?: 'disable' | 'prefer' | 'require' | 'verify-full';
  /** Verifies the server, for `verify-full`. */
  readonly rootCert?: string;
  /** Postern's clients have none. */
  readonly password?: string;
  /** File that `load-local` sends: lines of a number, a tab and a text. */
  readonly localFile?: string;
}

/** What each action answers; test/e2e/clients/README.md says what it does. */
export interface MySqlAnswers {
  readonly select: {
    /** `name@host` of the account that the server let in. */
    readonly user: string;
    readonly connection: number;
    /** The connection id that the driver was told in the greeting; null where it keeps that to itself. */
    readonly greeted: number | null;
    readonly echo: string;
    readonly sum: number;
    readonly notes: number;
  };
  /** `cleared`: a user variable set before is gone. */
  readonly 'change-user': { readonly user: string; readonly cleared: boolean };
  readonly reset: { readonly user: string; readonly cleared: boolean };
  readonly 'kill-query': { readonly code: number | null; readonly ms: number; readonly alive: boolean };
  readonly 'multi-statements': { readonly results: readonly number[] };
  /** SHA-256 of 64 MiB: as they were sent, as the server saw them, as they came back. */
  readonly big: { readonly sent: string; readonly server: string; readonly back: string };
  readonly 'load-local': {
    readonly rows: number;
    readonly code: number | null;
    readonly message: string | null;
  };
  readonly error: Refusal;
  /** One of each port, in their order: who it was let in as, or why not. */
  readonly logins: { readonly results: readonly ({ readonly user: string | null } & Refusal)[] };
}

/** What a driver tells of an error; all null when there was none. */
export interface Refusal {
  readonly code: number | null;
  readonly sqlstate: string | null;
  readonly message: string | null;
}

export type MySqlAction = keyof MySqlAnswers;

/** A client of MySQL. */
export interface MySqlDriver {
  readonly name: string;
  /** Plugins that it can log in by where a server asks for them; Postern asks for none. */
  readonly plugins: readonly string[];
  /** What it can do where the greeting is of that server: drivers go by the version. */
  readonly actions: (kind: MySqlKind) => readonly MySqlAction[];
  readonly ask: <Action extends MySqlAction>(
    action: Action,
    target: MySqlTarget,
  ) => Promise<MySqlAnswers[Action]>;
  /** Installs and builds it, once; throws `Unavailable` where its language is missing. */
  readonly prepare: () => Promise<void>;
}

/** What is asked of a connection so that `kill-query` has something to kill: it takes 100 seconds. */
export const slowQuery = 'select count(*) from notes where sleep(1) = 0';

/** The 64 MiB of `big`. No part of it is like another, so a lost or doubled packet shows. */
export function bigText(): string {
  let text = '';
  for (let n = 0; n < 8 * 1024 * 1024; n += 1) text += `${String(n).padStart(7, '0')},`;
  return text;
}
