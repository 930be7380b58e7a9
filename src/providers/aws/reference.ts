import { checkField, splitField } from '../json-field.ts';

/** `id?stage=AWSPREVIOUS#field`, taken apart; without the field. */
export interface SecretReference {
  readonly id: string;
  readonly version: string | undefined;
  readonly stage: string | undefined;
}

/** Says what is wrong with a reference to a secret of Secrets Manager; undefined when it is well formed. */
export function checkSecretReference(reference: string): string | undefined {
  const { id, field } = splitField(reference);
  const mark = id.indexOf('?');
  const name = mark === -1 ? id : id.slice(0, mark);
  if (name === '') return 'the name or ARN of the secret is missing';
  if (!/^[\w/+=.@:!-]{1,2048}$/.test(name))
    return 'the name of a secret has letters, digits and /_+=.@- only';
  if (name.startsWith('arn:') && !/^arn:[\w-]+:secretsmanager:[a-z0-9-]+:\d+:secret:./.test(name)) {
    return 'the ARN is not one of a secret: arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME';
  }
  if (mark !== -1 && !/^(stage=[\w/+=.@-]{1,256}|version=[\w-]{1,64})$/.test(id.slice(mark + 1))) {
    return 'only "?stage=NAME" or "?version=ID" may stand between name and field';
  }
  return checkField(field);
}

/** Takes a reference that `checkSecretReference` found well formed. */
export function parseSecretReference(reference: string): SecretReference {
  const [id = '', query = ''] = splitField(reference).id.split('?');
  const [key, value] = query.split(/=(.*)/s);
  return {
    id,
    version: key === 'version' ? value : undefined,
    stage: key === 'stage' ? value : undefined,
  };
}

/** Says what is wrong with a reference to a parameter; undefined when it is well formed. */
export function checkParameterReference(reference: string): string | undefined {
  const { id, field } = splitField(reference);
  if (id === '') return 'the name or ARN of the parameter is missing';
  if (!/^[\w/.:-]{1,2048}$/.test(id)) return 'the name of a parameter has letters, digits and /_.- only';
  return checkField(field);
}

/** The region that an ARN names. */
export function regionOfArn(id: string): string | undefined {
  return /^arn:[\w-]+:\w+:([a-z0-9-]+):/.exec(id)?.[1];
}

/** `user@host:port`, taken apart. */
export interface Target {
  readonly user: string;
  /** As RDS knows the instance: the token names it. */
  readonly host: string;
  readonly port: string;
}

/** Says what is wrong with a reference to a login of RDS; undefined when it is well formed. */
export function checkTarget(reference: string): string | undefined {
  return parseTarget(reference)
    ? undefined
    : 'must be user@host:port, with the endpoint of the instance or cluster as RDS names it';
}

/** undefined: it is not well formed. */
export function parseTarget(reference: string): Target | undefined {
  // A name of a user may hold an @; a host does not.
  const [, user, host = '', port] =
    /^(.{1,128})@([A-Za-z0-9][A-Za-z0-9.-]{0,252}):(\d{1,5})$/su.exec(reference) ?? [];
  if (user === undefined || port === undefined || Number(port) < 1 || Number(port) > 65_535) return undefined;
  return user.isWellFormed() ? { user, host: host.toLowerCase(), port: String(Number(port)) } : undefined;
}
