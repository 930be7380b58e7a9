import * as z from 'zod';

import { serverShape, type TlsMode, tlsShape } from '../upstream.ts';

/** Authentication methods of a PostgreSQL server, weakest first. `none` is `trust`, `cert` or `peer`: no password is asked for. */
export const authMethods = ['none', 'password', 'md5', 'scram-sha-256', 'scram-sha-256-plus'] as const;
export type AuthMethod = (typeof authMethods)[number];

const parameterNames = z.array(z.string().min(1));

function schema(defaults: { tls: TlsMode; allowAuth: ('password' | 'md5')[] }) {
  const tls = z.strictObject({
    ...tlsShape,
    mode: tlsShape.mode.default(defaults.tls),
    negotiation: z
      .enum(['postgres', 'direct'])
      .default('postgres')
      .describe(
        'postgres: ask with an SSLRequest. direct: start TLS at once with ALPN (PostgreSQL 17 and later).',
      ),
  });

  const parameters = z
    .strictObject({
      set: z
        .record(z.string().min(1), z.string())
        .default({})
        .describe(
          'Startup parameters that Postern sends and the client cannot override, such as `options: endpoint=...`.',
        ),
      allow: parameterNames
        .optional()
        .describe('The only startup parameters a client may send. Default: all.'),
      deny: parameterNames
        .optional()
        .describe('Startup parameters a client may not send. Not together with `allow`.'),
      otherwise: z
        .enum(['refuse', 'drop'])
        .default('refuse')
        .describe(
          'What happens to a parameter that is not allowed: the client gets an error, or it is left out.',
        ),
    })
    .refine((value) => !(value.allow && value.deny), { message: 'give either `allow` or `deny`, not both' });

  return z.strictObject({
    ...serverShape({ socket: 'folder', port: 5432 }),
    tls: tls.prefault({}).describe('TLS towards the server.'),
    minimumAuth: z
      .enum(authMethods)
      .default('none')
      .describe('The weakest authentication method to accept from the server.'),
    allowAuth: z
      .array(z.enum(['password', 'md5']))
      .default(defaults.allowAuth)
      .describe(
        'Methods to accept even where the server is not verified: `password` shows the password to whoever answers, `md5` a hash that can be broken.',
      ),
    channelBinding: z
      .enum(['disable', 'prefer', 'require'])
      .default('prefer')
      .describe('SCRAM channel binding (SCRAM-SHA-256-PLUS), which detects a TLS man in the middle.'),
    scramMaxIterations: z
      .int()
      .min(4096)
      .max(10_000_000)
      .default(100_000)
      .describe('Upper bound for the work that a server may ask for in SCRAM.'),
    database: z.string().min(1).optional().describe('Database that every client gets, whatever it asks for.'),
    databases: z
      .array(z.string().min(1))
      .min(1)
      .optional()
      .describe('The only databases that clients may ask for. Default: any.'),
    parameters: parameters.prefault({}).describe('Policy for startup parameters.'),
    replication: z.boolean().default(false).describe('Whether clients may open replication connections.'),
  });
}

/** `config:` of the connector `postgres`: safe defaults. */
export const settings = schema({ tls: 'verify-full', allowAuth: [] });
/** `config:` of the connector `pg`, Secretless's name: unverified TLS by default, and any password method. */
export const secretlessSettings = schema({ tls: 'require', allowAuth: ['password', 'md5'] });

export type Settings = z.output<typeof settings>;
