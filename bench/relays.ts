import { createHash } from 'node:crypto';
import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { aptInstall, executable, which } from '../test/support/servers/install.ts';
import { answers, freePort, launch, mark, ready, run } from '../test/support/servers/process.ts';
import { cache, discard, freshFolder, writeRecord } from '../test/support/servers/state.ts';
import { Unavailable } from '../test/support/servers.ts';

/** A relay that knows nothing of PostgreSQL: the client logs in through it, with a password of its own. */
export class PlainRelay implements AsyncDisposable {
  readonly port: number;
  readonly pid: number;
  readonly #record: string;

  private constructor(record: string, port: number, pid: number) {
    this.#record = record;
    this.port = port;
    this.pid = pid;
  }

  /** One thread, as Postern's epoll engine has one, and nothing tuned. */
  static async haproxy(upstream: number): Promise<PlainRelay> {
    const program = await haproxyProgram();
    return await PlainRelay.#start('haproxy', async (port, folder) => {
      const config = join(folder, 'haproxy.cfg');
      await writeFile(config, haproxyConfig(port, upstream));
      return [program, '-db', '-f', config];
    });
  }

  /** `ca`: asks PostgreSQL for TLS, and verifies it. */
  static async go(upstream: number, ca: string | undefined): Promise<PlainRelay> {
    const program = await goRelayProgram();
    const secure = ca === undefined ? [] : [ca, 'localhost'];
    return await PlainRelay.#start('go', (port) =>
      Promise.resolve([program, `127.0.0.1:${port}`, `127.0.0.1:${upstream}`, ...secure]),
    );
  }

  static async #start(
    kind: string,
    words: (port: number, folder: string) => Promise<readonly string[]>,
  ): Promise<PlainRelay> {
    const port = await freePort();
    const record = `bench-${kind}-${process.pid}-${port}`;
    const folder = await freshFolder(record);
    const log = join(folder, 'log');
    const [command = '', ...args] = await words(port, folder);
    const daemon = await launch({ command, args, log, cwd: folder });
    await writeRecord(record, { process: daemon, port, info: {}, owner: mark(process.pid), ready: true });
    await ready(kind, daemon, log, () => answers(port));
    return new PlainRelay(record, port, daemon.pid);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await discard(this.#record);
  }
}

/** The version of HAProxy, installed where that is possible and it is missing. */
export async function haproxyVersion(): Promise<string> {
  const { stdout } = await run(await haproxyProgram(), ['-v']);
  return stdout.split('\n')[0]?.replace(/ - .*/, '').trim() ?? '';
}

async function haproxyProgram(): Promise<string> {
  const found = await which('haproxy');
  if (found) return found;
  await aptInstall(['haproxy']);
  const installed = await which('haproxy');
  if (!installed) throw new Unavailable('haproxy is not installed');
  return installed;
}

/** Without `maxconn`, which it then makes of the limit of open files. */
function haproxyConfig(port: number, upstream: number): string {
  return `global
  nbthread 1
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen postgres
  bind 127.0.0.1:${port} backlog 4096
  server postgres 127.0.0.1:${upstream}
`;
}

/** Builds the relay in Go once for each version of its source. */
async function goRelayProgram(): Promise<string> {
  const source = join(import.meta.dirname, 'go-relay', 'main.go');
  const name = createHash('sha256')
    .update(await readFile(source))
    .digest('hex')
    .slice(0, 16);
  const program = join(await cache('bench'), `go-relay-${name}`);
  if (await executable(program)) return program;
  const go = (await which('go')) ?? (await which('/usr/local/go/bin/go'));
  if (!go) throw new Unavailable('go is not installed');
  const draft = `${program}.${process.pid}`;
  await run(go, ['build', '-o', draft, source], {
    env: { ...process.env, CGO_ENABLED: '0', GOFLAGS: '', GOTOOLCHAIN: 'local' },
    timeout: 300_000,
  });
  await rename(draft, program);
  return program;
}
