import { copyOf, decodeBase64 } from '../../core/bytes.ts';
import { PosternError } from '../../core/errors.ts';
import type { JsonBytes } from '../../core/json-bytes.ts';
import type { Answer } from '../exchange.ts';
import { isPassing, jsonOf, publicLine, type StoreCall, type StoreClient } from '../store-client.ts';
import type { Tokens } from './tokens.ts';

/** A variable to read, once however often it is referred to. */
export interface Variable {
  /** `account:variable:id`, which is how a batch names it. */
  readonly fullId: string;
  readonly account: string;
  readonly id: string;
  readonly version: number | undefined;
  /** As it stands in the configuration, for messages. */
  readonly reference: string;
}

/** Bytes of a query that every proxy on the way takes. */
const longestQuery = 4000;
/** With these a batch is refused as a whole; single reads say which variable it was. */
const namesNoCulprit: ReadonlySet<number> = new Set([403, 404, 406, 422]);

/** Reads variables of Conjur. */
export class Variables {
  readonly #base: string;
  readonly #client: StoreClient;
  readonly #tokens: Tokens;

  constructor(base: string, client: StoreClient, tokens: Tokens) {
    this.#base = base;
    this.#client = client;
    this.#tokens = tokens;
  }

  /** The value of each variable, in their order and the caller's to wipe: from one answer of the server where it can be. */
  async read(variables: readonly Variable[], signal: AbortSignal): Promise<Buffer[]> {
    const values = new Map<Variable, Buffer>();
    const failed = new AbortController();
    const either = AbortSignal.any([signal, failed.signal]);
    const outcomes = await Promise.allSettled(
      intoQuestions(variables).map(async (question) => {
        try {
          for (const [variable, value] of await this.#ask(question, either)) values.set(variable, value);
        } catch (thrown) {
          failed.abort(thrown);
          throw thrown;
        }
      }),
    );
    if (outcomes.some(({ status }) => status === 'rejected')) {
      for (const value of values.values()) value.fill(0);
      throw PosternError.from(failed.signal.reason);
    }
    return variables.flatMap((variable) => values.get(variable) ?? []);
  }

  async #ask(question: readonly Variable[], signal: AbortSignal): Promise<Map<Variable, Buffer>> {
    const [first, ...others] = question;
    if (!first) return new Map();
    if (others.length === 0) return new Map([[first, await this.#readOne(first, signal)]]);
    return (await this.#readBatch(question, signal)) ?? (await this.#readOneByOne(question, signal));
  }

  /** undefined: the server refused the batch, and does not say because of which variable. */
  async #readBatch(
    variables: readonly Variable[],
    signal: AbortSignal,
  ): Promise<Map<Variable, Buffer> | undefined> {
    const ids = encodeURIComponent(variables.map(({ fullId }) => fullId).join(','));
    const call: StoreCall = {
      method: 'GET',
      url: new URL(`${this.#base}/secrets?variable_ids=${ids}`),
      // All of the header: in a list the server does not see it. Without it a value that is no text fails the batch.
      headers: () => ({ accept: '*/*', 'accept-encoding': 'base64' }),
      contentEncoding: 'base64',
      purpose: `reading ${variables.length} variables`,
    };
    using answer = await this.#tokens.call(call, signal);
    if (namesNoCulprit.has(answer.status)) return undefined;
    if (answer.status !== 200) throw this.#refusal(call, answer);
    const json = jsonOf(answer);
    // An old server does not know the header, and answers with the values as they are.
    const encoded = answer.headers['content-encoding'] !== undefined;
    const values = new Map<Variable, Buffer>();
    try {
      for (const variable of variables)
        values.set(variable, this.#valueOf(json?.get(variable.fullId), encoded, variable));
      return values;
    } catch (thrown) {
      for (const value of values.values()) value.fill(0);
      throw thrown;
    }
  }

  #valueOf(value: JsonBytes | undefined, encoded: boolean, { reference }: Variable): Buffer {
    if (value?.kind === 'string') {
      const text = value.copy();
      if (!encoded) return text;
      const decoded = decodeBase64(text);
      text.fill(0);
      if (decoded) return decoded;
    }
    throw this.#client.error('PROVIDER_UNAVAILABLE', `"${reference}": the answer is not one of Conjur`);
  }

  /** In their order, so that the first that is refused is the one that is named. */
  async #readOneByOne(variables: readonly Variable[], signal: AbortSignal): Promise<Map<Variable, Buffer>> {
    const values = new Map<Variable, Buffer>();
    try {
      for (const variable of variables) values.set(variable, await this.#readOne(variable, signal));
      return values;
    } catch (thrown) {
      for (const value of values.values()) value.fill(0);
      throw thrown;
    }
  }

  async #readOne({ account, id, version, reference }: Variable, signal: AbortSignal): Promise<Buffer> {
    const place = `secrets/${encodeURIComponent(account)}/variable/${encodeURIComponent(id)}`;
    const call: StoreCall = {
      method: 'GET',
      url: new URL(`${this.#base}/${place}${version === undefined ? '' : `?version=${version}`}`),
      headers: () => ({ accept: '*/*' }),
      purpose: `reading "${reference}"`,
    };
    using answer = await this.#tokens.call(call, signal);
    if (answer.status !== 200) throw this.#refusal(call, answer);
    return copyOf(answer.body);
  }

  #refusal({ purpose }: StoreCall, answer: Answer): PosternError {
    const { status } = answer;
    const said = publicLine(jsonOf(answer)?.get('error')?.get('message'), answer);
    const end = ` (HTTP ${status}${said === '' ? '' : `: ${said}`})`;
    const code = isPassing(status) ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED';
    return this.#client.error(code, `${purpose}: ${meaningOf(status)}${end}`);
  }
}

/** What can be asked for together: not a version, nor an id with the comma that separates ids. */
function intoQuestions(variables: readonly Variable[]): Variable[][] {
  const questions: Variable[][] = [];
  let batch: Variable[] = [];
  let length = 0;
  for (const variable of variables) {
    if (variable.version !== undefined || variable.fullId.includes(',')) {
      questions.push([variable]);
      continue;
    }
    const more = encodeURIComponent(`${variable.fullId},`).length;
    if (length + more > longestQuery && batch.length > 0) {
      questions.push(batch);
      [batch, length] = [[], 0];
    }
    batch.push(variable);
    length += more;
  }
  return batch.length > 0 ? [...questions, batch] : questions;
}

/** A variable that the role may not even see is a 404 too: Conjur does not say that it is there. */
function meaningOf(status: number): string {
  if (status === 404) return 'not found, empty, or not permitted';
  if (status === 403)
    return 'permission denied: the role lacks "execute" on it, or may not come from this address';
  if (status === 401) return 'Conjur refuses the token, also a new one';
  if (isPassing(status)) return 'Conjur cannot do it now';
  if (status >= 300 && status < 400) return 'redirected, where the token must not go; is the URL right?';
  return 'Conjur refused';
}
