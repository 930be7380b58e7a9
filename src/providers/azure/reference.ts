import { checkField, splitField } from '../json-field.ts';

/** Says what is wrong with a reference; undefined when it is well formed. */
export function checkReference(reference: string): string | undefined {
  const { id, field } = splitField(reference);
  const [name = '', version, ...rest] = id.split('/');
  if (name === '') return 'the name of the secret is missing';
  if (!/^[0-9A-Za-z-]{1,127}$/.test(name)) return 'the name of a secret has letters, digits and "-" only';
  if (version !== undefined && !/^[0-9A-Za-z]{1,64}$/.test(version))
    return 'the version behind "/" is no version';
  if (rest.length > 0) return 'must be NAME or NAME/VERSION';
  return checkField(field);
}
