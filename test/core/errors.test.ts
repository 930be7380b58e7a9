import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { PosternError, reasonOf } from '../../src/core/errors.ts';
import { describeFailure } from '../../src/core/session.ts';

describe('PosternError', () => {
  it('is itself when it is thrown on purpose', () => {
    const error = new PosternError('TIMEOUT', 'too slow');
    assert.equal(PosternError.from(error), error);
    assert.deepEqual(
      [error.name, error.code, error.message, error.reply],
      ['PosternError', 'TIMEOUT', 'too slow', undefined],
    );
  });

  it('hides what anything else that was thrown says', () => {
    for (const thrown of [new Error('token=s3cr3t'), 's3cr3t', { s3cr3t: 's3cr3t' }, undefined, null]) {
      const error = PosternError.from(thrown);
      assert.equal(error.code, 'INTERNAL');
      assert.equal(error.message, 'unexpected failure');
      assert.doesNotMatch(JSON.stringify(describeFailure(error)), /s3cr3t/);
    }
  });

  it('shows of what lies beneath only its code, or our own message', () => {
    const foreign = Object.assign(new Error('connect to s3cr3t'), { code: 'ECONNREFUSED' });
    const described = describeFailure(new PosternError('UPSTREAM_UNREACHABLE', 'no', { cause: foreign }));
    assert.deepEqual(described, { error: 'no', reason: 'ECONNREFUSED' });
    const ours = new PosternError('UPSTREAM_TLS', 'beneath');
    assert.equal(describeFailure(new PosternError('TIMEOUT', 'no', { cause: ours }))['reason'], 'beneath');
  });

  it('tells the places in the code of what nobody expected, without its message', () => {
    const described = describeFailure(PosternError.from(new TypeError('s3cr3t\n    of two lines')));
    assert.equal(described['reason'], 'TypeError');
    assert.ok((described['at'] as string[]).every((line) => line.startsWith('at ')));
    assert.doesNotMatch(JSON.stringify(described), /s3cr3t/);
  });
});

describe('the reason of a foreign error', () => {
  it('is its code, its class, or its type', () => {
    assert.equal(reasonOf(Object.assign(new Error('x'), { code: 'EPIPE' })), 'EPIPE');
    assert.equal(reasonOf(new RangeError('x')), 'RangeError');
    assert.equal(reasonOf(Object.assign(new Error('x'), { code: 7 })), 'Error');
    assert.equal(reasonOf('text'), 'string');
  });
});
