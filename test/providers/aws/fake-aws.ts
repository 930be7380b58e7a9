import { Sha256 } from '@aws-crypto/sha256-js';
import { SignatureV4 } from '@smithy/signature-v4';

import { type FakeHttp, fakeHttp, type Said, type Seen } from '../../support/fake-http.ts';

/** Credentials that a fake accepts. */
export interface Keys {
  readonly id: string;
  readonly secret: string;
  readonly token?: string;
}

export const keys: Keys = { id: 'AKIAIOSFODNN7EXAMPLE', secret: 'AWS-CANARY-wJalrXUtnFEMI/K7MDENG' };
/** What the fake's STS, container and instance metadata hand out. */
export const temporary: Keys = {
  id: 'ASIATEMPORARY',
  secret: 'AWS-CANARY-temporary+/=',
  token: 'AWS-CANARY-session/+==',
};
export const webIdentity = 'AWS-CANARY.web.identity';
export const podToken = 'AWS-CANARY-pod-token';

/** A FAKE of Secrets Manager, Parameter Store, STS, the container's and the instance's credentials in one place. */
export interface FakeAws extends FakeHttp {
  readonly secrets: Map<string, object>;
  readonly parameters: Map<string, object>;
  /** Who may sign; the first one's expiry is what temporary credentials say. */
  accepted: Keys[];
  expiration: string;
  /** Answers in place of the fake's own, for faults. */
  fault: ((seen: Seen, count: number) => Said | undefined) | undefined;
}

