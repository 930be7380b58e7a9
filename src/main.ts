import { exitCodes } from './cli/exit-codes.ts';
import { main } from './cli/index.ts';
import { givesSecretsAway } from './cli/surroundings.ts';

// Node opens its debugger at a SIGUSR1 that nobody listens for, and through it every secret could be read. The flag
// that forbids it (--disable-sigusr1) would also keep the signal from reloading, as it does in Secretless.
process.on('SIGUSR1', () => {});

const danger = givesSecretsAway(process.env, process.execArgv);
if (danger !== undefined) process.stderr.write(`postern: ${danger}\n`);
const code = danger === undefined ? await main(process.argv.slice(2)) : exitCodes.usage;
// What a bug has left open (listeners, sessions) would keep the process for ever, neither serving nor gone.
if (code === exitCodes.internal) process.exit(code);
process.exitCode = code;
