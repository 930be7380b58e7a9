import * as z from 'zod';

import { listenAddress } from '../config/listen.ts';
import { children, type Located, plain, suggestion } from '../config/report.ts';
import { parseYaml } from '../config/yaml.ts';
import { duration } from '../core/duration.ts';
import { PosternError } from '../core/errors.ts';
import { imageProblem, isDnsLabel, isDnsName, repositoryOf } from './names.ts';
import { quantityOf } from './quantity.ts';

/** The modes of a sidecar: `auto` is native where the cluster can (1.29 and newer). */
export const modes = ['auto', 'native', 'plain'] as const;

/** Levels that a sidecar may be told to log at. */
export const sidecarLogLevels = ['debug', 'info', 'warn', 'error'] as const;

const image = z.string().superRefine((text, context) => {
  const problem = imageProblem(text);
  if (problem !== undefined) context.addIssue({ code: 'custom', message: problem });
});
const label = z.string().refine(isDnsLabel, 'must be a name of lower-case letters, digits and dashes');
const dnsName = z.string().refine(isDnsName, 'must be a name of lower-case letters, digits, dashes and dots');
const quantity = (kind: 'cpu' | 'memory') =>
  z.string().refine((text) => quantityOf(text, kind) !== undefined, `must be a quantity of ${kind}`);
const file = z.string().min(1);
const tcpAddress = listenAddress.transform((address, context) => {
  if (address.kind === 'tcp') return address;
  context.addIssue({ code: 'custom', message: 'must be an address such as tcp://0.0.0.0:8443' });
  return z.NEVER;
});

const sidecarSettings = z.strictObject({
  image: image.describe('Image of the sidecar.'),
  allowedImages: z
    .array(z.string().min(1))
    .max(64)
    .optional()
    .describe(
      'Repositories that a pod may name with `postern.dev/image`: one with nothing behind it is itself alone, one that ends in `/` is all below it. Default: the repository of `image`.',
    ),
  imagePullPolicy: z
    .enum(['Always', 'IfNotPresent', 'Never'])
    .default('IfNotPresent')
    .describe('When nodes pull it.'),
  config: dnsName
    .default('postern')
    .describe("ConfigMap of the pod's namespace with `postern.yaml`, for pods that name none."),
  mode: z
    .enum(modes)
    .default('auto')
    .describe(
      'native: an init container with restartPolicy Always. plain: the first of the containers. auto: what the cluster can.',
    ),
  cpu: quantity('cpu').default('50m').describe('CPU that a sidecar asks for.'),
  memory: quantity('memory').default('96Mi').describe('Memory that a sidecar asks for.'),
  cpuLimit: quantity('cpu').optional().describe('CPU that it gets at most. Default: no limit.'),
  memoryLimit: quantity('memory').default('256Mi').describe('Memory that it gets at most.'),
  mostCpu: quantity('cpu').default('2').describe('The most that an annotation may ask for, or limit to.'),
  mostMemory: quantity('memory')
    .default('1Gi')
    .describe('The most that an annotation may ask for, or limit to.'),
  logLevel: z.enum(sidecarLogLevels).default('info').describe('What sidecars log.'),
  runAsUser: z
    .int()
    .min(1)
    .max(2 ** 31 - 1)
    .default(65532)
    .describe("User and group of sidecars; the next number where the pod's application has this one."),
  adminPort: z
    .int()
    .min(1024)
    .max(65535)
    .default(9090)
    .describe("Port of health and metrics, on the pod's address."),
  adminHost: z
    .enum(['0.0.0.0', '::'])
    .default('0.0.0.0')
    .describe('Address that it listens on, for the kubelet; `::` where pods have IPv6 alone.'),
  preStop: duration
    .prefault('10s')
    .describe('In plain mode: how long the SIGTERM of a sidecar is held back while the application ends.'),
});

const certificateSettings = z
  .strictObject({
    certFile: file
      .optional()
      .describe(
        'Certificate of the webhook (PEM), read again when it changes; cert-manager writes such files. Without it the injector makes its own.',
      ),
    keyFile: file.optional().describe('Its private key (PEM).'),
    secret: label
      .default('postern-injector-tls')
      .describe('Secret that the replicas share for certificates of their own making.'),
    webhook: dnsName
      .default('postern-injector')
      .describe('MutatingWebhookConfiguration whose caBundle is kept.'),
    host: z
      .string()
      .min(1)
      .max(253)
      .optional()
      .describe('Name that the API server calls. Default: SERVICE.NAMESPACE.svc.'),
    service: label
      .default('postern-injector')
      .describe('Service by which the API server reaches the injector.'),
    lifetime: duration.prefault('24h').describe('How long a certificate of its own making is valid.'),
    renewBefore: duration.prefault('8h').describe('How long before its end it is replaced.'),
    settle: duration
      .prefault('60s')
      .describe('How long a new authority is in the caBundle before a certificate of it is shown.'),
    poll: duration.prefault('10s').describe('How often the Secret, the caBundle or the files are looked at.'),
  })
  .refine(({ certFile, keyFile }) => (certFile === undefined) === (keyFile === undefined), {
    message: 'give both certFile and keyFile, or none',
  })
  .refine(({ poll }) => poll >= 100, { path: ['poll'], message: 'must be 100ms or more' })
  .refine(
    ({ lifetime, renewBefore, settle, poll }) => renewBefore < lifetime && settle + 3 * poll <= renewBefore,
    {
      path: ['renewBefore'],
      message:
        'must be less than lifetime, and not less than settle and three times poll, which a renewal takes',
    },
  );