export async function fakeAws(): Promise<FakeAws> {
  const secrets = new Map<string, object>();
  const parameters = new Map<string, object>();
  const fake = await fakeHttp(
    async (seen, _response, count) => self.fault?.(seen, count) ?? (await answer(seen)),
  );
  const self: FakeAws = Object.assign(fake, {
    secrets,
    parameters,
    accepted: [keys, temporary],
    expiration: '2099-01-01T00:00:00Z',
    fault: undefined,
  });

  async function answer(seen: Seen): Promise<Said> {
    const target = seen.headers['x-amz-target'];
    if (seen.method === 'POST' && target === 'secretsmanager.GetSecretValue') {
      return (await refused(seen, 'secretsmanager')) ?? getSecretValue(seen);
    }
    if (seen.method === 'POST' && target === 'AmazonSSM.GetParameter') {
      return (await refused(seen, 'ssm')) ?? getParameter(seen);
    }
    if (
      seen.method === 'POST' &&
      seen.headers['content-type']?.startsWith('application/x-www-form-urlencoded')
    ) {
      return await sts(seen);
    }
    if (seen.path === '/container') {
      if (seen.headers.authorization !== podToken) return { status: 403 };
      return { status: 200, json: document() };
    }
    return metadata(seen);
  }

  /** Signs what came with the reference signer, and compares. */
  async function refused(seen: Seen, service: string): Promise<Said | undefined> {
    const { authorization = '' } = seen.headers;
    const [, id, region = '', signed = ''] =
      /^AWS4-HMAC-SHA256 Credential=([^/]+)\/\d{8}\/([^/]+)\/[^/]+\/aws4_request, SignedHeaders=([^,]+), Signature=/.exec(
        authorization,
      ) ?? [];
    const who = self.accepted.find((each) => each.id === id);
    if (!who)
      return error(
        400,
        'UnrecognizedClientException',
        'The security token included in the request is invalid.',
      );
    const names = signed.split(';');
    for (const name of [
      'host',
      'x-amz-date',
      ...Object.keys(seen.headers).filter((each) => each.startsWith('x-amz-')),
    ])
      if (!names.includes(name)) return error(400, 'InvalidSignatureException', `${name} is not signed`);
    if (seen.headers['x-amz-security-token'] !== who.token) {
      return error(
        400,
        'UnrecognizedClientException',
        'The security token included in the request is invalid.',
      );
    }
    const headers = Object.fromEntries(names.map((name) => [name, String(seen.headers[name])]));
    const date = String(seen.headers['x-amz-date']);
    const signer = new SignatureV4({
      credentials: {
        accessKeyId: who.id,
        secretAccessKey: who.secret,
        ...(who.token === undefined ? {} : { sessionToken: who.token }),
      },
      region,
      service,
      sha256: Sha256,
      applyChecksum: false,
    });
    const at = date.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/, '$1-$2-$3T$4:$5:$6Z');
    const request = {
      method: 'POST',
      protocol: 'http:',
      hostname: '127.0.0.1',
      path: seen.path,
      query: {},
      headers,
    };
    const expected = await signer.sign({ ...request, body: seen.body }, { signingDate: new Date(at) });
    if (expected.headers['authorization'] === authorization) return undefined;
    // As AWS does: its explanation repeats what was signed, the session token too.
    return error(
      400,
      'InvalidSignatureException',
      `The request signature we calculated does not match. The Canonical String should have been 'x-amz-security-token:${who.token}'`,
    );
  }

  function getSecretValue(seen: Seen): Said {
    const { SecretId, VersionStage, VersionId, ...rest } = JSON.parse(seen.body) as Record<string, string>;
    if (Object.keys(rest).length > 0) return error(400, 'ValidationException', 'unknown member');
    const found = secrets.get([SecretId, VersionStage ?? VersionId].filter(Boolean).join('@'));
    if (!found)
      return error(400, 'ResourceNotFoundException', "Secrets Manager can't find the specified secret.");
    return { status: 200, json: { Name: SecretId, VersionStages: [VersionStage ?? 'AWSCURRENT'], ...found } };
  }

  function getParameter(seen: Seen): Said {
    const { Name = '', WithDecryption } = JSON.parse(seen.body) as {
      Name?: string;
      WithDecryption?: boolean;
    };
    const found = parameters.get(Name);
    if (!found || WithDecryption !== true) {
      return { status: 400, json: { __type: 'com.amazonaws.ssm#ParameterNotFound' } };
    }
    return { status: 200, json: { Parameter: { Name, Type: 'SecureString', ...found } } };
  }

  async function sts(seen: Seen): Promise<Said> {
    const form = new URLSearchParams(seen.body);
    const action = form.get('Action');
    if (form.get('Version') !== '2011-06-15' || !form.get('RoleArn')?.startsWith('arn:aws:iam::')) {
      return xml(400, '<ErrorResponse><Error><Code>ValidationError</Code></Error></ErrorResponse>');
    }
    if (action === 'AssumeRoleWithWebIdentity') {
      if (seen.headers.authorization || form.get('WebIdentityToken') !== webIdentity) {
        return xml(400, '<ErrorResponse><Error><Code>InvalidIdentityToken</Code></Error></ErrorResponse>');
      }
    } else if (action !== 'AssumeRole' || (await refused(seen, 'sts'))) {
      return xml(403, '<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>');
    }
    return xml(
      200,
      `<${action}Response><${action}Result><Credentials><AccessKeyId>${temporary.id}</AccessKeyId><SecretAccessKey>${temporary.secret}</SecretAccessKey><SessionToken>${temporary.token}</SessionToken><Expiration>${self.expiration}</Expiration></Credentials></${action}Result></${action}Response>`,
    );
  }

  /** Version 2 only: without a session nothing is told. */
  function metadata({ method, path, headers }: Seen): Said {
    if (path === '/latest/api/token') {
      if (method !== 'PUT' || !headers['x-aws-ec2-metadata-token-ttl-seconds'])
        return { status: 400, text: '' };
      return { status: 200, text: 'metadata-session' };
    }
    const folder = '/latest/meta-data/iam/security-credentials/';
    if (!path.startsWith(folder)) return { status: 404, text: '' };
    if (headers['x-aws-ec2-metadata-token'] !== 'metadata-session') return { status: 401, text: '' };
    if (path === folder) return { status: 200, text: 'the-role' };
    return path === `${folder}the-role`
      ? { status: 200, json: { Code: 'Success', ...document() } }
      : { status: 404 };
  }

  function document(): object {
    return {
      AccessKeyId: temporary.id,
      SecretAccessKey: temporary.secret,
      Token: temporary.token,
      Expiration: self.expiration,
    };
  }

  return self;
}

/** An error of AWS's JSON protocol. */
export function error(
  status: number,
  type: string,
  message = '',
  headers: Record<string, string> = {},
): Said {
  return { status, json: { __type: type, message }, headers };
}

function xml(status: number, text: string): Said {
  return { status, text, headers: { 'content-type': 'text/xml' } };
}
