import { PosternError } from './errors.ts';
import type { Secret } from './secret.ts';

/** Computes bytes from a credential at a cost (a PBKDF2 result). The result is a secret too. */
export type Derive = (label: string, compute: () => Promise<Buffer>) => Promise<Buffer>;

/** The secrets of one service, by the name its connector knows them by. Lent for one login and wiped together. */
export class Credentials implements Disposable {
  readonly #secrets: ReadonlyMap<string, Secret>;
  /**
   * Bytes that cost much to derive from these credentials, kept by the lifecycle for as long as the
   * credentials stay the same and wiped with them. Returns a copy, which the caller wipes.
   */
  readonly derive: Derive;

  constructor(secrets: ReadonlyMap<string, Secret>, derive: Derive = (_label, compute) => compute()) {
    this.#secrets = secrets;
    this.derive = derive;
  }

  has(name: string): boolean {
    return this.#secrets.has(name);
  }

  names(): string[] {
    return [...this.#secrets.keys()];
  }

  /** The live bytes of one credential; they are wiped when the loan ends. */
  get(name: string): Buffer {
    const secret = this.#secrets.get(name);
    if (!secret) throw new PosternError('INTERNAL', `credential "${name}" is not configured`);
    return secret.reveal();
  }

  /** A credential that is not secret in itself (a host, a user name, a TLS mode) as text; undefined when not configured. */
  text(name: string): string | undefined {
    return this.#secrets.get(name)?.reveal().toString('utf8');
  }

  [Symbol.dispose](): void {
    for (const secret of this.#secrets.values()) secret.wipe();
  }
}
