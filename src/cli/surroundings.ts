/** Switches of Node.js that show or write down what the process keeps secret, or open it to whoever comes. */
const telling = new Map([
  ['--inspect', 'opens a debugger, through which every secret can be read'],
  ['--inspect-brk', 'opens a debugger, through which every secret can be read'],
  ['--inspect-wait', 'opens a debugger, through which every secret can be read'],
  ['--inspect-port', 'opens a debugger, through which every secret can be read'],
  ['--debug-port', 'opens a debugger, through which every secret can be read'],
  ['--trace-tls', 'prints what goes over TLS'],
  ['--tls-keylog', 'writes down the keys of every TLS connection'],
  ['--heap-prof', 'writes down what is in memory'],
  ['--heapsnapshot-signal', 'writes down what is in memory'],
  ['--heapsnapshot-near-heap-limit', 'writes down what is in memory'],
  ['--report-on-signal', 'writes down the environment'],
  ['--report-on-fatalerror', 'writes down the environment'],
  ['--report-uncaught-exception', 'writes down the environment'],
  ['--abort-on-uncaught-exception', 'leaves a core file with all memory in it'],
]);

/**
 * What of the process's surroundings would give secrets away, as a sentence; undefined when nothing does. They come
 * with an environment that was meant for another program: an application's `.env`, a shell in which somebody debugs.
 * Node.js reads them before the first line of this program runs, so that it is too late to do without them.
 */
export function givesSecretsAway(
  environment: Readonly<Record<string, string | undefined>>,
  flags: readonly string[],
): string | undefined {
  for (const name of ['NODE_DEBUG', 'NODE_DEBUG_NATIVE'])
    if (environment[name])
      return `${name} is set: Node.js would print what passes through it, header fields with secrets too. Unset it for this program`;
  // Node asks for this at every connection that does not say itself whether it verifies.
  if (environment['NODE_TLS_REJECT_UNAUTHORIZED'] === '0')
    return 'NODE_TLS_REJECT_UNAUTHORIZED=0 is set: it is meant to let any server be taken for the right one. Unset it for this program; where a server cannot be verified, its entry in the configuration says so';
  const given = [...words(environment['NODE_OPTIONS'] ?? ''), ...flags];
  for (const word of given) {
    // Node.js takes an underscore for a hyphen.
    const [flag = ''] = word.replaceAll('_', '-').split('=');
    const does = telling.get(flag);
    if (does !== undefined) return `Node.js was started with ${flag}, which ${does}. Leave it out`;
  }
  return undefined;
}

/** Words may stand in quotes, with backslashes before what is meant as it is. */
function words(options: string): string[] {
  return options.replaceAll(/["\\]/g, '').split(/\s+/);
}
