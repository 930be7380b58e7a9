import { aws, awsSecretsManager, awsSsm, rdsIam } from './aws/index.ts';
import { azureKeyVault, entra } from './azure/index.ts';
import { conjur } from './conjur/index.ts';
import { env } from './env.ts';
import { exec } from './exec.ts';
import { file } from './file.ts';
import { cloudsqlIam, gcpSecretManager } from './gcp/index.ts';
import { keychain } from './keychain.ts';
import { kubernetes } from './kubernetes/index.ts';
import { literal } from './literal.ts';
import { local } from './local/index.ts';
import type { ProviderKind } from './provider.ts';
import { vault } from './vault/index.ts';

/** Every kind of provider the configuration may name. A new one is a file beside this and a line here. */
export const providers: Readonly<Record<string, ProviderKind>> = {
  literal,
  env,
  file,
  vault,
  conjur,
  exec,
  keychain,
  local,
  kubernetes,
  'aws-secrets-manager': awsSecretsManager,
  aws,
  'aws-ssm': awsSsm,
  'rds-iam': rdsIam,
  'gcp-secret-manager': gcpSecretManager,
  'cloudsql-iam': cloudsqlIam,
  'azure-key-vault': azureKeyVault,
  entra,
};
