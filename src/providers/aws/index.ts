import * as z from 'zod';

import { openLazily } from '../lazy.ts';
import { defineProvider } from '../provider.ts';
import { checkParameterReference, checkSecretReference, checkTarget } from './reference.ts';
import { common, endpoint } from './settings.ts';

const store = z.strictObject({ ...common, endpoint });

/** AWS Secrets Manager. */
export const awsSecretsManager = defineProvider({
  summary: 'AWS Secrets Manager: a whole secret, or a field of its JSON.',
  reference:
    '`name` or the ARN for the whole secret, `name#field` for a field of its JSON; `?stage=AWSPREVIOUS` or `?version=ID` before the `#` for another version.',
  settings: store,
  checkReference: checkSecretReference,
  open: (parsed, context) =>
    openLazily(async () => (await import('./secrets-manager.ts')).openSecretsManager(parsed, context)),
});

/** The same under the name that it has in Secretless. */
export const aws = { ...awsSecretsManager, summary: "Secretless's name for `aws-secrets-manager`." };

/** AWS Systems Manager Parameter Store. */
export const awsSsm = defineProvider({
  summary: 'AWS Systems Manager Parameter Store: parameters, decrypted.',
  reference:
    '`/path/name` or the ARN, with `:3` or `:label` for another version; `#field` behind it for a field of its JSON.',
  settings: store,
  checkReference: checkParameterReference,
  open: (parsed, context) =>
    openLazily(async () => (await import('./ssm.ts')).openParameterStore(parsed, context)),
});

/** RDS and Aurora IAM authentication. */
export const rdsIam = defineProvider({
  summary: 'Login tokens of RDS and Aurora (IAM authentication), as the password of PostgreSQL or MySQL.',
  reference: '`user@host:port`, with the endpoint of the instance or cluster as RDS names it.',
  settings: z.strictObject(common),
  checkReference: checkTarget,
  open: (parsed, context) =>
    openLazily(async () => (await import('./rds-iam.ts')).openRdsIam(parsed, context)),
});
