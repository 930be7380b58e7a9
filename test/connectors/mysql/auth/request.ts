import { authPlugins } from 'mysql2';

import { Authentication } from '../../../../src/connectors/mysql/auth/index.ts';
import type { AuthPolicy, AuthRequest, Channel } from '../../../../src/connectors/mysql/auth/plugin.ts';

/** The salt of the vectors, which were made with other programs. */
export const salt = Buffer.from('ABCDEFGHIJKLMNOPQRST');
/** Bytes 00 to 1f. */
export const nonce = Buffer.from(Array.from({ length: 32 }, (_, i) => i));

export const channels = {
  tcp: { secure: false, tls: false },
  'unverified TLS': { secure: false, tls: true },
  'verified TLS': { secure: true, tls: true },
  'unix socket': { secure: true, tls: false },
} as const satisfies Record<string, Channel>;

export const strict: AuthPolicy = {
  allowAuth: [],
  rsaPublicKey: undefined,
  allowPublicKeyRetrieval: false,
};

/** A login as `Secret#1` over plain TCP by a service that allows nothing, except for what is given. */
export function request(given: Partial<AuthRequest> = {}): AuthRequest {
  return {
    password: Buffer.from('Secret#1'),
    data: salt,
    channel: channels.tcp,
    policy: strict,
    derive: (_label, compute) => compute(),
    ...given,
  };
}

/** All that a plugin answers to these data packets of a server, after its first answer. */
export async function converse(
  plugin: string,
  given: Partial<AuthRequest>,
  ...packets: readonly Buffer[]
): Promise<(Buffer | undefined)[]> {
  const { authentication, first } = await Authentication.begin(plugin, request(given));
  const answers: (Buffer | undefined)[] = [first];
  for (const packet of packets) answers.push(await authentication.answer(packet));
  return answers;
}

type Mysql2Plugin = (options: {
  serverPublicKey?: string;
}) => (context: {
  connection: { config: { password: string } };
  command: object;
}) => (data: Buffer) => Buffer | Promise<Buffer>;

/** What mysql2, whose plugins take strings, answers first. */
export async function mysql2Answer(
  plugin: 'mysql_native_password' | 'caching_sha2_password' | 'sha256_password',
  password: string,
  data: Buffer,
  serverPublicKey?: Buffer,
): Promise<Buffer> {
  // Its types ask for a whole connection, of which it reads the password.
  const factory = authPlugins[plugin] as unknown as Mysql2Plugin;
  const options = serverPublicKey ? { serverPublicKey: serverPublicKey.toString() } : {};
  return await factory(options)({ connection: { config: { password } }, command: {} })(data);
}
