import * as z from 'zod';

import { duration } from '../../core/duration.ts';
import { checkTokenReference } from '../bearer.ts';
import { openLazily } from '../lazy.ts';
import { defineProvider } from '../provider.ts';
import { checkReference } from './reference.ts';

const text = z.string().min(1);

const common = {
  credentialsFile: text
    .optional()
    .describe(
      'JSON file of a service account, of workload identity federation or of a user. Default: GOOGLE_APPLICATION_CREDENTIALS, the file of `gcloud auth application-default login`, then the metadata server.',
    ),
  timeout: duration.prefault('5s').describe('How long one request may take.'),
  retries: z
    .int()
    .min(0)
    .max(10)
    .default(2)
    .describe('How often a request is repeated when Google is overloaded, fails or is unreachable.'),
};
export type CommonSettings = z.output<z.ZodObject<typeof common>>;

const store = z.strictObject({
  ...common,
  project: text
    .regex(/^[a-z0-9:.-]{1,100}$/, 'is no id of a project')
    .optional()
    .describe('Project of references that name none. Default: GOOGLE_CLOUD_PROJECT.'),
  endpoint: z
    .url({ protocol: /^https?$/ })
    .optional()
    .describe(
      'URL of the service, for Private Service Connect. Default: the public one, of the location where the reference names one.',
    ),
});
export type StoreSettings = z.output<typeof store>;

/** Google Cloud Secret Manager. */
export const gcpSecretManager = defineProvider({
  summary: 'Google Cloud Secret Manager: a whole secret, or a field of its JSON.',
  reference:
    '`name`, `name/versions/3` or `projects/P/secrets/NAME/versions/V` (a number, an alias or `latest`, which is the default), also with `/locations/L` for a regional secret; `#field` behind it for a field of its JSON.',
  settings: store,
  checkReference,
  open: (parsed, context) =>
    openLazily(async () => (await import('./secret-manager.ts')).openSecretManager(parsed, context)),
});

/** Cloud SQL IAM database authentication. */
export const cloudsqlIam = defineProvider({
  summary:
    'Access tokens for Cloud SQL (IAM database authentication), as the password of PostgreSQL or MySQL.',
  reference: '`token`, or another scope of Google: `https://www.googleapis.com/auth/...`.',
  settings: z.strictObject(common),
  checkReference: checkTokenReference,
  open: (parsed, context) =>
    openLazily(async () => (await import('./cloudsql-iam.ts')).openCloudsqlIam(parsed, context)),
});
