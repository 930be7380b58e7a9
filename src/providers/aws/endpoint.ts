import { PosternError } from '../../core/errors.ts';
import type { ProviderContext } from '../provider.ts';

/** What the variables AWS_ENDPOINT_URL_... call each service. */
const variables = { secretsmanager: 'SECRETS_MANAGER', ssm: 'SSM', sts: 'STS' } as const;

/** Where a service of a region is. Throws PROVIDER_FAILED. */
export function endpointOf(
  service: keyof typeof variables,
  region: string,
  environment: ProviderContext['environment'],
  configured?: string,
): URL {
  const named =
    configured ||
    environment[`AWS_ENDPOINT_URL_${variables[service]}`] ||
    environment['AWS_ENDPOINT_URL'] ||
    undefined;
  const suffix = region.startsWith('cn-') ? 'amazonaws.com.cn' : 'amazonaws.com';
  const url = URL.parse(named ?? `https://${service}.${region}.${suffix}/`);
  if (!url || !/^https?:$/.test(url.protocol) || url.search || url.username) {
    throw new PosternError(
      'PROVIDER_FAILED',
      `the endpoint of ${service} must be a URL of scheme, host and path`,
    );
  }
  return url;
}
