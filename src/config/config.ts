import type { Address } from '../core/address.ts';
import type { RelaySettings } from '../core/relay.ts';

/** A whole configuration, parsed once: frozen, typed, durations in milliseconds. */
export interface Config {
  readonly providers: ReadonlyMap<string, ProviderConfig>;
  readonly services: readonly ServiceConfig[];
  readonly admin: AdminConfig;
  /** undefined: nothing is audited. */
  readonly audit: AuditConfig | undefined;
  readonly relay: RelaySettings;
  /** Where the ids of leases are noted; undefined: nowhere. */
  readonly stateFolder: string | undefined;
  /** Things that work and are unsafe, or are ignored: said at start and by `check`. */
  readonly warnings: readonly Problem[];
}

export interface ProviderConfig {
  readonly name: string;
  readonly kind: string;
  /** Parsed by the provider kind's schema. */
  readonly settings: unknown;
  /** The entry as it was written, canonical: two equal texts mean that nothing changed. */
  readonly fingerprint: string;
}

export interface ServiceConfig {
  readonly name: string;
  readonly connector: string;
  readonly listenOn: Address;
  /** Permissions of a unix socket, such as 0o600. */
  readonly socketMode: number;
  /** Owner and group of a unix socket, by name or number; undefined: those of the process. */
  readonly socketOwner: string | number | undefined;
  readonly socketGroup: string | number | undefined;
  readonly listenTls: ListenTls | undefined;
  /** undefined: whoever can reach the port may use it. */
  readonly access: AccessConfig | undefined;
  readonly credentials: ReadonlyMap<string, Reference>;
  /** Parsed by the connector's schema. */
  readonly settings: unknown;
  /** What becomes of a session when the credential that it logged in with has been replaced. */
  readonly onRotation: 'keep' | 'drain';
  readonly limits: Limits;
  readonly cache: CachePolicy;
  readonly fingerprint: string;
}

/** Who may use the port of a service; every rule that is given has to hold. */
export interface AccessConfig {
  /** Names or numbers. */
  readonly uids: readonly (string | number)[] | undefined;
  readonly gids: readonly (string | number)[] | undefined;
  readonly executables: readonly string[] | undefined;
  readonly username: string | undefined;
  readonly password: Reference | undefined;
  readonly maxConnectionsPerPeer: number | undefined;
  readonly loginRate: Rate | undefined;
  readonly loginRatePerPeer: Rate | undefined;
  /** As in the services: two equal texts mean the same rules. */
  readonly fingerprint: string;
}

/** How often something may happen: so often in a second, and so often at once. */
export interface Rate {
  readonly perSecond: number;
  readonly burst: number;
}

/** A value to be fetched when it is needed. */
export interface Reference {
  /** Name of an entry in `Config.providers`. */
  readonly provider: string;
  readonly get: string;
}

/** Files that hold the certificate shown to clients; read when the service is opened or reloaded. */
export interface ListenTls {
  readonly cert: string;
  readonly key: string;
  readonly passphraseFile: string | undefined;
}

export interface Limits {
  /** Milliseconds for a client to say what it wants, and again for fetching the credential and logging in. */
  readonly loginTimeout: number;
  /** Sessions of one service at once. */
  readonly maxConnections: number;
  /** Milliseconds without a byte in either direction after which a session ends; 0: never. */
  readonly idleTimeout: number;
  /** Milliseconds after which a session ends as soon as nothing is under way in it; 0: never. */
  readonly maxSessionAge: number;
  /** Milliseconds that sessions get to finish at shutdown, or when they are to end for another reason. */
  readonly drainTimeout: number;
  /** Milliseconds that clients are still accepted after the signal to stop, when Postern is no longer ready. */
  readonly minDrainDelay: number;
}

/** How long the credentials of a service are kept, in milliseconds. */
export interface CachePolicy {
  /** How long a fetched value is used before it is fetched again; undefined: as suits the connector. */
  readonly ttl: number | undefined;
  /** How much longer the last value is used while its provider cannot be asked. */
  readonly maxStale: number;
  /** How long a leased credential outlives its last session. */
  readonly linger: number;
  /** How long a rejected login may wait for a rotation that has not reached everybody. */
  readonly rotationGrace: number;
  /** How often it is looked for another credential while sessions live that have to end for it; 0: never. */
  readonly rotationCheck: number;
}

export interface AdminConfig {
  /** undefined: no admin listener. */
  readonly listenOn: Address | undefined;
  /** Whether `POST /quit` ends the process as SIGTERM does. */
  readonly quit: boolean;
  /** Names by which the admin listener may be called, beside addresses and `localhost`. */
  readonly hosts: readonly string[];
}

/** What the audit can tell of; docs/audit.md says what each record has. */
export const auditEvents = [
  'start',
  'stop',
  'reload',
  'login',
  'session',
  'refused',
  'request',
  'lease',
] as const;

export type AuditEvent = (typeof auditEvents)[number];

export interface AuditConfig {
  /** `stdout`, `stderr`, or where else its lines go. */
  readonly to: 'stdout' | 'stderr' | { readonly file: string } | { readonly socket: string };
  readonly events: readonly AuditEvent[];
}

/** Something wrong (or unsafe) in a configuration, with its place. Lines and columns start at 1. */
export interface Problem {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  /** `services.orders-db.config.host` */
  readonly path: string;
  readonly message: string;
}
