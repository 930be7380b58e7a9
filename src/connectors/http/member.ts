import type { Logger } from 'pino';

import type { Prepared } from '../../core/prepared.ts';
import type { RequestAudit } from '../connector.ts';
import { Counters } from './counters.ts';
import type { Generation } from './generation.ts';
import { type FieldNames, requestNames } from './names.ts';
import type { Scheme } from './schemes/scheme.ts';
import type { EngineSettings } from './settings.ts';

/** One service as the engine sees it; several of them may share a listener. */
export class Member {
  readonly name: string;
  readonly log: Logger;
  readonly settings: EngineSettings;
  readonly scheme: Scheme;
  readonly prepared: Prepared<Generation>;
  /** Milliseconds that a head, or a credential, may take. */
  readonly loginTimeout: number;
  /** What of a request's fields is ours to decide. */
  readonly names: FieldNames;
  readonly counters = new Counters();
  readonly audit: RequestAudit | undefined;
  /** No new clients come: connections end with the request under way. */
  draining = false;

  constructor(given: {
    readonly name: string;
    readonly log: Logger;
    readonly settings: EngineSettings;
    readonly scheme: Scheme;
    readonly loginTimeout: number;
    readonly audit?: RequestAudit | undefined;
    /** The client's `Authorization` is for Postern. */
    readonly takesAuthorization: boolean;
    readonly prepare: (member: Member) => Prepared<Generation>;
  }) {
    this.name = given.name;
    this.log = given.log;
    this.settings = given.settings;
    this.scheme = given.scheme;
    this.loginTimeout = given.loginTimeout;
    this.audit = given.audit;
    const taken = given.takesAuthorization ? ['authorization'] : [];
    this.names = requestNames([...given.scheme.ownedHeaders, ...taken]);
    this.prepared = given.prepare(this);
  }
}
