import { percentEncodeText } from '../../../core/bytes.ts';
import { PosternError } from '../../../core/errors.ts';
import type { QueryParameters } from '../../../core/sigv4.ts';

/**
 * The parameters of a target. A `+` is a space, as in every form. Throws CLIENT_REFUSED for an escape that is none: it
 * cannot be known what the server would make of it.
 */
export function parametersOf(query: string): QueryParameters {
  return query
    .split('&')
    .filter((part) => part !== '')
    .map((part) => {
      const equals = part.indexOf('=');
      return equals === -1
        ? ([decode(part), ''] as const)
        : ([decode(part.slice(0, equals)), decode(part.slice(equals + 1))] as const);
    });
}

/** Percent-encoded, in the order that they have. */
export function writtenQuery(parameters: QueryParameters): string {
  return parameters
    .map(([name, value]) => `${percentEncodeText(name)}=${percentEncodeText(value)}`)
    .join('&');
}

function decode(text: string): string {
  if (!/[%+]/.test(text)) return text;
  return text.replaceAll(/\+|%(..?)?/g, (escape, hex: string | undefined) => {
    if (escape === '+') return ' ';
    if (hex === undefined || !/^[0-9A-Fa-f]{2}$/.test(hex))
      throw new PosternError(
        'CLIENT_REFUSED',
        'the query has a "%" that is no percent-encoding, so it cannot be signed',
      );
    return String.fromCodePoint(Number.parseInt(hex, 16));
  });
}
