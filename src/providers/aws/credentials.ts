import { homedir } from 'node:os';
import { join } from 'node:path';

import { PosternError } from '../../core/errors.ts';
import { JsonBytes } from '../../core/json-bytes.ts';
import { Secret } from '../../core/secret.ts';
import { Expiring } from '../expiring.ts';
import { Programs } from '../program.ts';
import type { ProviderContext } from '../provider.ts';
import { readSecretFile, withoutLineEnd } from '../secret-file.ts';
import { jsonOf, type StoreCall, type StoreClient } from '../store-client.ts';
import { AwsCredentials, copied, type ObtainedCredentials } from './identity.ts';
import { parseIni, type Section } from './ini.ts';
import type { CommonSettings } from './settings.ts';
import { assumeRole } from './sts.ts';

/** How long before their end credentials are replaced. */
const early = 5 * 60_000;
/** Nothing but the machine's own hypervisor answers there, at once or never. */
const metadataTimeout = 1000;
/** What can stand in a header. */
const printable = /^[\x20-\x7e]{1,16384}$/;
/** Longer chains of source_profile are a mistake. */
const maxProfiles = 5;

/**
 * Credentials as AWS's own clients find them: environment, shared files, web identity, container, instance metadata
 * (version 2 only). They are shared by all requests, and replaced five minutes before their end.
 */
export class CredentialChain {
  readonly #settings: CommonSettings;
  readonly #context: ProviderContext;
  readonly #client: StoreClient;
  readonly #programs: Programs;
  readonly #current: Expiring<AwsCredentials>;

