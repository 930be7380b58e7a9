import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { which } from '../test/support/servers/install.ts';
import {
  capture,
  freePort,
  type Identity,
  Unavailable,
  unprivileged,
} from '../test/support/servers/process.ts';
import { startApi } from './api.ts';
import { Crew, type Member } from './crew.ts';
import { type LogLine, Postern } from './postern.ts';
import { database, Postgres, role } from './postgres.ts';
import { Screen } from './screen.ts';
import { fileStore, openBaoStore, type Store } from './store.ts';
import { Trouble } from './trouble.ts';

const usage = `npm run demo -- [--keep] [--store openbao|file]
  Shows Postern at work on this machine: an application reaches PostgreSQL without
  a password, also after the password was changed, and an HTTP API without a token.
  Leaves nothing behind.
    --keep         leave it running for your own psql, until Ctrl-C
    --store NAME   where the password is kept: openbao (needs the program bao or
                   vault) or file; default: openbao where its program is found
`;

interface Choices {
  readonly keep: boolean;
  readonly store: 'openbao' | 'file' | undefined;
}

/** What the tour needs and what is ended and removed after it. */
interface Stage {
  readonly screen: Screen;
  readonly crew: Crew;
  readonly folder: string;
  /** Whom PostgreSQL runs as; undefined: ourselves. */
  readonly identity: Identity | undefined;
  readonly choices: Choices;
}

/** The whole demo, told in the order in which it happens. */
async function tour({ screen, crew, folder, identity, choices }: Stage): Promise<void> {
  screen.heading('Postern: an application that reaches PostgreSQL and has no password');

  screen.step('A PostgreSQL, with a role for the application');
  const postgres = await Postgres.start(crew, folder, identity);
  const passwords = [newPassword()];
  await postgres.setPassword(passwords[0] ?? '');
  screen.say(`PostgreSQL ${postgres.version} listens on 127.0.0.1:${postgres.port} and asks for SCRAM.`);
  screen.say(`The role "${role}" has a random password, which this terminal never shows.`);

  screen.step('A secret store, the only place that has the password');
  const store = await chooseStore(crew, folder, choices.store);
  const token = newPassword();
  await store.write({ username: role, password: passwords[0] ?? '', token });
  screen.say(store.title);
  screen.say(store.about);

  screen.step('Postern, started as you would: bin/postern -f postern.yaml');
  const at = { port: await freePort(), httpPort: await freePort(), adminPort: await freePort() };
  const { port, httpPort, adminPort } = at;
  const apiPort = await startApi(token);
  const configuration = describe(postgres, apiPort, store, at);
  screen.show(configuration);
  const postern = await Postern.start(crew, folder, configuration);
  screen.say(`It is ready, on 127.0.0.1:${port} for the database and :${httpPort} for an HTTP API.`);

  screen.step('The application: demo/application.ts, with an ordinary driver');
  const environment = {
    HOME: folder,
    PATH: process.env['PATH'] ?? '',
    PGHOST: '127.0.0.1',
    PGPORT: String(port),
    PGDATABASE: database,
    PGUSER: 'anything',
    ORDERS_API: `http://127.0.0.1:${httpPort}`,
  };
  const application = new Application(crew, environment, folder);
  screen.say('This is its whole environment:');
  const seen = (await application.tell('environment')) as Record<string, string>;
  screen.table(Object.entries(seen).toSorted(([a], [b]) => a.localeCompare(b)));
  refuseSecrets(seen, [...passwords, token, ...store.keys]);
  screen.say('No password, no token (the demo has searched it for them).');

  screen.step('It connects');
  screen.table(rowsOf(await application.tell('connect')));
  screen.good(`It asked for the user "anything" and is "${role}".`);
  const psql = await which('psql');
  const line = `psql "host=127.0.0.1 port=${port} user=anything dbname=${database}"`;
  if (psql) await tryPsql(screen, crew, psql, environment, line);

  screen.step('Now the password is rotated, while everything runs');
  passwords.push(newPassword());
  await postgres.setPassword(passwords[1] ?? '');
  await store.write({ username: role, password: passwords[1] ?? '', token });
  screen.say(`ALTER ROLE ${role} PASSWORD '...' in the database, and the new one in the store.`);
  screen.say('Neither Postern nor the application was touched or told.');
  const refusal = await postgres.refusal(passwords[0] ?? '');
  if (refusal === undefined) throw new Trouble('PostgreSQL still takes the old password');
  screen.say('The old password, tried directly at PostgreSQL:');
  screen.show(refusal);

  screen.step('The application connects once more');
  screen.table(rowsOf(await application.tell('connect')));
  screen.good('The new password, and nobody had to bring it to the application.');
  screen.say('Its first session, opened before the rotation, still answers:');
  screen.table(rowsOf(await application.tell('ask-first')).filter(([name]) => name !== 'server'));

  screen.step('An HTTP API that wants a token');
  const direct = await fetch(`http://127.0.0.1:${apiPort}/orders`);
  screen.say(`Asked directly, it says ${direct.status}: ${(await direct.text()).trim()}`);
  const curl = `curl http://127.0.0.1:${httpPort}/orders`;
  screen.say('The application asks Postern, like this, and still has no token:');
  screen.show(curl);
  const { status, body } = (await application.tell('ask-api')) as { status: number; body: string };
  if (direct.status !== 401 || status !== 200) throw new Trouble(`the API answered with ${status}`);
  screen.good(`${status}: ${body}`);

  await application.leave();
  screen.step('What Postern wrote down: one line for each session');
  const sessions = await ended(postern, psql ? 4 : 3);
  for (const session of sessions) showSession(screen, session);
  screen.good('Names, versions and durations; never a value.');

  if (choices.keep) {
    screen.step('It is yours');
    screen.say('It runs until you press Ctrl-C. In another terminal:');
    screen.show(`${line}\n${curl}\ncurl http://127.0.0.1:${adminPort}/metrics`);
    next(screen);
    return;
  }
  screen.step('What to try next');
  screen.say('The same again, left running for your own psql until Ctrl-C:');
  screen.show('npm run demo -- --keep');
  screen.say('and then, in another terminal, a line like this one:');
  screen.show(line);
  next(screen);
}

