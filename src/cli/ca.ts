import { generateKeyPairSync, X509Certificate } from 'node:crypto';
import { chmod, mkdir, open, readFile, unlink, writeFile } from 'node:fs/promises';
import { isIP } from 'node:net';
import { hostname } from 'node:os';
import { join, resolve } from 'node:path';
import { getCACertificates, rootCertificates } from 'node:tls';
import { pino } from 'pino';

import type { Config, ServiceConfig } from '../config/config.ts';
import { loadConfig } from '../config/load.ts';
import type { InterceptSettings } from '../connectors/http/authority.ts';
import { certificatesOf, issueRoot } from '../connectors/http/certificate.ts';
import { formatAddress } from '../core/address.ts';
import { PosternError, reasonOf } from '../core/errors.ts';
import { loadOne } from '../core/table.ts';
import { providers } from '../providers/index.ts';
import { proxyVariables, trustVariables, urlOf } from './child-environment.ts';
import { exitCodes } from './exit-codes.ts';
import { parseFlags, parseOptions, UsageError } from './options.ts';

const DEFAULT_DAYS = 730;
/** How long a provider may take to answer with a certificate, in milliseconds. */
const FETCH_TIMEOUT = 15_000;

/** `postern ca`: makes a local certificate authority, and says what clients need to trust the one that is configured. */
export async function ca(
  [action, ...words]: readonly string[],
  environment: NodeJS.ProcessEnv,
): Promise<number> {
  if (action === 'create') return await create(words);
  if (action === 'show') return await show(words, environment);
  throw new UsageError('write `postern ca create` or `postern ca show`');
}

