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