  constructor(settings: CommonSettings, context: ProviderContext, client: StoreClient) {
    this.#settings = settings;
    this.#context = context;
    this.#client = client;
    this.#programs = new Programs(context.name);
    this.#current = new Expiring((signal) => this.#find(signal), {
      early,
      doing: `provider "${context.name}": finding credentials`,
    });
  }

  async lend<T>(
    use: (credentials: AwsCredentials, expiresAt: number) => Promise<T>,
    signal: AbortSignal,
  ): Promise<T> {
    return await this.#current.lend(use, signal);
  }

  /** AWS refused them: others are looked for. */
  discard(credentials: AwsCredentials): void {
    this.#current.discard(credentials);
  }

  /** The region, where neither a reference nor the settings name one. */
  async region(signal: AbortSignal): Promise<string | undefined> {
    const named =
      this.#settings.region ?? this.#variable('AWS_REGION') ?? this.#variable('AWS_DEFAULT_REGION');
    if (named !== undefined) return named;
    return await this.#withProfiles((profiles) => {
      const region = profiles.get(this.#profileName())?.get('region')?.toString('utf8');
      return Promise.resolve(region);
    }, signal);
  }

  async close(signal: AbortSignal): Promise<void> {
    this.#current.close();
    await this.#programs.close(signal);
  }

  async #find(signal: AbortSignal): Promise<ObtainedCredentials> {
    const { profile } = this.#settings;
    if (profile !== undefined) return await this.#fromSharedFiles(profile, signal, true);
    const found =
      this.#fromEnvironment() ??
      (await this.#fromSharedFilesIfAny(signal)) ??
      (await this.#fromWebIdentity(signal)) ??
      (await this.#fromContainer(signal));
    if (found) return found;
    return await this.#fromMetadata(signal);
  }

  #fromEnvironment(): ObtainedCredentials | undefined {
    const id = this.#variable('AWS_ACCESS_KEY_ID');
    const key = this.#variable('AWS_SECRET_ACCESS_KEY');
    if (id === undefined || key === undefined) return undefined;
    const token = this.#variable('AWS_SESSION_TOKEN');
    return lasting(new AwsCredentials(id, secretOf(key), token === undefined ? undefined : secretOf(token)));
  }

  async #fromSharedFilesIfAny(signal: AbortSignal): Promise<ObtainedCredentials | undefined> {
    const name = this.#profileName();
    const explicit = this.#variable('AWS_PROFILE') !== undefined;
    const usable = await this.#withProfiles(
      (profiles) => Promise.resolve(givesCredentials(profiles.get(name))),
      signal,
    );
    return usable || explicit ? await this.#fromSharedFiles(name, signal, explicit) : undefined;
  }

  async #fromSharedFiles(name: string, signal: AbortSignal, explicit: boolean): Promise<ObtainedCredentials> {
    return await this.#withProfiles((profiles) => {
      if (explicit && !profiles.has(name)) throw this.#failed(`there is no profile "${name}"`);
      return this.#fromProfile(name, profiles, signal, 1);
    }, signal);
  }

  async #fromProfile(
    name: string,
    profiles: ReadonlyMap<string, Section>,
    signal: AbortSignal,
    depth: number,
  ): Promise<ObtainedCredentials> {
    const profile = profiles.get(name);
    if (!profile) throw this.#failed(`there is no profile "${name}"`);
    if (depth > maxProfiles) throw this.#failed(`profile "${name}": source_profile goes in a circle`);
    const text = (key: string) => profile.get(key)?.toString('utf8') || undefined;

    const roleArn = text('role_arn');
    if (roleArn !== undefined) {
      if (text('mfa_serial')) {
        throw this.#failed(`profile "${name}" asks for a second factor, which nobody is there to give`);
      }
      const role = { roleArn, sessionName: text('role_session_name'), externalId: text('external_id') };
      const region = this.#settings.region ?? text('region') ?? this.#variable('AWS_REGION');
      const tokenFile = text('web_identity_token_file');
      if (tokenFile !== undefined) {
        return await this.#assume(
          { ...role, region, webIdentity: await this.#file(tokenFile, signal) },
          signal,
        );
      }
      const source = await this.#sourceOf(name, profiles, signal, depth);
      using signer = source.value;
      return await this.#assume({ ...role, region, signer }, signal);
    }

    const [id, key, token] = [
      text('aws_access_key_id'),
      profile.get('aws_secret_access_key'),
      profile.get('aws_session_token'),
    ];
    if (id !== undefined && key !== undefined) {
      return lasting(new AwsCredentials(id, copied(key), token && copied(token)));
    }
    const command = text('credential_process');
    if (command !== undefined) return await this.#fromProcess(command, signal);
    if (text('sso_session') ?? text('sso_start_url')) {
      const way = 'credential_process = aws configure export-credentials --profile NAME --format process';
      throw this.#failed(
        `profile "${name}" logs in by SSO, which Postern does not; use a profile with ${way}`,
      );
    }
    throw this.#failed(`profile "${name}" has no credentials`);
  }

  async #sourceOf(
    name: string,
    profiles: ReadonlyMap<string, Section>,
    signal: AbortSignal,
    depth: number,
  ): Promise<ObtainedCredentials> {
    const profile = profiles.get(name);
    const source = profile?.get('source_profile')?.toString('utf8');
    if (source === name) {
      // A profile may be its own source: then its keys are meant.
      const own = new Map([...(profile ?? [])].filter(([key]) => key !== 'role_arn'));
      return await this.#fromProfile(name, new Map([[name, own]]), signal, depth + 1);
    }
    if (source !== undefined) return await this.#fromProfile(source, profiles, signal, depth + 1);
    const from = profile?.get('credential_source')?.toString('utf8');
    const found =
      from === 'Environment'
        ? this.#fromEnvironment()
        : from === 'EcsContainer'
          ? await this.#fromContainer(signal)
          : from === 'Ec2InstanceMetadata'
            ? await this.#fromMetadata(signal)
            : undefined;
    if (found) return found;
    throw this.#failed(`profile "${name}" has a role, but no usable source_profile or credential_source`);
  }

  async #fromWebIdentity(signal: AbortSignal): Promise<ObtainedCredentials | undefined> {
    const path = this.#variable('AWS_WEB_IDENTITY_TOKEN_FILE');
    const roleArn = this.#variable('AWS_ROLE_ARN');
    if (path === undefined || roleArn === undefined) return undefined;
    const region =
      this.#settings.region ?? this.#variable('AWS_REGION') ?? this.#variable('AWS_DEFAULT_REGION');
    const sessionName = this.#variable('AWS_ROLE_SESSION_NAME');
    const webIdentity = await this.#file(path, signal);
    return await this.#assume({ roleArn, sessionName, externalId: undefined, region, webIdentity }, signal);
  }

  async #assume(role: Parameters<typeof assumeRole>[0], signal: AbortSignal): Promise<ObtainedCredentials> {
    try {
      return await assumeRole(role, this.#client, this.#context.environment, signal);
    } finally {
      role.webIdentity?.fill(0);
    }
  }

  /** ECS, and EKS Pod Identity. */
  async #fromContainer(signal: AbortSignal): Promise<ObtainedCredentials | undefined> {
    const relative = this.#variable('AWS_CONTAINER_CREDENTIALS_RELATIVE_URI');
    const full = this.#variable('AWS_CONTAINER_CREDENTIALS_FULL_URI');
    const url = URL.parse(relative === undefined ? (full ?? '') : `http://169.254.170.2${relative}`);
    if (!url) return undefined;
    const tokenFile = this.#variable('AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE');
    const token =
      tokenFile === undefined
        ? Buffer.from(this.#variable('AWS_CONTAINER_AUTHORIZATION_TOKEN') ?? '')
        : withoutLineEnd(await this.#file(tokenFile, signal));
    const headers = token.length > 0 ? { authorization: token.toString('latin1') } : {};
    token.fill(0);
    if (headers.authorization !== undefined && !printable.test(headers.authorization)) {
      throw this.#failed("the container's authorization token is not a line of printable ASCII");
    }
    return await this.#json(
      { url, headers: () => headers, purpose: 'asking the container for credentials' },
      signal,
    );
  }

  /** Version 2 of the metadata service only: a session is asked for first, which a tricked server cannot. */
  async #fromMetadata(signal: AbortSignal): Promise<ObtainedCredentials> {
    const purpose = 'asking the instance metadata for credentials';
    const nothing =
      'no credentials: not in the environment, the shared files, a web identity, a container or the instance metadata';
    if (this.#variable('AWS_EC2_METADATA_DISABLED')?.toLowerCase() === 'true') throw this.#failed(nothing);
    const ipv6 = this.#variable('AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE')?.toLowerCase() === 'ipv6';
    const base =
      this.#variable('AWS_EC2_METADATA_SERVICE_ENDPOINT') ??
      (ipv6 ? 'http://[fd00:ec2::254]' : 'http://169.254.169.254');
    const at = (path: string) => new URL(path, base);
    const small = { timeout: metadataTimeout, retries: 1, purpose };

    const wanted: StoreCall = {
      method: 'PUT',
      url: at('/latest/api/token'),
      headers: () => ({ 'x-aws-ec2-metadata-token-ttl-seconds': '300' }),
      ...small,
    };
    let session: string;
    try {
      using answer = await this.#client.call(wanted, signal);
      if (answer.status !== 200) throw this.#failed(`${nothing} (HTTP ${answer.status})`);
      session = answer.body.toString('latin1');
      if (!printable.test(session)) throw this.#failed(`${purpose}: the session is not printable ASCII`);
    } catch (thrown) {
      if (signal.aborted) throw thrown;
      const { code, message } = PosternError.from(thrown);
      throw code === 'PROVIDER_UNAVAILABLE' ? new PosternError(code, `${message}; ${nothing}`) : thrown;
    }
    const headers = () => ({ 'x-aws-ec2-metadata-token': session });
    const folder = '/latest/meta-data/iam/security-credentials/';
    let role: string;
    {
      using answer = await this.#client.call({ method: 'GET', url: at(folder), headers, ...small }, signal);
      role = answer.body.toString('utf8').trim().split('\n')[0] ?? '';
      if (answer.status !== 200 || !/^[\w+=,.@-]{1,128}$/.test(role)) {
        throw this.#failed(`${nothing} (the instance has no role)`);
      }
    }
    return await this.#json({ url: at(folder + role), headers, ...small }, signal);
  }

  async #json(call: Omit<StoreCall, 'method'>, signal: AbortSignal): Promise<ObtainedCredentials> {
    using answer = await this.#client.call({ method: 'GET', ...call }, signal);
    if (answer.status !== 200) throw this.#failed(`${call.purpose}: HTTP ${answer.status}`);
    return credentialsIn(jsonOf(answer), (problem) => this.#failed(`${call.purpose}: ${problem}`));
  }

  async #fromProcess(command: string, signal: AbortSignal): Promise<ObtainedCredentials> {
    const words = split(command);
    if (!words) throw this.#failed('credential_process has a quote without an end');
    const environment = Object.entries(this.#context.environment).flatMap(([name, value]) =>
      value === undefined ? [] : [[name, value] as const],
    );
    using ended = await this.#programs.run(
      { command: words, environment: Object.fromEntries(environment), timeout: 10_000 },
      signal,
    );
    if (ended.code !== 0) throw this.#failed(`credential_process ended with exit code ${ended.code}`);
    let json: JsonBytes | undefined;
    try {
      json = JsonBytes.parse(ended.output);
    } catch {
      json = undefined;
    }
    if (json && json.get('Version')?.publicText() !== '1') {
      throw this.#failed('credential_process printed another version than 1');
    }
    return credentialsIn(json, (problem) => this.#failed(`credential_process: ${problem}`));
  }

  /** Lends all profiles of both shared files, and wipes the files afterwards. */
  async #withProfiles<T>(
    use: (profiles: ReadonlyMap<string, Section>) => Promise<T>,
    signal: AbortSignal,
  ): Promise<T> {
    const folder = join(this.#variable('HOME') ?? homedir(), '.aws');
    const config = await this.#fileIfAny(this.#variable('AWS_CONFIG_FILE') ?? join(folder, 'config'), signal);
    const shared = await this.#fileIfAny(
      this.#variable('AWS_SHARED_CREDENTIALS_FILE') ?? join(folder, 'credentials'),
      signal,
    );
    try {
      const profiles = new Map<string, Section>();
      for (const [header, section] of parseIni(config)) {
        const name = header === 'default' ? header : /^profile\s+(.+)$/.exec(header)?.[1]?.trim();
        if (name !== undefined) profiles.set(name, section);
      }
      // Keys of the credentials file come before those of the configuration.
      for (const [name, section] of parseIni(shared)) {
        profiles.set(name, new Map([...(profiles.get(name) ?? []), ...section]));
      }
      return await use(profiles);
    } finally {
      config.fill(0);
      shared.fill(0);
    }
  }

  async #fileIfAny(path: string, signal: AbortSignal): Promise<Buffer> {
    try {
      return await this.#file(path, signal);
    } catch (thrown) {
      if (!signal.aborted && PosternError.from(thrown).message.includes('there is no such file')) {
        return Buffer.alloc(0);
      }
      throw thrown;
    }
  }

  async #file(path: string, signal: AbortSignal): Promise<Buffer> {
    try {
      return (await readSecretFile(path, signal)).bytes;
    } catch (thrown) {
      throw this.#client.named(thrown);
    }
  }

  #profileName(): string {
    return this.#settings.profile ?? this.#variable('AWS_PROFILE') ?? 'default';
  }

  /** An empty variable counts as absent. */
  #variable(name: string): string | undefined {
    const { environment } = this.#context;
    return (Object.hasOwn(environment, name) ? environment[name] : undefined) || undefined;
  }

  #failed(text: string): PosternError {
    return this.#client.error('PROVIDER_FAILED', text);
  }
}

