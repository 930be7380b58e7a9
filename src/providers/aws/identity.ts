import { copyOf } from '../../core/bytes.ts';
import { Secret } from '../../core/secret.ts';
import { SigningKeys } from '../../core/sigv4.ts';
import type { Obtained } from '../expiring.ts';

/** Who signs requests to AWS. */
export class AwsCredentials implements Disposable {
  readonly accessKeyId: string;
  readonly secretAccessKey: Secret;
  readonly #sessionToken: Secret | undefined;

  constructor(accessKeyId: string, secretAccessKey: Secret, sessionToken: Secret | undefined) {
    this.accessKeyId = accessKeyId;
    this.secretAccessKey = secretAccessKey;
    this.#sessionToken = sessionToken;
  }

  /** It goes into a header or a query, which are strings. */
  sessionToken(): string | undefined {
    return this.#sessionToken?.reveal().toString('latin1');
  }

  /** The caller disposes of them. */
  signingKeys(): SigningKeys {
    return new SigningKeys(this.secretAccessKey.reveal());
  }

  equals(other: AwsCredentials): boolean {
    return (
      this.accessKeyId === other.accessKeyId &&
      this.secretAccessKey.reveal().equals(other.secretAccessKey.reveal())
    );
  }

  [Symbol.dispose](): void {
    this.secretAccessKey.wipe();
    this.#sessionToken?.wipe();
  }
}

export type ObtainedCredentials = Obtained<AwsCredentials>;

/** A secret from a view of bytes that are wiped later. */
export function copied(view: Buffer): Secret {
  return new Secret(copyOf(view));
}
