import * as z from 'zod';

import { duration } from '../../core/duration.ts';

const text = z.string().min(1);

/** Settings that every provider of AWS has. */
export const common = {
  region: text
    .regex(/^[a-z0-9-]{1,40}$/, 'is no name of a region')
    .optional()
    .describe(
      'Region, such as eu-central-1. An ARN says its own. Default: AWS_REGION, AWS_DEFAULT_REGION, the profile.',
    ),
  profile: text
    .optional()
    .describe(
      'Profile of ~/.aws/config and ~/.aws/credentials to take credentials from, and from nowhere else. Default: see the chain of credentials.',
    ),
  timeout: duration.prefault('5s').describe('How long one request may take.'),
  retries: z
    .int()
    .min(0)
    .max(10)
    .default(3)
    .describe('How often a request is repeated when AWS throttles, fails or is unreachable.'),
};

/** Where the service is, for a VPC endpoint or another partition. */
export const endpoint = z
  .url({ protocol: /^https?$/ })
  .optional()
  .describe(
    'URL of the service, for a VPC endpoint or another partition. Default: the AWS_ENDPOINT_URL variables, else the public endpoint of the region.',
  );

/** What each provider of AWS needs to log in. */
export interface CommonSettings {
  readonly region?: string | undefined;
  readonly profile?: string | undefined;
  readonly timeout: number;
  readonly retries: number;
}
