import type { Table } from '../core/table.ts';
import type { ProviderKind } from './provider.ts';

/** Every kind of provider the configuration may name. A new one is a file beside this and a line here. */
export const providers: Table<ProviderKind> = {
  literal: async () => (await import('./literal.ts')).literal,
  env: async () => (await import('./env.ts')).env,
  file: async () => (await import('./file.ts')).file,
  vault: async () => (await import('./vault/index.ts')).vault,
  conjur: async () => (await import('./conjur/index.ts')).conjur,
  exec: async () => (await import('./exec.ts')).exec,
  keychain: async () => (await import('./keychain.ts')).keychain,
  local: async () => (await import('./local/index.ts')).local,
  kubernetes: async () => (await import('./kubernetes/index.ts')).kubernetes,
  'aws-secrets-manager': async () => (await import('./aws/index.ts')).awsSecretsManager,
  aws: async () => (await import('./aws/index.ts')).aws,
  'aws-ssm': async () => (await import('./aws/index.ts')).awsSsm,
  'rds-iam': async () => (await import('./aws/index.ts')).rdsIam,
  'gcp-secret-manager': async () => (await import('./gcp/index.ts')).gcpSecretManager,
  'cloudsql-iam': async () => (await import('./gcp/index.ts')).cloudsqlIam,
  'azure-key-vault': async () => (await import('./azure/index.ts')).azureKeyVault,
  entra: async () => (await import('./azure/index.ts')).entra,
};
