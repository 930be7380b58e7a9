import { PosternError } from './errors.ts';

/** The places of one service: how many sessions it may have at once, and whether it takes new ones. */
export class Admission {
  readonly #service: string;
  /** May change while the service runs; sessions above a smaller number live on. */
  max: number;
  #active = 0;
  #closed = false;

  constructor(service: string, max: number) {
    this.#service = service;
    this.max = max;
  }

  get active(): number {
    return this.#active;
  }

  /** Takes a place. Throws LIMIT_REACHED or SHUTDOWN. */
  enter(): void {
    if (this.#closed) throw new PosternError('SHUTDOWN', 'Postern is shutting down');
    if (this.#active >= this.max)
      throw new PosternError(
        'LIMIT_REACHED',
        `service "${this.#service}" has its ${this.max} connections in use`,
      );
    this.#active += 1;
  }

  leave(): void {
    this.#active -= 1;
  }

  /** From now on nobody enters. */
  close(): void {
    this.#closed = true;
  }
}