const clusterSettings = z.strictObject({
  namespace: label
    .optional()
    .describe("Namespace of the injector's Secret and Service. Default: that of its pod."),
  kubeconfig: file.optional().describe('Outside of a cluster: path of a kubeconfig.'),
  context: z.string().min(1).optional().describe('Context of the kubeconfig.'),
});

/** The file of `postern inject --config`: everything of the injector that is not of one pod. */
export const injectorSettings = z.strictObject({
  sidecar: sidecarSettings.describe('What pods get that do not say otherwise, and what they may say.'),
  listen: tcpAddress.prefault('tcp://0.0.0.0:8443').describe('Where the webhook listens (TLS).'),
  admin: z
    .union([z.literal('off').transform(() => undefined), tcpAddress])
    .prefault('tcp://0.0.0.0:9090')
    .describe('Where /livez, /readyz and /metrics listen; `off`: nowhere.'),
  maxRequests: z
    .int()
    .min(1)
    .max(1024)
    .default(32)
    .describe('Requests at once; more are told to come again.'),
  certificate: certificateSettings.prefault({}).describe('How the webhook proves who it is.'),
  cluster: clusterSettings.prefault({}).describe('The API server that the injector asks.'),
});

/** Everything of the injector that is not of one pod, parsed. */
export type InjectorSettings = z.output<typeof injectorSettings>;

/** What pods get that do not say otherwise, and what they may say. */
export type SidecarSettings = z.output<typeof sidecarSettings>;

/** How the webhook proves who it is. */
export type CertificateSettings = z.output<typeof certificateSettings>;

/** The repositories that `postern.dev/image` may name. */
export function allowedImages({ image: own, allowedImages: allowed }: SidecarSettings): readonly string[] {
  return allowed ?? [repositoryOf(own)];
}

/** Parses the text of a settings file, with `over` in the place of what it says. Throws CONFIG_INVALID with every problem on a line. */
export function parseSettings(
  text: string,
  name: string,
  over: {
    readonly image?: string | undefined;
    readonly listen?: string | undefined;
    readonly admin?: string | undefined;
  } = {},
): InjectorSettings {
  const { tree, faults } = parseYaml(text);
  if (!tree)
    throw new PosternError(
      'CONFIG_INVALID',
      faults.map(({ at, message }) => `${name}:${at.line}:${at.column}: ${message}`).join('\n'),
    );
  const written = (plain(tree) ?? {}) as Record<string, unknown>;
  const { image: ownImage, ...rest } = over;
  const sidecar = {
    ...(written['sidecar'] as object | undefined),
    ...(ownImage !== undefined && { image: ownImage }),
  };
  const given = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined));
  const result = injectorSettings.safeParse({ ...written, sidecar, ...given });
  if (result.success) return result.data;
  const root: Located = { file: name, path: [], keyAt: tree.at, tree };
  const lines = result.error.issues.map((issue) => {
    const path = issue.path.join('.');
    if (issue.code !== 'unrecognized_keys')
      return `${name}: ${path === '' ? '' : `${path}: `}${issue.message}`;
    const known = keysAt(issue.path.map(String));
    const keys = issue.keys.slice(0, 8).map((key) => `"${key.slice(0, 64)}"${suggestion(key, known)}`);
    return `${name}: ${path === '' ? '' : `${path}: `}unknown key ${keys.join(', ')}`;
  });
  // Where the file says nothing at all, that is the problem.
  if (children(root).length === 0 && ownImage === undefined)
    lines.unshift(`${name}: sidecar.image must be given`);
  throw new PosternError('CONFIG_INVALID', [...new Set(lines)].join('\n'));
}

function keysAt([section]: readonly string[]): readonly string[] {
  const parts = {
    sidecar: sidecarSettings,
    certificate: certificateSettings,
    cluster: clusterSettings,
  } as const;
  const schema =
    section !== undefined && Object.hasOwn(parts, section)
      ? parts[section as keyof typeof parts]
      : injectorSettings;
  return Object.keys(schema.shape);
}
