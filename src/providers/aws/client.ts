import { hash } from 'node:crypto';

import { type ErrorCode } from '../../core/errors.ts';
import { amzDate, authorizationOf, canonicalPath } from '../../core/sigv4.ts';
import type { Answer } from '../exchange.ts';
import type { ProviderContext } from '../provider.ts';
import { isPassing, jsonOf, publicLine, StoreClient } from '../store-client.ts';
import { CredentialChain } from './credentials.ts';
import { endpointOf } from './endpoint.ts';
import type { AwsCredentials } from './identity.ts';
import type { CommonSettings } from './settings.ts';

/** A service whose API is JSON 1.1: a POST with the action in a header. */
export interface JsonAction {
  readonly service: 'secretsmanager' | 'ssm';
  /** Such as `secretsmanager.GetSecretValue`. */
  readonly target: string;
  /** undefined: the one of the settings, the environment or the profile. */
  readonly region: string | undefined;
  readonly body: object;
  readonly purpose: string;
}

/** Another clock is only believed when it differs by more than this, in milliseconds. */
const skewThatMatters = 60_000;

/** Signed requests to AWS's stores. */
export class AwsClient {
  readonly #context: ProviderContext;
  readonly #endpoint: string | undefined;
  readonly #http: StoreClient;
  readonly chain: CredentialChain;
  /** How far the clock of AWS is ahead of this machine's, in milliseconds. */
  #skew = 0;

