import { accessSync, constants, statSync } from 'node:fs';
import { delimiter, isAbsolute, join } from 'node:path';
import * as z from 'zod';

import { copyOf } from '../core/bytes.ts';
import { duration } from '../core/duration.ts';
import { type ErrorCode, PosternError } from '../core/errors.ts';
import { JsonBytes } from '../core/json-bytes.ts';
import { Secret } from '../core/secret.ts';
import { refuseAborted } from './deadline.ts';
import { environmentOf, Programs } from './program.ts';
import { defineProvider, type Grant, type Provider, type ProviderContext } from './provider.ts';

/** Stands in `command` where the reference's argument goes. */
const placeholder = '{}';
/** The exit code of sysexits.h for a failure that passes. */
const EX_TEMPFAIL = 75;

const variableName = z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, 'must be the name of a variable');

const settings = z.strictObject({
  command: z
    .array(z.string().regex(/^[^\0]*$/, 'must have no NUL in it'))
    .min(1)
    .refine(([program = '']) => isAbsolute(program) || /^[^/]+$/.test(program), {
      message: 'the program must be an absolute path, or a name without "/" that is looked up on PATH',
    })
    .refine(([program = '']) => !program.includes(placeholder), {
      message: 'the program itself cannot be chosen by a reference: "{}" may stand in its arguments only',
    })
    .describe(
      'The program and its arguments, as a list; no shell is involved. `{}` in an argument stands for what the reference says.',
    ),
  passEnv: z
    .array(variableName)
    .default([])
    .describe(
      "Variables of Postern's environment that the program gets, beside PATH, HOME, USER, LOGNAME, LANG, LC_ALL, TZ and TMPDIR. It gets no other.",
    ),
  env: z
    .record(variableName, z.string().regex(/^[^\0]*$/, 'must have no NUL in it'))
    .default({})
    .describe('Variables that the program gets with these values. Not for secrets.'),
  trim: z
    .boolean()
    .default(true)
    .describe('Whether to cut one line end at the end of the output. Does not touch fields of JSON.'),
  expiration: z
    .string()
    .min(1)
    .default('Expiration')
    .describe(
      "Field of a JSON output that says until when the values work (RFC 3339), where there is one; the default is that of AWS's `credential_process`.",
    ),
  timeout: duration
    .refine((milliseconds) => milliseconds > 0, 'must be longer than 0s')
    .prefault('5s')
    .describe('How long the program may take before it is stopped with all that it has started.'),
});

type Settings = z.output<typeof settings>;

/** A program that prints the secret, run for each login. */
export const exec = defineProvider({
  summary: 'A program that prints the secret, or JSON with it, run for each login.',
  reference:
    '`-` for all that the program prints, `#field` for a field of the JSON that it prints (`#data.password` for a nested one). For a command with `{}`: `argument`, or `argument#field`.',
  settings,
  checkReference(reference) {
    const { argument, field } = split(reference);
    if (field === '') return 'the name of the field after "#" is missing';
    if (argument === '' && field === undefined) return 'write "-" for all that the program prints';
    if (argument.includes('\0')) return 'an argument has no NUL in it';
    // A reference is data: `--config=/tmp/mine` must not become an option of the program.
    if (argument.startsWith('-') && argument !== '-') return 'an argument must not begin with "-"';
    return undefined;
  },
  open: openExec,
});

interface Split {
  readonly argument: string;
  readonly field: string | undefined;
}

function split(reference: string): Split {
  const hash = reference.indexOf('#');
  if (hash === -1) return { argument: reference, field: undefined };
  return { argument: reference.slice(0, hash), field: reference.slice(hash + 1) };
}

interface Wanted extends Split {
  readonly reference: string;
  readonly position: number;
}

