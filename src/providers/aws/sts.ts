import { hash, randomUUID } from 'node:crypto';
import { formOf } from '../../core/bytes.ts';
import type { PosternError } from '../../core/errors.ts';
import { amzDate, authorizationOf, canonicalPath } from '../../core/sigv4.ts';
import type { Answer } from '../exchange.ts';
import type { ProviderContext } from '../provider.ts';
import { withoutLineEnd } from '../secret-file.ts';
import { isPassing, type StoreClient } from '../store-client.ts';
import { endpointOf } from './endpoint.ts';
import { AwsCredentials, copied, type ObtainedCredentials } from './identity.ts';

/** A role and who wants it: a web identity, whose request is not signed, or credentials that sign. */
interface Role {
  readonly roleArn: string;
  readonly sessionName: string | undefined;
  readonly externalId: string | undefined;
  readonly region: string | undefined;
  readonly webIdentity?: Buffer;
  readonly signer?: AwsCredentials;
}

/** AssumeRoleWithWebIdentity, or AssumeRole, of the Security Token Service. */
export async function assumeRole(
  { roleArn, sessionName, externalId, region = 'us-east-1', webIdentity, signer }: Role,
  client: StoreClient,
  environment: ProviderContext['environment'],
  signal: AbortSignal,
): Promise<ObtainedCredentials> {
  const url = endpointOf('sts', region, environment);
  const body = formOf({
    Action: webIdentity ? 'AssumeRoleWithWebIdentity' : 'AssumeRole',
    Version: '2011-06-15',
    RoleArn: roleArn,
    RoleSessionName: sessionName ?? `postern-${randomUUID()}`,
    ...(externalId === undefined ? {} : { ExternalId: externalId }),
    ...(webIdentity ? { WebIdentityToken: withoutLineEnd(webIdentity) } : {}),
  });
  const purpose = `assuming the role ${roleArn}`;
  const headers = (): Record<string, string> => {
    const time = amzDate(Date.now());
    const token = signer?.sessionToken();
    const common = {
      'content-type': 'application/x-www-form-urlencoded; charset=utf-8',
      'x-amz-date': time,
      ...(token === undefined ? {} : { 'x-amz-security-token': token }),
    };
    if (!signer) return common;
    const request = {
      method: 'POST',
      path: canonicalPath(url.pathname, 'sts'),
      query: '',
      headers: Object.entries({ ...common, host: url.host }),
      payload: hash('sha256', body),
      time,
      scope: { region, service: 'sts' },
    };
    using keys = signer.signingKeys();
    return { ...common, authorization: authorizationOf(request, signer.accessKeyId, keys) };
  };
  const overloaded = (answer: Answer) => /Throttl|IDPCommunicationError/.test(codeOf(answer));
  try {
    using answer = await client.call({ method: 'POST', url, headers, body, purpose, overloaded }, signal);
    if (answer.status !== 200) {
      const code = codeOf(answer);
      const error =
        isPassing(answer.status) || overloaded(answer) ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED';
      const said = /^\w{1,80}$/.test(code) ? `, ${code}` : '';
      throw client.error(error, `${purpose}: STS refused (HTTP ${answer.status}${said})`);
    }
    return credentialsIn(answer.body, (problem) =>
      client.error('PROVIDER_UNAVAILABLE', `${purpose}: ${problem}`),
    );
  } finally {
    body.fill(0);
  }
}

function codeOf(answer: Answer): string {
  return element(answer.body, 'Code')?.toString('latin1') ?? '';
}

/** STS answers in XML. Its values are base64 and times: no character of them is ever escaped. */
function credentialsIn(xml: Buffer, failed: (problem: string) => PosternError): ObtainedCredentials {
  const [id, key, token, end] = ['AccessKeyId', 'SecretAccessKey', 'SessionToken', 'Expiration'].map((name) =>
    element(xml, name),
  );
  if (!id || !key || !token || !end) throw failed('the answer has no credentials');
  const expiresAt = Date.parse(end.toString('latin1'));
  if (Number.isNaN(expiresAt)) throw failed('the end of the credentials is no time');
  return {
    value: new AwsCredentials(id.toString('latin1'), copied(key), copied(token)),
    expiresAt,
  };
}

function element(xml: Buffer, name: string): Buffer | undefined {
  const open = xml.indexOf(`<${name}>`);
  const start = open + name.length + 2;
  const end = open === -1 ? -1 : xml.indexOf(`</${name}>`, start);
  return end === -1 ? undefined : xml.subarray(start, end);
}
