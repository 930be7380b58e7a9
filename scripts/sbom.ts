// sbom.ts NPM.json CARGO.lock: adds to npm's list of packages (CycloneDX, `npm sbom --sbom-format=cyclonedx`) what npm does
// not know of: the crates of the native half, and Node.js with the libraries that are compiled into it. Run by the Node.js
// that the list is for.
import { readFileSync } from 'node:fs';

interface Component {
  readonly 'bom-ref': string;
  readonly type: 'library' | 'platform';
  readonly name: string;
  readonly version: string;
  readonly purl?: string;
  readonly hashes?: readonly { readonly alg: 'SHA-256'; readonly content: string }[];
}

const [npmList = '', cargoLock = ''] = process.argv.slice(2);
const list = JSON.parse(readFileSync(npmList, 'utf8')) as { readonly components: readonly Component[] };

/** The packages of a Cargo.lock that come from a registry; the crate itself has no source and no checksum. */
function crates(lock: string): Component[] {
  const entry =
    /^\[\[package\]\]\nname = "([^"]+)"\nversion = "([^"]+)"\nsource = "[^"]+"\nchecksum = "([0-9a-f]{64})"$/gm;
  return [...lock.matchAll(entry)].map(([, name = '', version = '', content = '']) => {
    const purl = `pkg:cargo/${name}@${version}`;
    return { 'bom-ref': purl, type: 'library', name, version, purl, hashes: [{ alg: 'SHA-256', content }] };
  });
}

/** Node.js and its parts; of these, `modules`, `napi` and the like are numbers of interfaces. */
function runtime(): Component[] {
  const interfaces = new Set(['modules', 'napi', 'cldr', 'tz', 'unicode']);
  return (
    Object.entries(process.versions)
      // What this build was made without has no version.
      .filter(([name, version]) => version !== '' && !interfaces.has(name))
      .map(([name, version = '']) => {
        const purl = `pkg:generic/${name}@${encodeURIComponent(version)}`;
        return { 'bom-ref': purl, type: name === 'node' ? 'platform' : 'library', name, version, purl };
      })
  );
}

const components = [...list.components, ...crates(readFileSync(cargoLock, 'utf8')), ...runtime()];
process.stdout.write(`${JSON.stringify({ ...list, components }, null, 2)}\n`);
