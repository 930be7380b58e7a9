/**
 * Makes the npm packages of the compiled addon out of the binaries in `native/`, one for each: `native-packages.ts FOLDER`
 * writes them there, ready for `npm pack` and `npm publish`. With `--depend` package.json names them all as optional
 * dependencies: when publishing only, because `npm ci` refuses to install what is not published yet.
 */
import { copyFile, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = fileURLToPath(new URL('../', import.meta.url));

/** What there are packages for: native/README.md says why no others. */
const targets = ['linux-x64-gnu', 'linux-x64-musl', 'linux-arm64-gnu', 'linux-arm64-musl'] as const;

const { values, positionals } = parseArgs({
  options: { depend: { type: 'boolean', default: false } },
  allowPositionals: true,
});
const [folder] = positionals;
if (!folder) throw new Error('usage: native-packages.ts FOLDER [--depend]');

const main = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as Record<string, unknown> & {
  version: string;
};
const present = await readdir(join(root, 'native'));
const built = targets.filter((target) => present.includes(`postern-native.${target}.node`));
for (const target of built) {
  const [os = '', cpu = '', libc = ''] = target.split('-');
  const file = `postern-native.${target}.node`;
  const description = {
    name: `@postern/native-${target}`,
    version: main.version,
    description: `The compiled half of Postern's relay for ${target}`,
    license: main['license'],
    main: file,
    files: [file],
    os: [os],
    cpu: [cpu],
    libc: [libc === 'gnu' ? 'glibc' : libc],
    engines: main['engines'],
  };
  const home = join(folder, target);
  await mkdir(home, { recursive: true });
  await copyFile(join(root, 'native', file), join(home, file));
  await copyFile(join(root, 'LICENSE'), join(home, 'LICENSE'));
  await writeFile(join(home, 'package.json'), `${JSON.stringify(description, null, 2)}\n`);
  console.log(home);
}
if (values.depend) {
  const missing = targets.filter((target) => !built.includes(target));
  if (missing.length > 0) throw new Error(`not built: ${missing.join(', ')}`);
  const optionalDependencies = Object.fromEntries(
    targets.map((target) => [`@postern/native-${target}`, main.version]),
  );
  await writeFile(
    join(root, 'package.json'),
    `${JSON.stringify({ ...main, optionalDependencies }, null, 2)}\n`,
  );
}
