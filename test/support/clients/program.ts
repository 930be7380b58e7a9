import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { which } from '../servers/install.ts';
import { capture, type Output, run, Unavailable } from '../servers/process.ts';
import { cache, withLock } from '../servers/state.ts';

/** How a client program of another language is made, from its source in test/e2e/clients. */
export interface Recipe {
  readonly name: string;
  /** Folder of its source, where that is not its name. */
  readonly folder?: string;
  /** Files that decide what is built. */
  readonly files: readonly string[];
  /** Version of what is fetched, where no file tells it. */
  readonly version?: string;
  /** Builds into an empty folder, which is then moved to its place in the cache. */
  readonly build: (source: string, folder: string) => Promise<unknown>;
  readonly command: (source: string, folder: string) => readonly [string, ...string[]];
}

/** A client program that is built when it is first asked. */
export interface Program {
  /** Installs and builds it, once; throws `Unavailable` where its language is missing. */
  readonly prepare: () => Promise<void>;
  /** Runs it and reads the one line of JSON that it prints. The environment is what is given, PATH and HOME. */
  readonly ask: (args: readonly string[], env: NodeJS.ProcessEnv) => Promise<unknown>;
}

const sources = fileURLToPath(new URL('../../e2e/clients/', import.meta.url));

/** The program of a recipe. */
export function buildable(recipe: Recipe): Program {
  const source = join(sources, recipe.folder ?? recipe.name);
  let built: Promise<string> | undefined;
  const folder = () => (built ??= build(recipe, source));
  return {
    prepare: async () => {
      await folder();
    },
    ask: async (args, env) => {
      const [command, ...first] = recipe.command(source, await folder());
      const output = await capture(command, [...first, ...args], {
        timeout: 60_000,
        // Nothing of the developer's own: no password files, no variables of a driver.
        env: { PATH: process.env['PATH'], HOME: '/nonexistent', ...env },
      });
      return parse(recipe.name, args, output);
    },
  };
}

function parse(name: string, [action]: readonly string[], output: Output): unknown {
  const line = output.stdout.trim();
  if (output.code !== 0 || !line.startsWith('{')) {
    throw new Error(`${name} ${action} ended with ${output.code}: ${output.stderr.trim().slice(-2000)}`);
  }
  return JSON.parse(line);
}

async function build(recipe: Recipe, source: string): Promise<string> {
  const hash = createHash('sha256').update(recipe.version ?? '');
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

async function need(program: string, advice: string): Promise<string> {
  const path = await which(program);
  if (!path) throw new Unavailable(`install ${advice}`);
  return path;
}

/** Installs what requirements.txt lists into the folder. */
export async function installPython(source: string, folder: string): Promise<void> {
  const python = await need('python3', 'Python 3 with pip');
  const pip = ['-m', 'pip', 'install', '-q', '--only-binary=:all:', '--target', folder];
  await run(python, [...pip, '-r', join(source, 'requirements.txt')], { timeout: 300_000 });
}

/** Builds a Go program. */
export async function buildGo(source: string, program: string): Promise<void> {
  const go = await need('go', 'Go');
  await run(go, ['build', '-trimpath', '-buildvcs=false', '-o', program, '.'], {
    cwd: source,
    timeout: 600_000,
  });
}

const mavenCopy = 'org.apache.maven.plugins:maven-dependency-plugin:3.8.1';

/** Puts the jar of a Maven artifact (`group:name:version`) into the folder as `name-version.jar`. */
export async function fetchJar(artifact: string, folder: string): Promise<void> {
  const maven = await need('mvn', 'Maven');
  const copy = [`${mavenCopy}:copy`, `-Dartifact=${artifact}`, `-DoutputDirectory=${folder}`];
  await run(maven, ['--batch-mode', '--quiet', ...copy], { cwd: folder, timeout: 600_000 });
}

/** Compiles a Java source into the folder. */
export async function compileJava(source: string, folder: string, classPath = folder): Promise<void> {
  const javac = await need('javac', 'a JDK, 17 or later');
  await run(javac, ['-encoding', 'UTF-8', '-cp', classPath, '-d', folder, source]);
}