function openExec(parsed: Settings, context: ProviderContext): Provider {
  const programs = new Programs(context.name);
  const environment = { ...environmentOf(context.environment, parsed.passEnv), ...parsed.env };
  const [program = '', ...words] = parsed.command;
  const takesArgument = words.some((word) => word.includes(placeholder));

  const error = (code: ErrorCode, text: string) =>
    new PosternError(code, `provider "${context.name}": ${text}`);

  function commandFor(argument: string, reference: string): string[] {
    if (!takesArgument) {
      if (argument === '' || argument === '-') return [program, ...words];
      const text = `"${reference}" has an argument, but the command has no "${placeholder}" to put it`;
      throw error('PROVIDER_FAILED', text);
    }
    if (argument === '' || argument === '-') {
      const text = `"${reference}" has no argument, which the command needs for its "${placeholder}"`;
      throw error('PROVIDER_FAILED', text);
    }
    // A function, because a text would be searched for `$&` and its like.
    return [program, ...words.map((word) => word.replaceAll(placeholder, () => argument))];
  }

  /** One run for all `wanted`, which have the same argument. */
  async function read(wanted: readonly Wanted[], signal: AbortSignal) {
    const [first] = wanted;
    if (!first) throw error('INTERNAL', 'a group without a member');
    const command = commandFor(first.argument, first.reference);
    using ended = await programs
      .run({ command, environment, timeout: parsed.timeout }, signal)
      .catch((thrown: unknown) => {
        if (signal.aborted) throw thrown;
        const { code, message } = PosternError.from(thrown);
        throw new PosternError(code, `${message} ("${first.reference}")`);
      });
    if (ended.code !== 0) {
      const code = ended.code === EX_TEMPFAIL ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED';
      throw error(code, `"${first.reference}": ${program} ended with exit code ${ended.code}`);
    }
    return { wanted, ...take(wanted, ended.output) };
  }

  function take(wanted: readonly Wanted[], output: Buffer): Pick<Grant, 'secrets' | 'expiresAt'> {
    const secrets: Secret[] = [];
    try {
      const json = wanted.some(({ field }) => field !== undefined) ? JsonBytes.parse(output) : undefined;
      for (const { field } of wanted) secrets.push(new Secret(valueIn(output, json, field)));
      return { secrets, ...(json && expiryIn(json)) };
    } catch (thrown) {
      for (const secret of secrets) secret.wipe();
      const { code, message } = PosternError.from(thrown);
      const { reference } = wanted[secrets.length] ?? { reference: '' };
      throw error(code, `"${reference}": the output of ${program}: ${message}`);
    }
  }

  function valueIn(output: Buffer, json: JsonBytes | undefined, field: string | undefined): Buffer {
    if (!json || field === undefined) return copyOf(parsed.trim ? withoutOneLineEnd(output) : output);
    const value = json.find(field);
    if (!value) throw new PosternError('PROVIDER_FAILED', `there is no field "${field}"`);
    return value.copy();
  }

  function expiryIn(json: JsonBytes): Pick<Grant, 'expiresAt'> {
    const text = json.find(parsed.expiration)?.publicText();
    if (text === undefined) return {};
    const time = Date.parse(text);
    if (!/^\d{4}-\d\d-\d\dT/.test(text) || Number.isNaN(time))
      throw new PosternError('PROVIDER_FAILED', `the field "${parsed.expiration}" is no time (RFC 3339)`);
    if (time <= Date.now()) throw new PosternError('PROVIDER_UNAVAILABLE', 'its values have expired already');
    return { expiresAt: new Date(time) };
  }

  return {
    async fetch(references, signal) {
      refuseAborted(signal);
      const wanted = references.map((reference, position) => ({
        ...split(reference),
        reference,
        position,
      }));
      const byArgument = Map.groupBy(wanted, ({ argument }) => (argument === '-' ? '' : argument));
      const failed = new AbortController();
      const either = AbortSignal.any([signal, failed.signal]);
      const outcomes = await Promise.allSettled(
        [...byArgument.values()].map(async (group) => {
          try {
            return await read(group, either);
          } catch (thrown) {
            failed.abort(thrown);
            throw thrown;
          }
        }),
      );
      const done = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
      if (done.length < outcomes.length) {
        for (const { secrets } of done) for (const secret of secrets) secret.wipe();
        throw PosternError.from(failed.signal.reason);
      }
      const secrets: Secret[] = [];
      for (const group of done)
        for (const [i, { position }] of group.wanted.entries()) {
          const secret = group.secrets[i];
          if (secret) secrets[position] = secret;
        }
      const ends = done.flatMap(({ expiresAt }) => (expiresAt ? [expiresAt.getTime()] : []));
      return { secrets, ...(ends.length > 0 && { expiresAt: new Date(Math.min(...ends)) }) };
    },

    /** Whether the program is there; running it could cost money, or ask a person for a finger. */
    async check(signal) {
      refuseAborted(signal);
      if (!isRunnable(program, environment['PATH']))
        throw error('PROVIDER_FAILED', `${program} is not there, or may not be run`);
    },

    close: (signal) => programs.close(signal),
  };
}

function isRunnable(program: string, path: string | undefined): boolean {
  const places = isAbsolute(program)
    ? [program]
    : (path ?? '/usr/bin:/bin').split(delimiter).map((folder) => join(folder || '.', program));
  return places.some((place) => {
    try {
      accessSync(place, constants.X_OK);
      return statSync(place).isFile();
    } catch {
      return false;
    }
  });
}

function withoutOneLineEnd(bytes: Buffer): Buffer {
  if (bytes.at(-1) !== 0x0a) return bytes;
  return bytes.subarray(0, bytes.at(-2) === 0x0d ? -2 : -1);
}