/** Credentials as ECS, EKS, EC2 and credential_process write them. */
function credentialsIn(
  json: JsonBytes | undefined,
  failed: (problem: string) => PosternError,
): ObtainedCredentials {
  if (json?.kind !== 'object') throw failed('the answer is no JSON object');
  // EC2 says so with status 200 when the role cannot be assumed.
  const code = json.get('Code')?.publicText();
  if (code !== undefined && code !== 'Success') throw failed('the answer is not of success');
  const id = json.get('AccessKeyId')?.publicText();
  const key = json.get('SecretAccessKey');
  const token = json.get('Token') ?? json.get('SessionToken');
  if (!id || key?.kind !== 'string') throw failed('the answer has no credentials');
  const end = json.get('Expiration')?.publicText();
  const expiresAt = end === undefined ? Infinity : Date.parse(end);
  if (Number.isNaN(expiresAt)) throw failed('the end of the credentials is no time');
  return {
    value: new AwsCredentials(
      id,
      new Secret(key.copy()),
      token?.kind === 'string' ? new Secret(token.copy()) : undefined,
    ),
    expiresAt,
  };
}

function givesCredentials(profile: Section | undefined): boolean {
  const ways = ['role_arn', 'aws_access_key_id', 'credential_process', 'sso_session', 'sso_start_url'];
  return ways.some((key) => profile?.has(key));
}

function lasting(value: AwsCredentials): ObtainedCredentials {
  return { value, expiresAt: Infinity };
}

function secretOf(text: string): Secret {
  return new Secret(Buffer.from(text));
}

/** The words of a command line, with quotes but without a shell; undefined: a quote has no end. */
function split(command: string): string[] | undefined {
  const words: string[] = [];
  let rest = command.trim();
  while (rest !== '') {
    let word = '';
    while (rest !== '' && !/^\s/.test(rest)) {
      const [part, quoted] = /^"((?:[^"\\]|\\.)*)"/.exec(rest) ?? /^'([^']*)'/.exec(rest) ?? [];
      if (part !== undefined) {
        word += part.startsWith('"') ? (quoted ?? '').replaceAll(/\\(["\\])/g, '$1') : (quoted ?? '');
        rest = rest.slice(part.length);
      } else if (/^["']/.test(rest)) {
        return undefined;
      } else {
        const [plain = ''] = /^[^\s"']+/.exec(rest) ?? [];
        word += plain;
        rest = rest.slice(plain.length);
      }
    }
    words.push(word);
    rest = rest.trimStart();
  }
  return words;
}
