import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import * as names from '../../../src/connectors/http/names.ts';

const kindIn = (table: names.FieldNames, name: string) => {
  const bytes = Buffer.from(`x${name}x`, 'latin1');
  return table.kindOf(bytes, 1, bytes.length - 1);
};

describe('the names of header fields', () => {
  it('are found in every case of letters', () => {
    const table = names.requestNames(['x-api-key']);
    for (const [name, kind] of [
      ['Host', names.K_HOST],
      ['CONTENT-LENGTH', names.K_LENGTH],
      ['transfer-encoding', names.K_TRANSFER],
      ['Keep-Alive', names.K_HOP],
      ['proxy-authorization', names.K_HOP],
      ['HTTP2-Settings', names.K_HOP],
      ['X-Api-Key', names.K_OWNED],
      ['Cookie', names.K_PINNED],
      ['Accept', 0],
      ['', 0],
      ['Hos', 0],
      ['Hostt', 0],
    ] as const)
      assert.equal(kindIn(table, name), kind, name);
  });

  it('are found under the names that CGI makes of them: owned ones as such, framing as a disguise', () => {
    const table = names.requestNames(['x-api-key', 'under_score', 'dots.and-dashes']);
    for (const name of [
      'x_api_key',
      'X.Api.Key',
      'x-api_key',
      'Under-Score',
      'UNDER_SCORE',
      'dots-and_dashes',
    ])
      assert.equal(kindIn(table, name), names.K_OWNED, name);
    for (const name of ['content_length', 'Transfer_Encoding', 'content!length'])
      assert.equal(kindIn(table, name), names.K_DISGUISED, name);
    assert.equal(kindIn(table, 'keep_alive'), names.K_HOP);
    assert.equal(kindIn(table, 'contentlength'), 0);
  });

  it('are owned by the service rather than pinned, and never owned where they are framing', () => {
    const table = names.requestNames(['authorization', 'content-length', 'cookie']);
    assert.equal(kindIn(table, 'authorization'), names.K_OWNED);
    assert.equal(kindIn(table, 'cookie'), names.K_OWNED);
    assert.equal(kindIn(table, 'content-length'), names.K_LENGTH);
  });

  it('are found by whatever token they are, and only by it and what folds into it', () => {
    const token = fc.stringMatching(/^[a-zA-Z0-9_.!-]{1,20}$/);
    const fold = (name: string) => name.toLowerCase().replace(/[^a-z0-9]/g, '-');
    fc.assert(
      fc.property(token, token, (owned, other) => {
        const table = new names.FieldNames().add(names.K_OWNED, owned);
        assert.equal(kindIn(table, owned), names.K_OWNED);
        assert.equal(kindIn(table, other) !== 0, fold(owned) === fold(other));
      }),
    );
  });

  it('in responses are those of the hop and of the framing', () => {
    const table = names.responseNames();
    assert.equal(kindIn(table, 'Proxy-Authenticate'), names.K_HOP);
    assert.equal(kindIn(table, 'Host'), 0);
    assert.equal(kindIn(table, 'Content_Length'), names.K_DISGUISED);
  });
});
