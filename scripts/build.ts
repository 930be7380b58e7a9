import { globSync } from 'node:fs';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, type Plugin } from 'esbuild';

// Bundles src, and what it uses of node_modules, into dist: why is in docs/decisions/0013-bundle.md.

const root = fileURLToPath(new URL('..', import.meta.url));
const dist = join(root, 'dist');

/** Pino's transports run in threads of their own. Here is none, and their code would load `worker_threads` and `module`. */
const noTransports: Plugin = {
  name: 'no-transports',
  setup(bundle) {
    bundle.onLoad({ filter: /node_modules\/pino\/lib\/transport\.js$/ }, () => ({
      contents: "module.exports = () => { throw new Error('this build has no transports') };",
    }));
  },
};

await rm(dist, { recursive: true, force: true });
const { metafile } = await build({
  absWorkingDir: root,
  entryPoints: ['src/main.ts'],
  outdir: 'dist',
  chunkNames: 'parts/[name]-[hash]',
  bundle: true,
  splitting: true,
  platform: 'node',
  format: 'esm',
  target: 'node24',
  plugins: [noTransports],
  // For modules that are not ES modules and ask for those of Node.js.
  banner: { js: 'const require=process.getBuiltinModule;' },
  // Names stay as they are written, so that a stack trace can be read.
  minifySyntax: true,
  minifyWhitespace: true,
  legalComments: 'none',
  metafile: true,
  logLevel: 'warning',
});
for (const file of Object.keys(metafile.outputs).filter((name) => name.endsWith('.js'))) {
  const path = join(root, file);
  await writeFile(path, withoutFacades(await readFile(path, 'utf8')));
}
await writeFile(join(dist, 'LICENSES.txt'), await licencesOf(Object.keys(metafile.inputs)));

/** What the licences of the bundled packages ask for: their texts. */
async function licencesOf(inputs: readonly string[]): Promise<string> {
  const packages = new Set(
    inputs.flatMap((input) => /^node_modules\/(?:@[^/]+\/)?[^/]+/.exec(input)?.[0] ?? []),
  );
  const texts: string[] = [];
  for (const folder of [...packages].toSorted()) {
    const [file] = globSync('{LICENSE,LICENCE,license}*', { cwd: join(root, folder) });
    if (file === undefined) throw new Error(`${folder} has no licence to pass on`);
    texts.push(
      `${folder.slice('node_modules/'.length)}\n\n${await readFile(join(root, folder, file), 'utf8')}`,
    );
  }
  return texts.join(`\n${'-'.repeat(72)}\n\n`);
}

/**
 * Takes Node's own modules by `process.getBuiltinModule`. To `import` one reads everything that it exports, and some of
 * that loads a world of its own when it is read: `node:http` all of undici, 14 MiB that nobody uses.
 */
function withoutFacades(code: string): string {
  const mended = code.replaceAll(
    /\bimport(?<all>[^"';]*?)from"(?<name>node:[a-z0-9_/]+|[a-z_]+(?:\/[a-z_]+)*)";/g,
    (...match) => {
      const { all, name } = match.at(-1) as { all: string; name: string };
      return all
        .split(/,(?![^{]*\})/)
        .map((part) => {
          const names = part
            .trim()
            .replace(/^\* as /, '')
            .replaceAll(' as ', ':');
          return `const ${names}=process.getBuiltinModule("${name}");`;
        })
        .join('');
    },
  );
  const left = /\bimport[^"';(]*from"(?!\.)[^"]*"/.exec(mended)?.[0];
  if (left !== undefined) throw new Error(`the bundle still has ${left}`);
  return mended;
}
