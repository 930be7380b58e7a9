import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { parseIni } from '../../../src/providers/aws/ini.ts';

const read = (text: string) =>
  Object.fromEntries(
    [...parseIni(Buffer.from(text))].map(([name, section]) => [
      name,
      Object.fromEntries([...section].map(([key, value]) => [key, value.toString()])),
    ]),
  );

describe("AWS's shared files", () => {
  it('are read with comments, spaces, carriage returns, nested settings and keys in any case', () => {
    const text =
      '\ufeffignored = x\r\n# comment\r\n[default]\r\nAWS_Access_Key_Id = AKIA \r\n; comment\r\naws_secret_access_key=a/b+c==\r\n' +
      's3 =\r\n  max = 5\r\n[profile  two ]\nregion = eu-west-1 # where\nempty =\nno value\n[default]\nregion=x#y';
    assert.deepEqual(read(text), {
      default: { aws_access_key_id: 'AKIA', aws_secret_access_key: 'a/b+c==', s3: '', region: 'x#y' },
      'profile  two': { region: 'eu-west-1', empty: '' },
    });
  });

  it('are read whatever is in them', () => {
    fc.assert(fc.property(fc.uint8Array(), (bytes) => void parseIni(Buffer.from(bytes))));
    fc.assert(
      fc.property(
        fc.string({ unit: fc.constantFrom('[', ']', '=', '#', ';', ' ', '\n', '\r', 'a') }),
        (text) => void read(text),
      ),
    );
  });
});
