import { isDeepStrictEqual } from 'node:util';
import * as z from 'zod';

const condition = z.looseObject({
  type: z.string(),
  status: z.string(),
  reason: z.string(),
  message: z.string(),
  lastTransitionTime: z.string(),
  observedGeneration: z.number().optional(),
});

const instance = z.looseObject({
  name: z.string(),
  observedGeneration: z.number(),
  reason: z.string(),
  message: z.string(),
  lastSeen: z.string(),
});

/** What the API server keeps in `status`; what is of another form is as good as not there. */
export const resourceStatus = z.looseObject({
  conditions: z.array(condition).optional().catch(undefined),
  instances: z.array(instance).optional().catch(undefined),
});

export type ResourceStatus = z.output<typeof resourceStatus>;
type Condition = z.output<typeof condition>;
type Instance = z.output<typeof instance>;

/** What has become of one generation of a resource in this process. */
export interface Verdict {
  readonly generation: number;
  /** Why it is not in force; undefined: it is. */
  readonly trouble: { readonly code: string; readonly message: string } | undefined;
}

/** An instance that died without a word is forgotten after this time, in milliseconds. */
const wordOfInstance = 30 * 60_000;
/** A living one repeats its word long before. */
const repeatedAfter = 10 * 60_000;
const mostInstances = 16;
const longestMessage = 1024;

/**
 * The status as it should be, given what one instance has to say; undefined: as it is. Many instances share one
 * resource and all compute the same, so that as long as nothing is wrong only the first one writes. Those in which
 * a generation is not in force are listed, some of them; the conditions follow from the list.
 */
export function nextStatus(
  current: ResourceStatus,
  name: string,
  { generation, trouble }: Verdict,
  now: Date,
): ResourceStatus | undefined {
  const others = living(current, generation, now).filter((each) => each.name !== name);
  const own = trouble && wordOf(current, name, generation, trouble, now);
  const instances = own && others.length < mostInstances ? inOrder([...others, own]) : others;
  const unread = instances.filter(({ reason }) => reason === 'CONFIG_INVALID');
  const conditions = [
    conditionOf(current, 'Accepted', unread, 'Accepted', 'every instance can read it', generation, now),
    conditionOf(current, 'Ready', instances, 'InForce', 'it is in force', generation, now),
  ];
  return changed(current, { conditions, instances });
}

/** The status without this instance, which ends; undefined: as it is. The others see to the conditions. */
export function statusWithout(current: ResourceStatus, name: string): ResourceStatus | undefined {
  const instances = (current.instances ?? []).filter((each) => each.name !== name);
  return changed(current, { conditions: current.conditions, instances });
}

function changed(current: ResourceStatus, next: ResourceStatus): ResourceStatus | undefined {
  const same =
    isDeepStrictEqual(current.conditions, next.conditions) &&
    isDeepStrictEqual(current.instances ?? [], next.instances);
  return same ? undefined : next;
}

/** Those whose word is about this generation and not too old. A clock that is ahead does not make it last for ever. */
function living({ instances = [] }: ResourceStatus, generation: number, now: Date): Instance[] {
  return instances.filter(
    ({ observedGeneration, lastSeen }) =>
      observedGeneration === generation && Math.abs(now.getTime() - Date.parse(lastSeen)) < wordOfInstance,
  );
}

function wordOf(
  { instances = [] }: ResourceStatus,
  name: string,
  observedGeneration: number,
  { code, message }: NonNullable<Verdict['trouble']>,
  now: Date,
): Instance {
  const said = { name, observedGeneration, reason: code, message: brief(message) };
  const before = instances.find((each) => each.name === name);
  const fresh = before !== undefined && Math.abs(now.getTime() - Date.parse(before.lastSeen)) < repeatedAfter;
  return fresh && isDeepStrictEqual({ ...before, lastSeen: '' }, { ...said, lastSeen: '' })
    ? before
    : { ...said, lastSeen: now.toISOString() };
}

/** One line of bounded length: it has names in it and no values. */
function brief(message: string): string {
  const line = message.replaceAll(/\s*\n\s*/g, '; ');
  return line.length > longestMessage ? `${line.slice(0, longestMessage - 3)}...` : line;
}

function inOrder(instances: readonly Instance[]): Instance[] {
  return instances.toSorted((a, b) => (a.name < b.name ? -1 : 1));
}

function conditionOf(
  { conditions = [] }: ResourceStatus,
  type: string,
  against: readonly Instance[],
  reasonIfTrue: string,
  messageIfTrue: string,
  observedGeneration: number,
  now: Date,
): Condition {
  const [first, ...others] = against;
  const status = first ? 'False' : 'True';
  const more = others.length > 0 ? ` (and ${others.length} other instance(s))` : '';
  const before = conditions.find((each) => each.type === type);
  return {
    type,
    status,
    reason: first?.reason ?? reasonIfTrue,
    message: first ? `${first.name}: ${first.message}${more}` : messageIfTrue,
    lastTransitionTime: before?.status === status ? before.lastTransitionTime : now.toISOString(),
    observedGeneration,
  };
}
