import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { Unavailable } from '../servers/process.ts';
import { buildable, buildGo, compileJava, fetchJar, installPython, type Recipe } from './program.ts';

/** Where a client program connects to. */
export interface Target {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly database: string;
  /** Default `disable`. */
  readonly sslmode?: 'disable' | 'prefer' | 'require' | 'verify-ca' | 'verify-full';
  /** Verifies the server, for `verify-ca` and `verify-full`. */
  readonly rootCert?: string;
  /** Postern's clients have none. */
  readonly password?: string;
}

/** What each action answers; test/e2e/clients/README.md says what it does. */
export interface Answers {
  readonly select: {
    readonly user: string;
    readonly port: number | null;
    readonly echo: string;
    readonly sum: number;
  };
  readonly cancel: { readonly sqlstate: string | null; readonly ms: number; readonly alive: boolean };
  readonly listen: { readonly channel: string | null; readonly payload: string | null };
  readonly copy: { readonly rows: number; readonly out: string; readonly back: string };
  readonly error: { readonly sqlstate: string | null; readonly message: string | null };
}

/** A driver of another language, as a program. */
export interface Driver {
  readonly name: string;
  /** Whether a folder may take the place of a host name. */
  readonly unixSockets: boolean;
  readonly ask: <Action extends keyof Answers>(action: Action, target: Target) => Promise<Answers[Action]>;
  /** Installs and builds it, once; throws `Unavailable` where its language is missing. */
  readonly prepare: () => Promise<void>;
}

interface PostgresRecipe extends Recipe {
  readonly unixSockets: boolean;
}

const pgjdbc = '42.7.13';

const recipes: readonly PostgresRecipe[] = [
  {
    name: 'psycopg',
    unixSockets: true,
    files: ['requirements.txt'],
    build: installPython,
    command: (source, folder) => ['env', `PYTHONPATH=${folder}`, 'python3', join(source, 'client.py')],
  },
  {
    name: 'pgx',
    unixSockets: true,
    files: ['go.mod', 'go.sum', 'main.go'],
    build: (source, folder) => buildGo(source, join(folder, 'pgx')),
    command: (_, folder) => [join(folder, 'pgx')],
  },
  {
    name: 'pgjdbc',
    version: pgjdbc,
    unixSockets: false,
    files: ['Client.java'],
    build: async (source, folder) => {
      await fetchJar(`org.postgresql:postgresql:${pgjdbc}`, folder);
      await compileJava(join(source, 'Client.java'), folder, join(folder, `postgresql-${pgjdbc}.jar`));
    },
    command: (_, folder) => {
      const classPath = `${folder}:${join(folder, `postgresql-${pgjdbc}.jar`)}`;
      return ['java', '-XX:TieredStopAtLevel=1', '-Xshare:auto', '-cp', classPath, 'Client'];
    },
  },
];

function driver(recipe: PostgresRecipe): Driver {
  const program = buildable(recipe);
  return {
    name: recipe.name,
    unixSockets: recipe.unixSockets,
    prepare: program.prepare,
    ask: async (action, target) => {
      const { host, port, user, database, sslmode = 'disable' } = target;
      const answer = await program.ask([action, host, String(port), user, database, sslmode], {
        ...(target.password === undefined ? {} : { PGPASSWORD: target.password }),
        ...(target.rootCert === undefined ? {} : { PGSSLROOTCERT: target.rootCert }),
      });
      return answer as Answers[typeof action];
    },
  };
}

/** Every driver there is. */
export const drivers: readonly Driver[] = recipes.map(driver);

/** Whether the driver can be used; if not, the test is marked as skipped with the reason (in CI: it fails). */
export async function withDriver(
  t: TestContext,
  { prepare, name }: Pick<Driver, 'prepare' | 'name'>,
): Promise<boolean> {
  try {
    await prepare();
    return true;
  } catch (error) {
    if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
    t.skip(`${name} is not here: ${error.message}`);
    return false;
  }
}
