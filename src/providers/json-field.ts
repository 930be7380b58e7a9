import { copyOf } from '../core/bytes.ts';
import { PosternError } from '../core/errors.ts';
import { JsonBytes } from '../core/json-bytes.ts';
import { Secret } from '../core/secret.ts';

/** `id#field`, taken apart; without `#` the whole value is meant. */
export function splitField(reference: string): { readonly id: string; readonly field: string | undefined } {
  const hash = reference.indexOf('#');
  if (hash === -1) return { id: reference, field: undefined };
  return { id: reference.slice(0, hash), field: reference.slice(hash + 1) };
}

/** Says what is wrong with the part after `#`; undefined when there is none, or when it is well formed. */
export function checkField(field: string | undefined): string | undefined {
  if (field === '') return 'the name of the field after "#" is missing';
  // It is looked up, not sent; the bound keeps a look-up cheap.
  if (field !== undefined && field.length > 512) return 'the name of the field is longer than 512 characters';
  return undefined;
}

/**
 * A secret of its own for each reference to one value: the whole value, or a field of the JSON object that it is.
 * `value` stays the caller's. Throws PROVIDER_FAILED with the reference, and wipes what it had taken.
 */
export function takeFields(value: Buffer, references: readonly string[]): Secret[] {
  const secrets: Secret[] = [];
  try {
    for (const reference of references) secrets.push(new Secret(take(value, reference)));
    return secrets;
  } catch (thrown) {
    for (const secret of secrets) secret.wipe();
    throw thrown;
  }
}

function take(value: Buffer, reference: string): Buffer {
  const { field } = splitField(reference);
  if (field === undefined) return copyOf(value);
  let problem: string;
  try {
    const found = JsonBytes.parse(value).find(field);
    if (found) return found.copy();
    problem = `the secret has no field "${field}"`;
  } catch (thrown) {
    problem = `the field "${field}" cannot be had: the value is ${PosternError.from(thrown).message}`;
  }
  throw new PosternError('PROVIDER_FAILED', `"${reference}": ${problem}`);
}