function next(screen: Screen): void {
  screen.say(
    'README.md goes on from here: your own database and Vault in five minutes, and Postern beside a pod in Kubernetes. docs/configuration.md has every setting, examples/ whole files to start from.',
  );
}

function newPassword(): string {
  return randomBytes(24).toString('base64url');
}

async function chooseStore(crew: Crew, folder: string, wanted: Choices['store']): Promise<Store> {
  const openBao = wanted === 'file' ? undefined : await openBaoStore(crew, folder);
  if (openBao) return openBao;
  if (wanted === 'openbao')
    throw new Trouble(
      'there is no program "bao" or "vault" on the PATH: install OpenBao, or leave out --store',
    );
  return await fileStore(folder);
}

interface Ports {
  readonly port: number;
  readonly httpPort: number;
  readonly adminPort: number;
}

function describe(postgres: Postgres, apiPort: number, store: Store, at: Ports): string {
  return `version: 2
providers:
${store.provider}
services:
  orders-db:
    connector: postgres
    listenOn: tcp://127.0.0.1:${at.port}
    credentials:
      username: ${store.reference('username')}
      password: ${store.reference('password')}
    config:
      host: 127.0.0.1
      port: ${postgres.port}
      tls: { mode: disable } # the same machine; the default is verify-full
  orders-api:
    connector: http
    listenOn: tcp://127.0.0.1:${at.httpPort}
    credentials:
      token: ${store.reference('token')}
    config:
      upstream: http://127.0.0.1:${apiPort}
      authenticate: { bearer: token }
      allowPlainHttp: true # the same machine; else only https://
admin: { listenOn: "tcp://127.0.0.1:${at.adminPort}" }
`;
}

/** The application's process; it obeys a word a line. */
class Application {
  readonly #crew: Crew;
  readonly #member: Member;
  #answers = 0;

  constructor(crew: Crew, environment: Readonly<Record<string, string>>, cwd: string) {
    const script = fileURLToPath(new URL('./application.ts', import.meta.url));
    this.#crew = crew;
    this.#member = crew.start({ command: process.execPath, args: [script], env: { ...environment }, cwd });
  }

  async tell(word: string): Promise<unknown> {
    const expected = ++this.#answers;
    this.#member.child.stdin?.write(`${word}\n`);
    const line = await this.#crew.until('the application', this.#member, () => {
      const lines = this.#member.stdout.split('\n').slice(0, -1);
      return lines[expected - 1];
    });
    const { answer, error } = JSON.parse(line) as { answer?: unknown; error?: string };
    if (error !== undefined) throw new Trouble(`the application was told: ${error}`);
    return answer;
  }

  /** Lets it close its sessions and end. */
  async leave(): Promise<void> {
    this.#member.child.stdin?.end();
    await this.#member.ended;
  }
}

function refuseSecrets(environment: Readonly<Record<string, string>>, secrets: readonly string[]): void {
  const found = Object.entries(environment).find(([, value]) => secrets.some((s) => value.includes(s)));
  if (found) throw new Trouble(`there is a secret in the variable ${found[0]} of the application`);
}

function rowsOf(answer: unknown): [string, string][] {
  return Object.entries(answer as Record<string, unknown>).map(([name, value]) => [
    name,
    String(value).replace(/ on .*/, ''),
  ]);
}

