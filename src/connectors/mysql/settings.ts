import * as z from 'zod';

import { serverShape, tlsShape } from '../upstream.ts';

/**
 * Authentication plugins of MySQL and MariaDB, weakest first: what a server that asks for it, or somebody who listens,
 * learns about the password. `none` is an account without a password.
 */
export const authMethods = [
  'none',
  'mysql_clear_password',
  'mysql_native_password',
  'sha256_password',
  'caching_sha2_password',
  'client_ed25519',
  'parsec',
] as const;
export type AuthMethod = (typeof authMethods)[number];

/** Plugins that show the server the password itself: the last two inside TLS, when their server has not cached it. */
const showsPassword = ['mysql_clear_password', 'sha256_password', 'caching_sha2_password'] as const;

/**
 * `config:` of the connector. With `config.host` the defaults are safe; without it the service is written as Secretless's
 * `mysql`, whose host is a credential, and has Secretless's.
 */
export const settings = z
  .strictObject({
    ...serverShape({ socket: 'path', port: 3306 }),
    tls: z
      .strictObject({
        ...tlsShape,
        mode: tlsShape.mode
          .optional()
          .describe(
            'disable: no TLS. require: TLS that proves nothing about the server. verify-ca: its certificate comes from a trusted CA. verify-full: and it names this host. Default: verify-full; `require` in a service without `config.host`, as in Secretless.',
          ),
      })
      .prefault({})
      .describe('TLS towards the server.'),
    minimumAuth: z
      .enum(authMethods)
      .default('none')
      .describe('The weakest authentication plugin to accept from the server.'),
    allowAuth: z
      .array(z.enum(showsPassword))
      .optional()
      .describe(
        'Plugins that may show the password itself to a server that is not verified. Default: none; all in a service without `config.host`, as in Secretless.',
      ),
    rsaPublicKey: z
      .string()
      .min(1)
      .optional()
      .describe(
        "File with the server's RSA public key (PEM). Without TLS the password is encrypted to it and to no other.",
      ),
    allowPublicKeyRetrieval: z
      .boolean()
      .optional()
      .describe(
        'Whether to ask the server for its RSA public key on a connection without TLS: a man in the middle can answer with his own. Default: false; true in a service without `config.host`, as in Secretless.',
      ),
    database: z
      .string()
      .min(1)
      .optional()
      .describe('Database that every client gets at first, whatever it asks for.'),
    databases: z
      .array(z.string().min(1))
      .min(1)
      .optional()
      .describe('The only databases that clients may ask for when they connect. Default: any.'),
    programName: z
      .string()
      .min(1)
      .max(64)
      .optional()
      .describe(
        "Put in front of the client's `program_name` (a connection attribute), so that the server's administrators see who came through Postern.",
      ),
    allowLocalInfile: z
      .boolean()
      .optional()
      .describe(
        'Whether LOAD DATA LOCAL works: the server can then ask the application for any file it can read. Default: false; true in a service without `config.host`, as in Secretless.',
      ),
    changeUser: z
      .enum(['intercept', 'refuse', 'relay'])
      .default('intercept')
      .describe(
        "COM_CHANGE_USER, by which pools reset a session. intercept: done with the service's credential. refuse: answered with an error. relay: passed on, so it fails, unless the application knows the password of an account.",
      ),
  })
  .transform((given) => {
    const secretless = given.host === undefined;
    return {
      ...given,
      /** Written as for Secretless, with its defaults. */
      secretless,
      tls: { ...given.tls, mode: given.tls.mode ?? (secretless ? 'require' : 'verify-full') },
      allowAuth: given.allowAuth ?? (secretless ? [...showsPassword] : []),
      allowPublicKeyRetrieval: given.allowPublicKeyRetrieval ?? secretless,
      allowLocalInfile: given.allowLocalInfile ?? secretless,
    };
  });

export type Settings = z.output<typeof settings>;
