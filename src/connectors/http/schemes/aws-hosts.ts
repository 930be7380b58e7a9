/** Services whose host has another word than their signatures. */
const signingNames: Readonly<Record<string, string>> = {
  email: 'ses',
  'email-fips': 'ses',
  'bedrock-runtime': 'bedrock',
  'bedrock-agent': 'bedrock',
  'bedrock-agent-runtime': 'bedrock',
  'runtime.sagemaker': 'sagemaker',
  'api.sagemaker': 'sagemaker',
  'streams.dynamodb': 'dynamodb',
  'entitlement.marketplace': 'aws-marketplace',
  'metering.marketplace': 'aws-marketplace',
  'api.ecr': 'ecr',
  'api.pricing': 'pricing',
  'data.jobs.iot': 'iot-jobs-data',
  'models.lex': 'lex',
  'runtime.lex': 'lex',
  'api.mediatailor': 'mediatailor',
  transcribestreaming: 'transcribe',
  'lambda-url': 'lambda',
};

/** Services with one host for the whole world, signed for this region. */
const worldwide: Readonly<Record<string, string>> = {
  iam: 'us-east-1',
  route53: 'us-east-1',
  cloudfront: 'us-east-1',
  sts: 'us-east-1',
  s3: 'us-east-1',
  organizations: 'us-east-1',
  ce: 'us-east-1',
  globalaccelerator: 'us-west-2',
  shield: 'us-east-1',
  waf: 'us-east-1',
  support: 'us-east-1',
  importexport: 'us-east-1',
};

const region = /^(?:[a-z]{2}(?:-[a-z]{2,8}){1,3}-\d)$/;

/** What a host of AWS says about how requests to it are signed; undefined where it does not say. */
export function awsScopeOf(host: string): { readonly service: string; readonly region: string } | undefined {
  const inDomain = /^(.+)\.(?:amazonaws\.com|amazonaws\.com\.cn|api\.aws|on\.aws)\.?$/.exec(
    host.toLowerCase(),
  );
  if (!inDomain?.[1]) return undefined;
  const labels = inDomain[1].split('.').filter((label) => label !== 'dualstack');
  if (labels.at(-1) === 'vpce') labels.pop();
  const last = labels.at(-1) ?? '';

  // s3-us-west-2.amazonaws.com, the old way to write it; s3-fips is a service of a region like the others.
  const old = /^s3-(.+)$/.exec(last)?.[1];
  if (old !== undefined && region.test(old)) return { service: 's3', region: old };

  if (region.test(last)) {
    const service = labels.at(-2);
    if (service === undefined) return undefined;
    const two = labels.slice(-3, -1).join('.');
    return { service: named(two) ?? named(service) ?? service.replace(/-fips$/, ''), region: last };
  }
  const before = labels.at(-2) ?? '';
  // The region stands first where the host is a customer's own: ID.REGION.es.amazonaws.com, REGION.queue.amazonaws.com.
  if (region.test(before)) {
    if (last === 'queue') return { service: 'sqs', region: before };
    if (last === 'es' || last === 'aoss') return { service: last, region: before };
    return undefined;
  }
  const home = Object.hasOwn(worldwide, last) ? worldwide[last] : undefined;
  return home === undefined ? undefined : { service: last, region: home };
}

function named(word: string): string | undefined {
  return Object.hasOwn(signingNames, word) ? signingNames[word] : undefined;
}

/** The host of a service, as an SDK finds it. */
export function awsHostOf(service: string, inRegion: string): string {
  const domain = inRegion.startsWith('cn-') ? 'amazonaws.com.cn' : 'amazonaws.com';
  const word = service === 'ses' ? 'email' : service;
  if (
    Object.hasOwn(worldwide, service) &&
    service !== 's3' &&
    service !== 'sts' &&
    !inRegion.startsWith('cn-')
  )
    return `${word}.${domain}`;
  return `${word}.${inRegion}.${domain}`;
}
