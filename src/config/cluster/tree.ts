import { PosternError } from '../../core/errors.ts';
import type { Entry, Place, Tree } from '../yaml.ts';

/** A resource has no lines. */
const nowhere: Place = { line: 0, column: 0 };
const deepest = 64;

/** Turns JSON into a tree like that of a file. Throws CONFIG_INVALID where it is nested too deeply. */
export function treeOf(value: unknown, depth = 0): Tree {
  if (depth > deepest) throw new PosternError('CONFIG_INVALID', 'is nested too deeply');
  if (Array.isArray(value)) {
    const items = value.map((item) => treeOf(item, depth + 1));
    return { kind: 'list', at: nowhere, size: items.reduce((sum, { size }) => sum + size, 1), items };
  }
  if (typeof value === 'object' && value !== null) {
    const entries = new Map<string, Entry>(
      Object.entries(value).map(([key, inner]) => [key, { keyAt: nowhere, value: treeOf(inner, depth + 1) }]),
    );
    const size = entries.values().reduce((sum, entry) => sum + entry.value.size, 1);
    return { kind: 'map', at: nowhere, size, entries };
  }
  if (typeof value === 'string') return { kind: 'scalar', at: nowhere, size: 1, value, text: value };
  if (typeof value === 'number' || typeof value === 'boolean')
    return { kind: 'scalar', at: nowhere, size: 1, value, text: String(value) };
  return { kind: 'scalar', at: nowhere, size: 1, value: null, text: '' };
}
