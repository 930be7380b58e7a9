import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';

import * as http from '../../src/connectors/http/replies.ts';
import { decodeError } from '../../src/connectors/mysql/packets.ts';
import * as mysql from '../../src/connectors/mysql/replies.ts';
import { decodeFields } from '../../src/connectors/postgres/messages.ts';
import * as postgres from '../../src/connectors/postgres/replies.ts';
import { errorCodes, PosternError } from '../../src/core/errors.ts';

const page = readFileSync(new URL('../../docs/errors.md', import.meta.url), 'utf8');
const sections = new Map(
  page
    .split(/^## /m)
    .slice(1)
    .map((section): [string, string] => [/^`(\w+)`\n/.exec(section)?.[1] ?? section, section]),
);

describe('docs/errors.md', () => {
  it('has a section for each code, in the order of the code, and for no other', () => {
    assert.deepEqual([...sections.keys()], errorCodes);
  });

  for (const code of errorCodes)
    it(`says what a PostgreSQL client sees of ${code}`, () => {
      const reply = postgres.errorReply(new PosternError(code, '...'), '3fa2c1-17');
      const fields = decodeFields(reply.subarray(5));
      const [, told] = /^PostgreSQL: (SQLSTATE `\w{5}`, `[^`]*`)/m.exec(sections.get(code) ?? '') ?? [];
      assert.equal(told, `SQLSTATE \`${fields.get('C')}\`, \`${fields.get('M')}\``);
      assert.ok(page.includes(`\`${fields.get('D')}\``), 'the detail is described at the top');
    });

  for (const code of errorCodes)
    it(`says what a MySQL client sees of ${code}`, () => {
      const reply = mysql.errorReply(new PosternError(code, '...'), '3fa2c1-17');
      const { code: number, sqlstate, message } = decodeError(reply);
      const [, text, hint] = /^(.*?)( \([^()]*\))$/.exec(message) ?? [];
      const [, told] =
        /^MySQL: (error `\d+`, SQLSTATE `\w{5}`, `[^`]*`)/m.exec(sections.get(code) ?? '') ?? [];
      assert.equal(told, `error \`${number}\`, SQLSTATE \`${sqlstate}\`, \`${text}\``);
      assert.ok(page.includes(`\`${hint}\``), 'the end of the text is described at the top');
    });

  for (const code of errorCodes)
    it(`says what an HTTP client sees of ${code}`, () => {
      const [head = '', body = ''] = http
        .errorReply(new PosternError(code, '...'), '3fa2c1-17')
        .toString()
        .split('\r\n\r\n');
      const { status, detail, session } = JSON.parse(body) as {
        status: number;
        detail: string;
        session: string;
      };
      const [, told] = /^HTTP: (status `\d+`, `[^`]*`)/m.exec(sections.get(code) ?? '') ?? [];
      assert.equal(told, `status \`${status}\`, \`${detail}\``);
      assert.match(head, new RegExp(`^HTTP/1\\.1 ${status} [A-Z][A-Za-z ]+\r\n`));
      assert.match(head, new RegExp(`\r\nPostern-Error: ${code}(\r\n|$)`));
      assert.equal(/\r\nRetry-After: \d+/.test(head), status === 503);
      assert.equal(session, '3fa2c1-17');
    });

  it('says more about each than what clients are told', () => {
    for (const [code, section] of sections) {
      const paragraphs = section.split('\n\n').filter((each) => !/^(MySQL|HTTP):/.test(each));
      assert.ok(paragraphs.join('\n\n').length > 200, code);
    }
  });
});