  constructor(
    settings: CommonSettings & { readonly endpoint?: string | undefined },
    context: ProviderContext,
  ) {
    this.#context = context;
    this.#endpoint = settings.endpoint;
    this.#http = new StoreClient({
      name: context.name,
      timeout: settings.timeout,
      retries: settings.retries,
    });
    this.chain = new CredentialChain(settings, context, this.#http);
  }

  /** The answer of a success. Refused credentials, and a clock that is wrong, lead to one repetition. */
  async call(action: JsonAction, signal: AbortSignal): Promise<Answer> {
    const region = action.region ?? (await this.chain.region(signal));
    if (region === undefined) {
      throw this.error('PROVIDER_FAILED', 'no region: set `region`, AWS_REGION, or a region in the profile');
    }
    const first = await this.#attempt(action, region, signal);
    if (first.answer.status === 200) return first.answer;
    const code = codeOf(first.answer);
    const again = this.#adjustClock(code, first.answer) || refusedCredentials.has(code);
    if (!again) throw this.#refusal(action, first.answer, code);
    first.answer[Symbol.dispose]();
    this.chain.discard(first.credentials);
    const second = await this.#attempt(action, region, signal);
    if (second.answer.status === 200) return second.answer;
    throw this.#refusal(action, second.answer, codeOf(second.answer));
  }

  error(code: ErrorCode, text: string): ReturnType<StoreClient['error']> {
    return this.#http.error(code, text);
  }

  named(thrown: unknown): ReturnType<StoreClient['named']> {
    return this.#http.named(thrown);
  }

  async close(signal: AbortSignal): Promise<void> {
    await this.chain.close(signal);
    this.#http.close();
  }

  async #attempt(
    { service, target, body, purpose }: JsonAction,
    region: string,
    signal: AbortSignal,
  ): Promise<{ readonly answer: Answer; readonly credentials: AwsCredentials }> {
    const url = endpointOf(service, region, this.#context.environment, this.#endpoint);
    const bytes = Buffer.from(JSON.stringify(body));
    return await this.chain.lend(async (credentials) => {
      const headers = (): Record<string, string> => {
        const time = amzDate(Date.now() + this.#skew);
        const token = credentials.sessionToken();
        const signed = {
          'content-type': 'application/x-amz-json-1.1',
          'x-amz-date': time,
          'x-amz-target': target,
          ...(token === undefined ? {} : { 'x-amz-security-token': token }),
        };
        const request = {
          method: 'POST',
          path: canonicalPath(url.pathname, service),
          query: '',
          headers: Object.entries({ ...signed, host: url.host }),
          payload: hash('sha256', bytes),
          time,
          scope: { region, service },
        };
        using keys = credentials.signingKeys();
        return { ...signed, authorization: authorizationOf(request, credentials.accessKeyId, keys) };
      };
      const call = { method: 'POST', url, headers, body: bytes, purpose } as const;
      const overloaded = (answer: Answer) => throttling.has(codeOf(answer));
      return { answer: await this.#http.call({ ...call, overloaded }, signal), credentials };
    }, signal);
  }

  /** Whether the refusal is the fault of our clock, which is then corrected by the answer's Date. */
  #adjustClock(code: string, answer: Answer): boolean {
    if (!clockRefusals.has(code)) return false;
    const theirs = Date.parse(answer.headers.date ?? '');
    const skew = theirs - Date.now();
    if (Number.isNaN(theirs) || Math.abs(skew - this.#skew) < skewThatMatters) return false;
    this.#skew = skew;
    this.#context.log.warn(
      `provider "${this.#context.name}": the clock of AWS differs by ${Math.round(skew / 1000)} s; requests are signed with its time`,
    );
    return true;
  }

  #refusal({ purpose }: JsonAction, answer: Answer, code: string): ReturnType<StoreClient['error']> {
    using refused = answer;
    const passes = isPassing(refused.status) || throttling.has(code);
    const words = Object.hasOwn(meanings, code) ? meanings[code] : undefined;
    const json = jsonOf(refused);
    // Only where AWS explains permissions or state: a refused signature is explained with all that was signed.
    const said = explained.has(code) ? publicLine(json?.get('message') ?? json?.get('Message'), answer) : '';
    const name = code === '' ? `HTTP ${refused.status}` : code;
    const text = words ?? (passes ? 'AWS failed or allows no more requests for now' : 'AWS refused');
    return this.error(
      passes ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED',
      `${purpose}: ${text} (${name}${said && `: ${said}`})`,
    );
  }
}

/** Name of the error, without its namespace; empty when the answer is not one of AWS. */
function codeOf(answer: Answer): string {
  const json = jsonOf(answer);
  const type = json?.get('__type')?.publicText() ?? json?.get('code')?.publicText() ?? '';
  const code = type.slice(type.indexOf('#') + 1).split(':')[0] ?? '';
  return /^\w{1,100}$/.test(code) ? code : '';
}

const meanings: Readonly<Record<string, string>> = {
  ResourceNotFoundException: 'there is no such secret or version',
  ParameterNotFound: 'there is no such parameter',
  ParameterVersionNotFound: 'there is no such version of the parameter',
  AccessDeniedException: 'permission denied',
  DecryptionFailure: 'the key does not decrypt the secret',
  InvalidRequestException: 'the secret cannot be read in its present state',
  ExpiredTokenException: 'the credentials have expired',
  UnrecognizedClientException: 'AWS does not know the credentials',
  InvalidClientTokenId: 'AWS does not know the credentials',
  InvalidSignatureException: 'AWS does not accept the signature: a wrong secret key, or a wrong clock',
};

/** Codes whose message names a resource or a permission, and nothing that was sent in confidence. */
const explained: ReadonlySet<string> = new Set([
  'AccessDeniedException',
  'DecryptionFailure',
  'InvalidRequestException',
  'InvalidParameterException',
  'ValidationException',
  'InvalidKeyId',
]);

/** The same list as AWS's own clients have. */
const throttling: ReadonlySet<string> = new Set([
  'ThrottlingException',
  'Throttling',
  'TooManyRequestsException',
  'RequestLimitExceeded',
  'SlowDown',
  'RequestThrottled',
  'RequestThrottledException',
  'ProvisionedThroughputExceededException',
  'BandwidthLimitExceeded',
  'LimitExceededException',
  'PriorRequestNotComplete',
  'EC2ThrottledException',
  'TransactionInProgressException',
]);

/** The credentials may have been replaced meanwhile. */
const refusedCredentials: ReadonlySet<string> = new Set([
  'ExpiredToken',
  'ExpiredTokenException',
  'UnrecognizedClientException',
  'InvalidClientTokenId',
  'InvalidSignatureException',
]);

const clockRefusals: ReadonlySet<string> = new Set([
  'RequestTimeTooSkewed',
  'RequestExpired',
  'InvalidSignatureException',
  'SignatureDoesNotMatch',
]);
