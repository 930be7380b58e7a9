import manifest from '../../package.json' with { type: 'json' };

/** The version of this package, which a build takes into its bundle. */
export async function packageVersion(): Promise<string> {
  return manifest.version;
}
