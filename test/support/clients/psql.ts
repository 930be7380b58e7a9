import { join } from 'node:path';
import { installPsql } from '../servers/install.ts';
import { capture, type Output } from '../servers/process.ts';

let folder: Promise<string> | undefined;

/** Runs one of PostgreSQL's own client programs, by default psql without a start-up file and without asking for a password. */
export async function psql(
  args: readonly string[],
  options: {
    readonly env?: NodeJS.ProcessEnv;
    readonly input?: string;
    readonly timeout?: number;
    readonly program?: 'psql' | 'pgbench' | 'pg_dump' | 'pg_receivewal' | 'pg_recvlogical' | 'pg_basebackup';
  } = {},
): Promise<Output> {
  const { env = {}, program = 'psql', ...rest } = options;
  const bin = await (folder ??= installPsql());
  const quiet = program === 'psql' ? ['--no-psqlrc', '--no-password'] : [];
  return capture(join(bin, program), [...quiet, ...args], {
    ...rest,
    // Nothing of the developer's own: no ~/.pgpass, no ~/.postgresql certificates, no PG* variables.
    env: { PATH: process.env['PATH'], HOME: '/nonexistent', LC_ALL: 'C.UTF-8', ...env },
  });
}
