import { main } from './cli/index.ts';

// Node opens its debugger at a SIGUSR1 that nobody listens for, and through it every secret could be read. The flag
// that forbids it (--disable-sigusr1) would also keep the signal from reloading, as it does in Secretless.
process.on('SIGUSR1', () => {});

process.exitCode = await main(process.argv.slice(2));
