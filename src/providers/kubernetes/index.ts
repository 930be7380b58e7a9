import * as z from 'zod';

import { duration } from '../../core/duration.ts';
import { openLazily } from '../lazy.ts';
import { defineProvider } from '../provider.ts';
import { checkReference, isName } from './reference.ts';

const text = z.string().min(1);
const namespace = text.refine((name) => isName(name, 63), 'is no name of a namespace');

const settings = z
  .strictObject({
    namespace: namespace
      .optional()
      .describe(
        "Namespace of references that name none. Default: the pod's own, or that of the kubeconfig's context.",
      ),
    namespaces: z
      .array(namespace)
      .default([])
      .describe('Other namespaces that a reference may name, as in `namespace/name#key`.'),
    allowOtherNamespaces: z
      .boolean()
      .default(false)
      .describe('Whether a reference may name any namespace. What it may read there is up to RBAC.'),
    trim: z
      .boolean()
      .default(false)
      .describe(
        'Whether to cut the line end at the end of a value, which `echo` leaves there. Without it the value is every byte of the key.',
      ),
    watch: z
      .boolean()
      .default(false)
      .describe(
        'Whether to watch each secret that was asked for once: a login then needs no request. Needs the verbs `list` and `watch` too. While a watch is not current the secret is read for each login.',
      ),
    watchSilence: duration
      .prefault('90s')
      .describe(
        'How long a watch may say nothing before it is taken for dead. The API server says something each minute.',
      ),
    server: z
      .url({ protocol: /^https?$/ })
      .optional()
      .describe('Address of the API server, where it is neither the one of the pod nor in a kubeconfig.'),
    ca: text
      .optional()
      .describe(
        "File with the CA certificates of the API server (PEM), read again when it changes. Default: the pod's own, or the kubeconfig's.",
      ),
    tokenFile: text
      .optional()
      .describe(
        'File with the service account token, read for each request: Kubernetes replaces it. Default: the one of the pod.',
      ),
    kubeconfig: text
      .optional()
      .describe(
        'Path of a kubeconfig file. Default: KUBECONFIG (several paths are merged), then the service account of the pod, then ~/.kube/config.',
      ),
    context: text.optional().describe("Context of the kubeconfig. Default: the file's current context."),
    timeout: duration.prefault('5s').describe('How long one request may take.'),
    retries: z
      .int()
      .min(0)
      .max(10)
      .default(2)
      .describe('How often a request is repeated when the API server is overloaded or unreachable.'),
  })
  .refine(({ server, kubeconfig }) => server === undefined || kubeconfig === undefined, {
    message: 'give only one of server, kubeconfig',
  })
  .refine(({ kubeconfig, tokenFile, ca }) => kubeconfig === undefined || (tokenFile ?? ca) === undefined, {
    message: 'tokenFile and ca stand in the kubeconfig, where there is one',
  });

export type Settings = z.output<typeof settings>;

/** Secrets of a Kubernetes cluster, through its API. */
export const kubernetes = defineProvider({
  summary: 'Kubernetes Secrets, read through the API for each login or watched.',
  reference:
    '`name#key` for a secret of the own namespace, or `namespace/name#key` where the settings permit that namespace.',
  settings,
  checkReference,
  open: (parsed, context) =>
    openLazily(async () => (await import('./secrets.ts')).openSecrets(parsed, context)),
});
