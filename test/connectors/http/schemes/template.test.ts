import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { Template } from '../../../../src/connectors/http/schemes/template.ts';
import { credentials } from './support.ts';

const values = { token: 't0k', user: 'ann', password: 'p:w"d', 'api-key.v2': 'k', base64: 'named so' };
const rendered = (text: string) => Template.parse(text).render(credentials(values)).toString();

describe('a template', () => {
  for (const [text, meant] of [
    ['plain', 'plain'],
    ['', ''],
    ['Bearer {{ token }}', 'Bearer t0k'],
    ['Bearer {{.token}}', 'Bearer t0k'],
    ['{{ .token }}{{token}}', 't0kt0k'],
    ['{{ api-key.v2 }}', 'k'],
    ['{{ .base64 }}', 'named so'],
    ['Basic {{ printf "%s:%s" .user .password | base64 }}', `Basic ${btoa('ann:p:w"d')}`],
    ['ApiKey {{ base64 (printf "%v:%v" .user .token) }}', `ApiKey ${btoa('ann:t0k')}`],
    ['{{ base64 .token }}', btoa('t0k')],
    ['{{ .token | base64 | base64 }}', btoa(btoa('t0k'))],
    ['{{ print .user "/" .token }}', 'ann/t0k'],
    ['{{ printf "100%%-%s" .user }}', '100%-ann'],
    ['{{ `raw \\n` }}', 'raw \\n'],
    ['{{ "a\\"b" }}', 'a"b'],
    ['{{ urlquery .password }}', 'p%3Aw%22d'],
    ['{{ urlquery "a b" }}', 'a+b'],
    ['{ {token} }', '{ {token} }'],
  ] as const)
    it(`makes ${JSON.stringify(meant)} of ${text}`, () => assert.equal(rendered(text), meant));

  for (const [text, why] of [
    ['{{ if .token }}x{{ end }}', /"if" is not supported/],
    ['{{ range .token }}', /"range"/],
    ['{{ .token | html }}', /behind "\|"/],
    ['{{ .token | token }}', /behind "\|"/],
    ['{{ lower .token }}', /"lower" is not supported; there are base64/],
    ['{{ index . "token" }}', /"index"/],
    ['{{ . }}', /"." alone/],
    ['{{ $x }}', /variables/],
    ['{{- .token }}', /cuts blanks/],
    ['{{ .token -}}', /cuts blanks/],
    ['{{/* note */}}', /comments/],
    ['{{ }}', /is empty/],
    ['{{ .token', /no "}}"/],
    ['.token }}', /no "{{"/],
    ['{{ (.token }}', /no "\)"/],
    ['{{ base64 }}', /takes one value/],
    ['{{ base64 .token .user }}', /takes one value/],
    ['{{ printf "%d" .token }}', /not "%d"/],
    ['{{ printf "%s" }}', /more verbs/],
    ['{{ printf "%s" .token .user }}', /more values/],
    ['{{ printf .token }}', /format in quotes/],
    ['{{ "a\\x41" }}', /escape/],
    ['{{ 5 }}', /"5" is not supported/],
    [`{{ ${'('.repeat(40)}.token${')'.repeat(40)} }}`, /nested too deeply/],
  ] as const)
    it(`is refused, with what it is that is not understood: ${text.slice(0, 40)}`, () => {
      assert.throws(() => Template.parse(text), { code: 'CONFIG_INVALID', message: why });
    });

  it('sends nothing for a credential that is missing, where Secretless sends "<no value>"', () => {
    assert.throws(() => Template.parse('Bearer {{ .tokne }}').render(credentials(values)), {
      code: 'PROVIDER_FAILED',
      message: 'the credential "tokne" has no value',
    });
  });

  it('says which credentials it names, each once', () => {
    const { names } = Template.parse('{{ printf "%s%s" .user .token | base64 }}{{ token }}');
    assert.deepEqual(names, ['user', 'token']);
  });

  it('never throws anything but its own error, whatever it is given', () => {
    const pieces = fc.constantFrom(
      '{{',
      '}}',
      '.',
      'a',
      '"',
      '\\',
      '|',
      '(',
      ')',
      ' ',
      'printf',
      '%s',
      '`',
      '-',
    );
    fc.assert(
      fc.property(fc.array(pieces, { maxLength: 24 }), (parts) => {
        try {
          Template.parse(parts.join(''));
        } catch (error) {
          assert.equal((error as { code?: string }).code, 'CONFIG_INVALID');
        }
      }),
    );
  });
});