async function create(words: readonly string[]): Promise<number> {
  const {
    out,
    host = [],
    days = String(DEFAULT_DAYS),
  } = parseFlags(words, {
    out: { type: 'string' },
    host: { type: 'string', multiple: true },
    days: { type: 'string' },
  });
  if (out === undefined) throw new UsageError('`postern ca create` needs `--out FOLDER`');
  const hosts = host.map((each) => each.toLowerCase());
  for (const each of hosts)
    if (!isIP(each) && !/^[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?$/.test(each))
      throw new UsageError('`--host` takes a name, which stands for all below it too, or an address');
  if (!/^[1-9]\d{0,4}$/.test(days)) throw new UsageError('`--days` takes a whole number');

  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  // Clients tell authorities apart by their names.
  const name = `Postern local CA of ${hostname()} ${new Date().toISOString().slice(0, 16)}`.slice(0, 64);
  const certificate = issueRoot(privateKey, { name, days: Number(days), hosts });
  const key = Buffer.from(privateKey.export({ type: 'pkcs8', format: 'pem' }));
  const [certPath, keyPath] = [join(out, 'ca.crt'), join(out, 'ca.key')];
  try {
    await mkdir(out, { recursive: true }).catch((cause: unknown) => {
      throw new PosternError('CONFIG_INVALID', `cannot make the folder ${out}: ${reasonOf(cause)}`, {
        cause,
      });
    });
    await writeNew(keyPath, key, 0o600);
    await writeNew(certPath, Buffer.from(certificate), 0o644).catch(async (error: unknown) => {
      await unlink(keyPath);
      throw error;
    });
  } finally {
    key.fill(0);
  }
  say(`${certPath}: ${describe(new X509Certificate(certificate))}`);
  say(`${keyPath}: its key, for Postern alone`);
  say(
    hosts.length > 0 ? `It vouches for ${hosts.join(', ')} and nothing else.` : 'It may vouch for any host.',
  );
  say(`Give the service \`config: { intercept: { caCert: ${certPath}, caKey: ${keyPath} } }\``);
  say('and its clients what `postern ca show` prints.');
  return exitCodes.clean;
}

/** Never in the place of another file: an authority that clients trust would be gone. */
async function writeNew(path: string, bytes: Buffer, mode: number): Promise<void> {
  try {
    await using file = await open(path, 'wx', mode);
    await file.writeFile(bytes);
    // The mode above is cut by the umask, which may be too strict for who has to read a certificate.
    await file.chmod(mode);
    await file.sync();
  } catch (cause) {
    const reason = reasonOf(cause);
    const why = reason === 'EEXIST' ? 'there is such a file, which is left alone' : reason;
    throw new PosternError('CONFIG_INVALID', `cannot write ${path}: ${why}`, { cause });
  }
}

async function show(words: readonly string[], environment: NodeJS.ProcessEnv): Promise<number> {
  const { service, pem, bundle, file, config } = parseFlags(words, {
    config: { type: 'string', short: 'f', multiple: true },
    service: { type: 'string' },
    pem: { type: 'boolean' },
    bundle: { type: 'string' },
    file: { type: 'string' },
  });
  const options = parseOptions(
    (config ?? []).flatMap((path) => ['-f', path]),
    environment,
  );
  const loaded = await loadConfig(options.configPaths, options.context);
  const chosen = choose(loaded, service);
  const certificate = await certificateOf(chosen, loaded, environment);
  const authority = certificatesOf(certificate)[0];
  if (!authority) throw new PosternError('CONFIG_INVALID', 'the configured caCert holds no certificate');
  if (pem) {
    process.stdout.write(String(authority));
    return exitCodes.clean;
  }
  const path = file ?? chosen.intercept.caCert;
  if (bundle !== undefined) await writeBundle(bundle, String(authority));
  if (path === undefined && bundle === undefined)
    throw new UsageError(
      'the certificate is a credential: put what `--pem` prints into a file that clients can read, and name it with `--file PATH`',
    );
  const lines = [
    `# ${describe(authority)}`,
    ...linesFor(chosen.service, resolve(path ?? bundle ?? ''), bundle && resolve(bundle)),
  ];
  for (const line of lines) say(line);
  return exitCodes.clean;
}

/** A service that looks into tunnels, with its settings for that. */
export interface Interceptor {
  readonly service: ServiceConfig;
  readonly intercept: InterceptSettings;
}

/** Every service that looks into tunnels. */
export function interceptors({ services }: Config): Interceptor[] {
  return services.flatMap((service): Interceptor[] => {
    const { intercept } = (service.settings ?? {}) as { readonly intercept?: InterceptSettings };
    return service.connector === 'http' && intercept ? [{ service, intercept }] : [];
  });
}

function choose(config: Config, name: string | undefined): Interceptor {
  const found = interceptors(config);
  const wanted = name === undefined ? found : found.filter(({ service }) => service.name === name);
  const [first] = wanted;
  if (!first) {
    const which = name === undefined ? 'no service has' : `the service "${name}" has no`;
    throw new PosternError('CONFIG_INVALID', `${which} \`intercept:\` in its config`);
  }
  const addresses = new Set(wanted.map(({ service }) => formatAddress(service.listenOn)));
  if (addresses.size > 1) {
    const names = wanted.map(({ service }) => service.name).join(', ');
    throw new UsageError(`several listeners intercept; choose one with \`--service\`: ${names}`);
  }
  return first;
}

/** The certificate of the authority that a service intercepts with: a file, or a credential of its provider. */
export async function certificateOf(
  { service, intercept: { caCert } }: Interceptor,
  config: Config,
  environment: NodeJS.ProcessEnv,
): Promise<Buffer> {
  if (caCert !== undefined) {
    try {
      return await readFile(caCert);
    } catch (cause) {
      throw new PosternError('CONFIG_INVALID', `cannot read ${caCert} (${reasonOf(cause)})`, { cause });
    }
  }
  const reference = service.credentials.get('caCert');
  const entry = reference && config.providers.get(reference.provider);
  const kind = entry && (await loadOne(providers, entry.kind));
  if (!reference || !kind) throw new PosternError('INTERNAL', 'the certificate has no provider');
  const log = pino({ level: 'silent' });
  const provider = kind.open(entry.settings, { name: entry.name, log, environment });
  try {
    const { secrets } = await provider.fetch([reference.get], AbortSignal.timeout(FETCH_TIMEOUT));
    return Buffer.from(secrets[0]?.reveal() ?? '');
  } finally {
    await provider.close(AbortSignal.timeout(FETCH_TIMEOUT));
  }
}

/** Most clients take a file of authorities in place of the system's, not beside them: this one has both. */
export async function writeBundle(path: string, certificate: string): Promise<void> {
  const system = getCACertificates('system');
  const roots = system.length > 0 ? system : rootCertificates;
  try {
    await writeFile(path, [certificate, ...roots].map((each) => `${each.trim()}\n`).join(''));
    await chmod(path, 0o644);
  } catch (cause) {
    throw new PosternError('CONFIG_INVALID', `cannot write ${path}: ${reasonOf(cause)}`, { cause });
  }
}

function linesFor(
  { name, listenOn, listenTls }: ServiceConfig,
  certificate: string,
  bundle: string | undefined,
): string[] {
  const trust = exportLines(trustVariables({ certificate, bundle: bundle ?? certificate }));
  if (bundle === undefined)
    trust.push(
      '# With these, clients trust this authority alone; `--bundle FILE` writes one with the public ones too.',
    );
  if (listenOn.kind === 'unix' || listenOn.port === 0)
    return [`# The service "${name}" has no fixed TCP port, which a variable could name.`, ...trust];
  return [...exportLines(proxyVariables(urlOf(listenOn, { listenTls }))), ...trust];
}

function exportLines(variables: Readonly<Record<string, string>>): string[] {
  return Object.entries(variables).map(([variable, value]) => set(variable, value));
}

function set(variable: string, value: string): string {
  return `export ${variable}='${value.replaceAll("'", "'\\''")}'`;
}

function describe(certificate: X509Certificate): string {
  const name = /^CN=(.*)$/m.exec(certificate.subject)?.[1] ?? certificate.subject.replaceAll('\n', ', ');
  return `${name}, valid until ${certificate.validToDate.toISOString().slice(0, 10)}, SHA-256 ${certificate.fingerprint256}`;
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}
