import { type Document, isAlias, isMap, isPair, isSeq, parseAllDocuments, visit } from 'yaml';

import { formatPath } from '../config/report.ts';
import { PosternError } from '../core/errors.ts';
import { prefix, Refusal } from './annotations.ts';
import { difference, keysOf, type Operation } from './json-patch.ts';
import { injectPod, type Surroundings } from './pod.ts';

/** What a file of manifests became. */
export interface Rewritten {
  readonly text: string;
  /** How many pods or templates have got the sidecar. */
  readonly injected: number;
  /** For the person at the terminal. */
  readonly notes: readonly string[];
}

/** Where the pod, or the template of pods, is in an object of each kind. */
const podPaths: Readonly<Record<string, readonly string[]>> = {
  Pod: [],
  PodTemplate: ['template'],
  Deployment: ['spec', 'template'],
  StatefulSet: ['spec', 'template'],
  DaemonSet: ['spec', 'template'],
  ReplicaSet: ['spec', 'template'],
  ReplicationController: ['spec', 'template'],
  Job: ['spec', 'template'],
  CronJob: ['spec', 'jobTemplate', 'spec', 'template'],
};

const mostDocuments = 1000;

type Keys = readonly (string | number)[];

/**
 * Adds the sidecar to the pods, workloads and lists of them in a text of YAML documents, as the webhook would to their
 * pods; everything else stays as it is written, with its comments. Throws CONFIG_INVALID with every problem on a line.
 */
export function injectManifests(text: string, file: string, surroundings: Surroundings): Rewritten {
  const documents = parseAllDocuments(text, { merge: true });
  if (!Array.isArray(documents) || documents.length === 0)
    throw new PosternError('CONFIG_INVALID', `${file}: there is nothing in it`);
  if (documents.length > mostDocuments)
    throw new PosternError('CONFIG_INVALID', `${file}: more than ${mostDocuments} documents`);
  const problems: string[] = [];
  const notes: string[] = [];
  let injected = 0;
  let end = 0;
  const pieces = documents.map((document, index) => {
    // With the comments before it, and at the end of the file, which its own range leaves out.
    const begin = end;
    end = index === documents.length - 1 ? text.length : document.range[2];
    const asItWas = text.slice(begin, end);
    const [fault] = document.errors;
    const { line, col } = fault?.linePos?.[0] ?? { line: 0, col: 0 };
    if (fault) {
      // The library's message quotes the text behind a colon.
      problems.push(`${file}:${line}:${col}: ${fault.message.split(/ at line |:\n/)[0]}`);
      return '';
    }
    let content: unknown;
    try {
      content = document.toJS({ maxAliasCount: 1000 });
    } catch {
      problems.push(`${file}: document ${index + 1}: its aliases cannot be followed`);
      return '';
    }
    const steps: Operation[] = [];
    for (const { object, path } of objectsIn(content)) {
      const kind = String(object['kind']).slice(0, 40);
      const name = nameOf(object);
      const podPath = podPaths[kind] ?? [];
      const pod = follow(object, podPath);
      if (
        podPath.length > 0 &&
        ownKeys(object).length > 0 &&
        follow(object, [...podPath, 'metadata', 'annotations', `${prefix}inject`]) === undefined
      )
        notes.push(
          `${kind} ${name}: ${ownKeys(object)[0]} stands on the object itself: pods have what stands at ${formatPath(podPath)}.metadata.annotations`,
        );
      try {
        const { outcome, pod: result, warnings } = injectPod(pod, surroundings);
        if (outcome === 'injected') injected++;
        if (outcome === 'already') notes.push(`${kind} ${name}: has the sidecar already`);
        for (const warning of warnings) notes.push(`${kind} ${name}: ${warning}`);
        steps.push(...difference(pod, result, pointer([...path, ...podPath])));
      } catch (thrown) {
        if (!(thrown instanceof Refusal)) throw thrown;
        for (const problem of thrown.problems) problems.push(`${file}: ${kind} ${name}: ${problem}`);
      }
    }
    return steps.length === 0 ? asItWas : written(patched(document, content, steps, notes), index);
  });
  if (problems.length > 0) throw new PosternError('CONFIG_INVALID', problems.join('\n'));
  return { text: pieces.join(''), injected, notes };
}

