// Capability flags: what the two ends agree to say and to leave out. MySQL 9 documentation, "Capabilities Flags";
// MariaDB documentation, "Connection: capabilities". Postern stands between two such agreements and relays the bytes
// that follow, so they must come to the same result on both legs, except for what Postern answers itself.

/** Capability flags by name, each the value of its bit. */
export const capability = {
  /** Clear: a MariaDB, whose extended capabilities are in the reserved bytes. MariaDB calls it CLIENT_MYSQL. */
  longPassword: 2 ** 0,
  foundRows: 2 ** 1,
  longFlag: 2 ** 2,
  connectWithDatabase: 2 ** 3,
  noSchema: 2 ** 4,
  compress: 2 ** 5,
  odbc: 2 ** 6,
  localFiles: 2 ** 7,
  ignoreSpace: 2 ** 8,
  protocol41: 2 ** 9,
  interactive: 2 ** 10,
  ssl: 2 ** 11,
  ignoreSigpipe: 2 ** 12,
  transactions: 2 ** 13,
  reserved: 2 ** 14,
  secureConnection: 2 ** 15,
  multiStatements: 2 ** 16,
  multiResults: 2 ** 17,
  preparedMultiResults: 2 ** 18,
  pluginAuth: 2 ** 19,
  connectAttributes: 2 ** 20,
  longAuthData: 2 ** 21,
  expiredPasswords: 2 ** 22,
  sessionTrack: 2 ** 23,
  deprecateEof: 2 ** 24,
  optionalMetadata: 2 ** 25,
  zstdCompression: 2 ** 26,
  queryAttributes: 2 ** 27,
  multiFactor: 2 ** 28,
  capabilityExtension: 2 ** 29,
  sslVerifyServerCert: 2 ** 30,
  rememberOptions: 2 ** 31,
} as const;

/** What one end can do, or both have agreed on. */
export interface Capabilities {
  /** The 32 flags of MySQL, as a number from 0 to 2^32 - 1. */
  readonly flags: number;
  /** The 32 further flags of MariaDB; 0 where `longPassword` is set. */
  readonly extended: number;
}

/** Whether all bits of `flag` are set. */
export function has(flags: number, flag: number): boolean {
  return (flags & flag) >>> 0 === flag;
}

/**
 * Never offered to a client: compression hides where a command begins, a second factor is beyond one credential, and
 * nobody has said what an extension of the flags will mean.
 */
const neverOffered =
  capability.compress |
  capability.zstdCompression |
  capability.multiFactor |
  capability.capabilityExtension |
  capability.ssl;

/** About the bytes of one login only, which Postern writes or reads itself, or about a client's own behaviour. */
const perLeg =
  capability.connectWithDatabase |
  capability.protocol41 |
  capability.ssl |
  capability.secureConnection |
  capability.pluginAuth |
  capability.connectAttributes |
  capability.longAuthData |
  capability.sslVerifyServerCert |
  capability.rememberOptions;

/** What a service adds to, or takes from, what its server can do. */
export interface OfferPolicy {
  /** Whether the service has a certificate for its clients (`listenTls`). */
  readonly tls: boolean;
  /** Whether the server may ask clients for their files (`LOAD DATA LOCAL INFILE`). */
  readonly localFiles: boolean;
}

/** What a client is offered: what its server really has, less what cannot pass or may not. */
export function offeredCapabilities(server: Capabilities, { tls, localFiles }: OfferPolicy): Capabilities {
  const masked = neverOffered | (localFiles ? 0 : capability.localFiles);
  const flags = ((server.flags & ~masked) | (tls ? capability.ssl : 0)) >>> 0;
  return { flags, extended: server.extended };
}

/**
 * What holds on the client's leg. MySQL 9.7's own client sets flags that it was not offered, so what it says it will do
 * is not what a server of those capabilities would have heard.
 */
export function agreedCapabilities(client: Capabilities, offered: Capabilities): Capabilities {
  // `longPassword` says who the client is, whatever the server is: it is no offer.
  const flags = (client.flags & (offered.flags | capability.longPassword)) >>> 0;
  const ours = isMariaDb(client.flags) ? client.extended & offered.extended : 0;
  return { flags, extended: ours >>> 0 };
}

/** What Postern's own part of the login to the server needs. */
export interface LoginNeeds {
  readonly tls: boolean;
  readonly database: boolean;
  readonly attributes: boolean;
}

/**
 * What the server is asked for: exactly what was agreed with the client wherever it changes a byte after the login (result
 * sets, OK packets, queries), and Postern's own choice in what only the login is made of.
 */
export function upstreamCapabilities(
  agreed: Capabilities,
  server: Capabilities,
  { tls, database, attributes }: LoginNeeds,
): Capabilities {
  const own =
    capability.protocol41 |
    capability.secureConnection |
    capability.pluginAuth |
    capability.longAuthData |
    (tls ? capability.ssl : 0) |
    (database ? capability.connectWithDatabase : 0) |
    (attributes ? capability.connectAttributes : 0);
  const flags = ((agreed.flags & ~perLeg & ~neverOffered) | (own & server.flags)) >>> 0;
  return { flags, extended: agreed.extended };
}

/** Whether these flags are those of a MariaDB server, or of a client that can be told that it is one. */
export function isMariaDb(flags: number): boolean {
  return !has(flags, capability.longPassword);
}