async function tryPsql(
  screen: Screen,
  crew: Crew,
  psql: string,
  environment: Readonly<Record<string, string>>,
  line: string,
): Promise<void> {
  screen.say('Another one, psql:');
  screen.show(`${line} \\\n  -c "select current_user"`);
  const target = /"(.*)"/.exec(line)?.[1] ?? '';
  const answer = await crew.run('psql', {
    command: psql,
    args: ['--no-psqlrc', '--no-password', '-At', '-c', 'select current_user', target],
    env: { HOME: environment['HOME'], PATH: environment['PATH'], LC_ALL: 'C' },
  });
  screen.say(answer.trim());
}

/** The log lines of `count` sessions that have ended. */
async function ended(postern: Postern, count: number): Promise<LogLine[]> {
  const found = () => postern.lines.filter(({ msg }) => msg === 'session ended' || msg === 'session failed');
  await postern.logged('Postern', () => found().length >= count);
  return found();
}

const told = [
  'service',
  'application',
  'database',
  'credential',
  'upstream',
  'auth',
  'requests',
  'outcome',
  'loginMs',
  'durationMs',
  'bytesFromUpstream',
];

function showSession(screen: Screen, line: LogLine): void {
  const time = String(line['time']).slice(11, 19);
  const facts = told.filter((name) => name in line).map((name) => [name, String(line[name])] as const);
  screen.logLine(time, String(line['msg']), facts);
}

/** A folder that PostgreSQL's user can pass through, even where TMPDIR is closed to others. */
async function newFolder(identity: Identity | undefined): Promise<string> {
  const parents = [tmpdir(), '/tmp'];
  for (const parent of parents) {
    const open =
      identity === undefined || (await capture('test', ['-x', parent], { identity, cwd: '/' })).code === 0;
    if (!open) continue;
    const folder = await mkdtemp(join(parent, 'postern-demo-'));
    await chmod(folder, 0o711);
    return folder;
  }
  throw new Trouble(
    `the user that PostgreSQL runs as cannot reach ${parents.join(' or ')}: set TMPDIR to a folder it can`,
  );
}

function parse(words: readonly string[]): Choices | string {
  try {
    const options = {
      keep: { type: 'boolean' },
      store: { type: 'string' },
      help: { type: 'boolean' },
    } as const;
    const { keep = false, store, help } = parseArgs({ args: [...words], options }).values;
    if (help) return '';
    if (store !== undefined && store !== 'openbao' && store !== 'file') return '--store is openbao or file';
    return { keep, store };
  } catch (error) {
    return (error as Error).message;
  }
}

/** One sentence, whatever happened. */
function sentence(error: unknown): string {
  if (error instanceof Trouble) return `The demo stopped: ${error.message}`;
  if (error instanceof Unavailable) return `The demo cannot run here: ${error.message}`;
  const { message, code } = error as NodeJS.ErrnoException;
  return `The demo stopped: ${code ? `${code}, ` : ''}${message.split('\n')[0]} (run it again; if it stays, please report it)`;
}

async function main(words: readonly string[]): Promise<number> {
  const choices = parse(words);
  if (typeof choices === 'string') {
    process[choices === '' ? 'stdout' : 'stderr'].write(`${choices === '' ? '' : `${choices}\n\n`}${usage}`);
    return choices === '' ? 0 : 2;
  }
  const screen = new Screen();
  const crew = new Crew();
  const interrupted = interruption();
  let folder: string | undefined;
  let touring: Promise<void> | undefined;
  let toured = false;
  try {
    const identity = await unprivileged();
    folder = await newFolder(identity);
    touring = tour({ screen, crew, folder, identity, choices });
    const ended = touring.then(async () => {
      toured = true;
      if (choices.keep) await interrupted;
      return 0;
    });
    const cut = interrupted.then((number) => (toured ? 0 : 128 + number));
    return await Promise.race([ended, cut]);
  } catch (error) {
    screen.trouble(sentence(error));
    return 1;
  } finally {
    await crew.dismiss();
    // A tour that was interrupted goes on until it notices that its processes are gone.
    const patience = new Promise((resolve) => setTimeout(resolve, 3000));
    await Promise.race([touring?.catch(() => {}), patience]);
    if (folder !== undefined) await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** Settles at Ctrl-C and its like. Further ones change nothing: what is left then is to clean up, which is quick. */
async function interruption(): Promise<number> {
  const signals = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 };
  // Whoever read the output has gone (SIGPIPE, which Node makes an error of every further write).
  const gone = new Promise<number>((resolve) => process.stdout.on('error', () => resolve(13)));
  process.stderr.on('error', () => {});
  const asked = Object.entries(signals).map(async ([name, number]) => {
    process.on(name, () => {});
    await once(process, name);
    return number;
  });
  return await Promise.race([...asked, gone]);
}

process.exitCode = await main(process.argv.slice(2));
// A connection to a server that is gone must not keep the program.
process.exit();
