import * as z from 'zod';

import { Refusal } from './annotations.ts';
import { difference } from './json-patch.ts';
import { injectPod, type Surroundings } from './pod.ts';

/** What became of one request, as it is counted and logged. */
export type Outcome = 'injected' | 'already' | 'unasked' | 'refused' | 'other';

/** All that there are, beside those of requests that are no review (server.ts). */
export const reviewOutcomes: readonly Outcome[] = ['injected', 'already', 'unasked', 'refused', 'other'];

/** The answer to a review, and what to say of it in the log. */
export interface Reviewed {
  readonly body: string;
  readonly outcome: Outcome;
  readonly namespace: string;
  /** The pod's name, or the beginning of it where the API server will choose the rest. */
  readonly pod: string;
  readonly reason: string | undefined;
}

const named = z.object({ name: z.string().nullish(), generateName: z.string().nullish() }).nullish();
const reviewSchema = z.object({
  apiVersion: z.literal('admission.k8s.io/v1'),
  kind: z.literal('AdmissionReview'),
  request: z.object({
    uid: z.string().min(1).max(128),
    kind: z.object({ group: z.string().default(''), version: z.string(), kind: z.string() }),
    operation: z.string(),
    subResource: z.string().nullish(),
    namespace: z.string().max(253).default(''),
    object: z.looseObject({ metadata: named }).nullish(),
  }),
});

/** The longest message that goes back, in characters. */
const longestMessage = 1500;

/** Answers an AdmissionReview of version 1; undefined when the text is none. */
export function review(text: string, surroundings: Surroundings): Reviewed | undefined {
  let written: unknown;
  try {
    written = JSON.parse(text);
  } catch {
    return undefined;
  }
  const parsed = reviewSchema.safeParse(written);
  if (!parsed.success) return undefined;
  const { request } = parsed.data;
  // The object as it came, and not as the schema has it.
  const { object } = (written as { request: { object: unknown } }).request;
  const about = {
    namespace: request.namespace,
    pod: (request.object?.metadata?.name || request.object?.metadata?.generateName || '').slice(0, 253),
  };
  const answer = (response: object, outcome: Outcome, reason?: string): Reviewed => ({
    body: JSON.stringify({
      apiVersion: 'admission.k8s.io/v1',
      kind: 'AdmissionReview',
      response: { uid: request.uid, ...response },
    }),
    outcome,
    ...about,
    reason,
  });

  const { group, version, kind } = request.kind;
  if (
    group !== '' ||
    version !== 'v1' ||
    kind !== 'Pod' ||
    request.operation !== 'CREATE' ||
    request.subResource
  )
    return answer({ allowed: true }, 'other');
  try {
    const { outcome, pod, warnings } = injectPod(object, surroundings);
    const patch = difference(object, pod);
    return answer(
      {
        allowed: true,
        ...(patch.length > 0 && {
          patchType: 'JSONPatch',
          patch: Buffer.from(JSON.stringify(patch)).toString('base64'),
        }),
        ...(warnings.length > 0 && { warnings }),
      },
      outcome,
    );
  } catch (thrown) {
    if (!(thrown instanceof Refusal)) throw thrown;
    const reason = thrown.message.slice(0, longestMessage);
    const status = { code: 422, reason: 'Invalid', message: `postern: ${reason}` };
    return answer({ allowed: false, status }, 'refused', reason);
  }
}