/** The objects with pods in a document: itself, or the items of a List. */
function* objectsIn(
  content: unknown,
  path: Keys = [],
): Iterable<{ object: Record<string, unknown>; path: Keys }> {
  if (typeof content !== 'object' || content === null || path.length > 8) return;
  const object = content as Record<string, unknown>;
  const { kind, items } = object;
  if (typeof kind !== 'string') return;
  if (kind.endsWith('List') && Array.isArray(items)) {
    for (const [index, item] of items.entries()) yield* objectsIn(item, [...path, 'items', index]);
  } else if (Object.hasOwn(podPaths, kind)) yield { object, path };
}

/**
 * The steps done to the document itself, so that comments and the order of keys stay. Where it has anchors a node may stand
 * in several places, and all of them would change: such a document is written anew.
 */
function patched(
  document: Document,
  content: unknown,
  steps: readonly Operation[],
  notes: string[],
): Document {
  let shared = false;
  visit(document, {
    Alias: () => {
      shared = true;
      return visit.BREAK;
    },
    Pair: (_key, pair) => {
      if (isPair(pair) && String(pair.key) === '<<') shared = true;
    },
  });
  let target = document;
  if (shared) {
    notes.push('a document with anchors is written anew, without its comments');
    const [fresh] = parseAllDocuments(JSON.stringify(content));
    if (!fresh || !('contents' in fresh)) throw new PosternError('INTERNAL', 'unexpected failure');
    target = fresh as Document;
    visit(target, {
      Collection: (_key, node) => {
        node.flow = false;
      },
      Scalar: (_key, node) => {
        node.type = undefined as never;
      },
    });
  }
  for (const step of steps) apply(target, step);
  return target;
}

function apply(document: Document, step: Operation): void {
  const keys = keysOf(step.path);
  const last = keys.at(-1) ?? '';
  const parent = document.getIn(keys.slice(0, -1), true);
  if (isAlias(parent)) throw new PosternError('INTERNAL', 'unexpected failure');
  if (step.op === 'remove') document.deleteIn(keys);
  else if (isSeq(parent) && step.op === 'add')
    parent.items.splice(Number(last), 0, document.createNode(step.value));
  else if (isMap(parent) || isSeq(parent))
    parent.set(isSeq(parent) ? Number(last) : last, document.createNode(step.value));
  else throw new PosternError('INTERNAL', 'unexpected failure');
}

/** A document that has got steps, as a text that may stand behind others. */
function written(document: Document, index: number): string {
  const body = document.toString({ lineWidth: 0 }).replace(/\n*$/, '\n');
  // Those of a file bring their separator; one that is written anew has none.
  return index === 0 || document.directives?.docStart ? body : `---\n${body}`;
}

function follow(object: unknown, path: readonly string[]): unknown {
  return path.reduce<unknown>(
    (value, key) =>
      typeof value === 'object' && value !== null && Object.hasOwn(value, key)
        ? (value as Record<string, unknown>)[key]
        : undefined,
    object,
  );
}

function nameOf(object: unknown): string {
  const name = follow(object, ['metadata', 'name']) ?? follow(object, ['metadata', 'generateName']);
  return JSON.stringify(typeof name === 'string' ? name.slice(0, 63) : '');
}

/** Annotations of ours on the object itself. */
function ownKeys(object: unknown): readonly string[] {
  const annotations = follow(object, ['metadata', 'annotations']);
  return Object.keys(typeof annotations === 'object' && annotations !== null ? annotations : {}).filter(
    (key) => key === `${prefix}inject`,
  );
}

function pointer(keys: Keys): string {
  return keys.map((key) => `/${key}`).join('');
}
