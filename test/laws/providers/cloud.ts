import { fakeAws } from '../../providers/aws/fake-aws.ts';
import { fakeAzure } from '../../providers/azure/fake-azure.ts';
import { fakeGoogle, payload } from '../../providers/gcp/fake-google.ts';
import { type Opened, open } from '../../providers/opening.ts';
import { fakeHttp } from '../../support/fake-http.ts';

/** What the laws need of a provider of a cloud. */
interface CloudSample {
  readonly open: () => Opened;
  readonly references: readonly [string, string];
  readonly missing: string | undefined;
  readonly hung: () => Opened;
  readonly sideBySide?: true;
  readonly read?: (text: string) => string;
  readonly stop: () => Promise<void>;
}

/** Samples of the providers of AWS, Google Cloud and Azure, over FAKES of these. */
export function cloudSamples({
  first,
  second,
}: {
  readonly first: string;
  readonly second: string;
}): Readonly<Record<string, () => Promise<CloudSample>>> {
  const secretsManager = (kind: string) => async (): Promise<CloudSample> => {
    const aws = await fakeAws();
    aws.secrets.set('first', { SecretString: first, VersionId: '1' });
    aws.secrets.set('second', { SecretString: JSON.stringify({ a: { b: second } }) });
    return await ofAws(kind, aws, ['first', 'second#a.b'], 'second#none');
  };

  async function ofAws(
    kind: string,
    aws: Awaited<ReturnType<typeof fakeAws>>,
    references: readonly [string, string],
    missing: string | undefined,
  ): Promise<CloudSample> {
    const silent = await fakeHttp(() => 'by hand');
    const settings = { region: 'eu-central-1', ...(kind === 'rds-iam' ? {} : { endpoint: aws.url }) };
    const hung = { region: 'eu-central-1', ...(kind === 'rds-iam' ? {} : { endpoint: silent.url }) };
    return {
      open: () => open(kind, settings, { AWS_EC2_METADATA_SERVICE_ENDPOINT: aws.url }),
      hung: () => open(kind, hung, { AWS_EC2_METADATA_SERVICE_ENDPOINT: silent.url }),
      references,
      missing,
      sideBySide: true,
      stop: async () => {
        await aws.stop();
        await silent.stop();
      },
    };
  }

  async function ofGoogle(
    kind: string,
    settings: (url: string) => object,
    references: readonly [string, string],
    missing: string,
  ): Promise<CloudSample> {
    const [google, silent] = [await fakeGoogle(), await fakeHttp(() => 'by hand')];
    google.versions.set('projects/p/secrets/first/versions/latest', payload(first));
    google.versions.set(
      'projects/p/secrets/second/versions/latest',
      payload(JSON.stringify({ a: { b: second } })),
    );
    google.tokenFor.set('https://example.com/first', first).set('https://example.com/second', second);
    return {
      open: () => open(kind, settings(google.url), { GCE_METADATA_HOST: google.host }),
      hung: () => open(kind, settings(silent.url), { GCE_METADATA_HOST: silent.host }),
      references,
      missing,
      sideBySide: true,
      stop: async () => {
        await google.stop();
        await silent.stop();
      },
    };
  }

  async function ofAzure(
    kind: string,
    settings: (url: string) => object,
    references: readonly [string, string],
    missing: string,
  ): Promise<CloudSample> {
    const [azure, silent] = [await fakeAzure(), await fakeHttp(() => 'by hand')];
    azure.secrets.set('first', { value: first });
    azure.secrets.set('second', { value: JSON.stringify({ a: { b: second } }) });
    azure.tokenFor.set('https://example.com/first', first).set('https://example.com/second', second);
    const environment = (url: string) => ({ AZURE_POD_IDENTITY_AUTHORITY_HOST: url });
    return {
      open: () => open(kind, settings(azure.url), environment(azure.url)),
      hung: () => open(kind, settings(silent.url), environment(silent.url)),
      references,
      missing,
      sideBySide: true,
      stop: async () => {
        await azure.stop();
        await silent.stop();
      },
    };
  }

  const scopes = ['https://example.com/first', 'https://example.com/second'] as const;
  return {
    'aws-secrets-manager': secretsManager('aws-secrets-manager'),
    aws: secretsManager('aws'),
    'aws-ssm': async () => {
      const aws = await fakeAws();
      aws.parameters.set('/first', { Value: first, Version: 1 });
      aws.parameters.set('/second', { Value: JSON.stringify({ a: { b: second } }), Version: 2 });
      return await ofAws('aws-ssm', aws, ['/first', '/second#a.b'], '/none');
    },
    'rds-iam': async () => ({
      ...(await ofAws(
        'rds-iam',
        await fakeAws(),
        ['first@db.internal:5432', 'second@db.internal:5432'],
        undefined,
      )),
      // Made of the time and a signature, and always another one.
      read: (token) => (token.startsWith('db.internal:5432/?Action=connect&DBUser=first&') ? first : second),
    }),
    'gcp-secret-manager': () =>
      ofGoogle(
        'gcp-secret-manager',
        (endpoint) => ({ endpoint, project: 'p' }),
        ['first', 'second#a.b'],
        'none',
      ),
    'cloudsql-iam': () => ofGoogle('cloudsql-iam', () => ({}), scopes, 'https://example.com/nothing'),
    'azure-key-vault': () =>
      ofAzure(
        'azure-key-vault',
        (vault) => ({ vault, scope: 'https://vault.azure.net/.default' }),
        ['first', 'second#a.b'],
        'none',
      ),
    entra: () => ofAzure('entra', () => ({}), scopes, 'https://example.com/nothing'),
  };
}
