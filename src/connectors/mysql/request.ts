import { type Capabilities, capability } from './capabilities.ts';
import type { Hello } from './client.ts';
import { byteString, textOf } from './names.ts';
import type { Attributes, Greeting } from './packets.ts';
import { printable, refusal } from './replies.ts';
import type { Settings } from './settings.ts';

/** What a session is to be like, without who it is: that is filled in only when logging in. Texts are byte strings. */
export interface LoginRequest {
  /** What holds between client and Postern, and so has to hold between Postern and the server. */
  readonly agreed: Capabilities;
  readonly maxPacket: number;
  readonly collation: number;
  readonly database: string | undefined;
  readonly attributes: Attributes;
}

/** What the client asked for, checked against the service's policy. Throws CLIENT_REFUSED. */
export function loginRequest({ response, agreed }: Hello, settings: Settings): LoginRequest {
  return {
    agreed,
    maxPacket: response.maxPacket,
    collation: response.collation,
    database: chooseDatabase(response.database, settings),
    attributes: namedAttributes(response.attributes, settings),
  };
}

/** A login that no client asked for: the least there is. */
export function bareRequest({ capabilities, collation }: Greeting, settings: Settings): LoginRequest {
  return {
    agreed: { flags: (capabilities.flags & capability.longPassword) >>> 0, extended: 0 },
    maxPacket: 2 ** 24,
    collation,
    database: settings.database === undefined ? undefined : byteString(settings.database),
    attributes: namedAttributes(new Map(), settings),
  };
}

/** The database that a client gets when it asks for this one. What `USE` may do later is the server's to say. */
export function chooseDatabase(asked: string | undefined, settings: Settings): string | undefined {
  if (settings.database !== undefined) return byteString(settings.database);
  if (asked !== undefined && settings.databases && !settings.databases.includes(textOf(asked)))
    throw refusal(
      'CLIENT_REFUSED',
      [1044, '42000'],
      `database "${printable(textOf(asked))}" is not allowed by this service`,
    );
  return asked;
}

/** The client's attributes, its `program_name` with the configured text in front. */
export function namedAttributes(attributes: Attributes, { programName }: Settings): Attributes {
  if (programName === undefined) return attributes;
  const own = byteString(programName) + (attributes.get('program_name') ?? '');
  return new Map([...attributes, ['program_name', own]]);
}
