import { PosternError } from '../../core/errors.ts';
import type { JsonBytes } from '../../core/json-bytes.ts';
import { Secret } from '../../core/secret.ts';
import type { Lease } from '../provider.ts';
import type { VaultClient } from './client.ts';
import type { VaultReference } from './reference.ts';

/** A reference as it was written, for messages, and taken apart. */
export interface Wanted extends VaultReference {
  readonly reference: string;
}

/** Fields of one answer, and what the answer says about them. */
export interface Read {
  readonly secrets: readonly Secret[];
  readonly version: string | undefined;
  readonly expiresAt?: Date | undefined;
  readonly lease?: Lease | undefined;
}

/** Copies the wanted fields, in their order; wipes what it has when one is missing or has no text. */
export function take(
  wanted: readonly Wanted[],
  find: (field: string) => JsonBytes | undefined,
  client: VaultClient,
): Secret[] {
  const secrets: Secret[] = [];
  try {
    for (const { reference, path, field } of wanted) {
      const value = find(field);
      if (!value) {
        const text = `"${reference}": the secret at "${path}" has no field "${field}"`;
        throw client.error('PROVIDER_FAILED', text);
      }
      secrets.push(copy(value, reference, client));
    }
    return secrets;
  } catch (thrown) {
    for (const secret of secrets) secret.wipe();
    throw thrown;
  }
}

function copy(value: JsonBytes, reference: string, client: VaultClient): Secret {
  try {
    return new Secret(value.copy());
  } catch (thrown) {
    const { code, message } = PosternError.from(thrown);
    throw client.error(code, `"${reference}": the field is ${message}`);
  }
}
