import { checkField, splitField } from '../json-field.ts';

/** `projects/P/locations/L/secrets/S/versions/V`, taken apart. */
export interface VersionName {
  readonly project: string | undefined;
  readonly location: string | undefined;
  readonly secret: string;
  readonly version: string;
}

const full =
  /^(?:projects\/(?<project>[a-z0-9:.-]{1,100})\/(?:locations\/(?<location>[a-z0-9-]{1,40})\/)?secrets\/)?(?<secret>[\w-]{1,255})(?:\/versions\/(?<version>[\w-]{1,63}))?$/;

/** Says what is wrong with a reference; undefined when it is well formed. */
export function checkReference(reference: string): string | undefined {
  const { id, field } = splitField(reference);
  if (id === '') return 'the name of the secret is missing';
  if (!full.test(id)) return 'must be NAME, NAME/versions/V or projects/P/secrets/NAME/versions/V';
  return checkField(field);
}

/** Takes a reference that `checkReference` found well formed. */
export function parseReference(reference: string): VersionName {
  const {
    project,
    location,
    secret = '',
    version = 'latest',
  } = full.exec(splitField(reference).id)?.groups ?? {};
  return { project, location, secret, version };
}
