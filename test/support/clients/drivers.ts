import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { which } from '../servers/install.ts';
import { capture, type Output, run, Unavailable } from '../servers/process.ts';
import { cache, withLock } from '../servers/state.ts';

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

const sources = fileURLToPath(new URL('../../e2e/clients/', import.meta.url));

interface Recipe {
  readonly name: string;
  readonly unixSockets: boolean;
  /** Files that decide what is built. */
  readonly files: readonly string[];
  /** Builds into an empty folder, which is then moved to its place in the cache. */
  readonly build: (source: string, folder: string) => Promise<unknown>;
  readonly command: (source: string, folder: string) => readonly [string, ...string[]];
}

const pgjdbc = '42.7.13';
const mavenCopy = 'org.apache.maven.plugins:maven-dependency-plugin:3.8.1';

const recipes: readonly Recipe[] = [
  {
    name: 'psycopg',
    unixSockets: true,
    files: ['requirements.txt'],
    build: async (source, folder) => {
      const python = await need('python3', 'Python 3 with pip');
      const requirements = join(source, 'requirements.txt');
      const pip = ['-m', 'pip', 'install', '-q', '--only-binary=:all:', '--target', folder];
      await run(python, [...pip, '-r', requirements], { timeout: 300_000 });
    },
    command: (source, folder) => ['env', `PYTHONPATH=${folder}`, 'python3', join(source, 'client.py')],
  },
  {
    name: 'pgx',
    unixSockets: true,
    files: ['go.mod', 'go.sum', 'main.go'],
    build: async (source, folder) => {
      const go = await need('go', 'Go');
      await run(go, ['build', '-trimpath', '-buildvcs=false', '-o', join(folder, 'pgx'), '.'], {
        cwd: source,
        timeout: 600_000,
      });
    },
    command: (_, folder) => [join(folder, 'pgx')],
  },
  {
    name: 'pgjdbc',
    unixSockets: false,
    files: ['Client.java'],
    build: async (source, folder) => {
      const javac = await need('javac', 'a JDK, 17 or later');
      const maven = await need('mvn', 'Maven');
      const jar = `org.postgresql:postgresql:${pgjdbc}`;
      const copy = [`${mavenCopy}:copy`, `-Dartifact=${jar}`, `-DoutputDirectory=${folder}`];
      await run(maven, ['--batch-mode', '--quiet', ...copy], { cwd: folder, timeout: 600_000 });
      const classPath = join(folder, `postgresql-${pgjdbc}.jar`);
      await run(javac, ['-encoding', 'UTF-8', '-cp', classPath, '-d', folder, join(source, 'Client.java')]);
    },
    command: (_, folder) => {
      const classPath = `${folder}:${join(folder, `postgresql-${pgjdbc}.jar`)}`;
      return ['java', '-XX:TieredStopAtLevel=1', '-Xshare:auto', '-cp', classPath, 'Client'];
    },
  },
];

async function need(program: string, advice: string): Promise<string> {
  const path = await which(program);
  if (!path) throw new Unavailable(`install ${advice}`);
  return path;
}

function driver(recipe: Recipe): Driver {
  const source = join(sources, recipe.name);
  let built: Promise<string> | undefined;
  const folder = () => (built ??= build(recipe, source));
  return {
    name: recipe.name,
    unixSockets: recipe.unixSockets,
    prepare: async () => {
      await folder();
    },
    ask: async (action, target) => {
      const { host, port, user, database, sslmode = 'disable' } = target;
      const [command, ...args] = recipe.command(source, await folder());
      const output = await capture(command, [...args, action, host, String(port), user, database, sslmode], {
        timeout: 60_000,
        // Nothing of the developer's own: no ~/.pgpass, no PG* variables.
        env: {
          PATH: process.env['PATH'],
          HOME: '/nonexistent',
          ...(target.password === undefined ? {} : { PGPASSWORD: target.password }),
          ...(target.rootCert === undefined ? {} : { PGSSLROOTCERT: target.rootCert }),
        },
      });
      return parse(recipe.name, action, output);
    },
  };
}

function parse<Action extends keyof Answers>(name: string, action: Action, output: Output): Answers[Action] {
  const line = output.stdout.trim();
  if (output.code !== 0 || !line.startsWith('{')) {
    throw new Error(`${name} ${action} ended with ${output.code}: ${output.stderr.trim().slice(-2000)}`);
  }
  return JSON.parse(line) as Answers[Action];
}

async function build(recipe: Recipe, source: string): Promise<string> {
  const hash = createHash('sha256').update(pgjdbc);
  for (const file of recipe.files) hash.update(await readFile(join(source, file)));
  const folder = join(await cache('clients'), `${recipe.name}-${hash.digest('hex').slice(0, 12)}`);
  if (existsSync(folder)) return folder;
  return withLock(`build-${recipe.name}`, async () => {
    if (existsSync(folder)) return folder;
    const draft = await mkdtemp(join(dirname(folder), 'build-'));
    try {
      await recipe.build(source, draft);
      await rename(draft, folder);
      return folder;
    } catch (error) {
      if (error instanceof Unavailable) throw error;
      throw new Unavailable(`${recipe.name} could not be built: ${(error as Error).message}`, {
        cause: error,
      });
    } finally {
      await rm(draft, { recursive: true, force: true });
    }
  });
}

/** Every driver there is. */
export const drivers: readonly Driver[] = recipes.map(driver);

/** Whether the driver can be used; if not, the test is marked as skipped with the reason (in CI: it fails). */
export async function withDriver(t: TestContext, { prepare, name }: Driver): Promise<boolean> {
  try {
    await prepare();
    return true;
  } catch (error) {
    if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
    t.skip(`${name} is not here: ${error.message}`);
    return false;
  }
}
