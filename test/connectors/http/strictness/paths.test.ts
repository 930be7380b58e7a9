import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';

import { paces } from '../../../support/session.ts';
import { fateOf, Stage, token } from './stage.ts';

/** Ways out of `/ok/` that have worked on one server or another. */
const disguises = [
  '/ok/../x',
  '/ok/./../x',
  '/ok/a/../../x',
  '/ok/..',
  '/ok/%2e%2e/x',
  '/ok/%2E%2e/x',
  '/ok/.%2e/x',
  '/ok/%2e%2e%2fx',
  '/ok/..%2fx',
  '/ok/..%5cx',
  '/ok/%5c..%5cx',
  '/ok/%252e%252e/x',
  '/ok/..%252fx',
  '/ok/%25252e%25252e/x',
  '/ok/%c0%ae%c0%ae/x',
  '/ok/..%c0%afx',
  '/ok/%uff0e%uff0e/x',
  '/ok/%ef%bc%8e%ef%bc%8e/x',
  '/ok/..%ef%bc%8fx',
  '/ok/..;/x',
  '/ok/..;a=b/x',
  '/ok/;/../x',
  '/ok/..%3b/x',
  '/ok/..%00/x',
  '/ok/..%20/x',
  '/ok/..%09/x',
  '/ok/..%0d/x',
  '/ok/..//x',
  '/ok//../x',
  '/ok/.../x',
  '/ok/%',
  '/ok/%zz',
  '/ok/%ff',
];

for (const pace of paces) {
  describe(`the rules of a service, ${pace}`, () => {
    let stage: Stage;
    before(async () => {
      stage = await Stage.start({ allow: ['GET,HEAD /ok/**', { method: 'POST', path: '/login' }] });
    });
    after(async () => await stage[Symbol.asyncDispose]());

    const statusOf = async (line: string, ...fields: string[]) => {
      const head = [`${line} HTTP/1.1`, 'Host: localhost', ...fields, '', ''].join('\r\n');
      const { statuses, requests, received } = await fateOf(stage, head, pace);
      const asked = requests.filter((request) => !request.head.startsWith('GET /marker'));
      if (statuses[0] !== 200) {
        assert.deepEqual(asked, [], line);
        assert.ok(!received.includes(token));
      }
      return { status: statuses[0], asked, received };
    };

    it('let through what they say, byte for byte', async () => {
      for (const line of [
        'GET /ok/x?y=../z',
        'HEAD /ok/',
        'GET /ok',
        'GET /ok/a/../b',
        'GET /ok/a%2Fb',
        'GET /ok/%7Ea%20b',
        'GET /ok//b',
        'GET /ok/a;b=c',
        'POST /login',
      ]) {
        const { status, asked } = await statusOf(line);
        assert.equal(status, 200, line);
        assert.ok(asked[0]?.head.startsWith(`${line} HTTP/1.1\r\n`), line);
        assert.ok(asked[0]?.head.includes(`\r\nAuthorization: Bearer ${token}\r\n`));
      }
    });

    it('stop all else with 403, and say what there is', async () => {
      for (const line of [
        'GET /',
        'POST /ok/x',
        'PUT /login',
        'GET /login',
        'OPTIONS *',
        'get /ok/x',
        'GET /OK/x',
      ])
        assert.equal((await statusOf(line)).status, 403, line);
      assert.match((await statusOf('GET /')).received, /GET,HEAD \/ok\/\*\*, POST \/login/);
    });

    it('stop what leads out in disguise', async () => {
      for (const path of disguises) assert.equal((await statusOf(`GET ${path}`)).status, 403, path);
    });

    it('stop fields that name another path or method', async () => {
      for (const field of [
        'X-Original-URL: /x',
        'X-Rewrite-Url: /x',
        'X-HTTP-Method-Override: DELETE',
        'x_original_url: /x',
      ])
        assert.equal((await statusOf('GET /ok/x', field)).status, 403, field);
    });
  });

  describe(`the path of a base URL, ${pace}`, () => {
    let stage: Stage;
    before(async () => {
      stage = await Stage.start({ prefix: '/v1/ok' });
    });
    after(async () => await stage[Symbol.asyncDispose]());

    it('is in front of whatever a client asks for', async () => {
      for (const [path, upstream] of [
        ['/', '/v1/ok/'],
        ['/x?y', '/v1/ok/x?y'],
        ['/a/../b', '/v1/ok/a/../b'],
        ['/a%2fb', '/v1/ok/a%2fb'],
        ['//x', '/v1/ok//x'],
      ] as const) {
        const { requests } = await fateOf(stage, `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`, pace);
        assert.ok(requests[0]?.head.startsWith(`GET ${upstream} HTTP/1.1\r\n`), path);
      }
    });

    it('cannot be left', async () => {
      for (const path of disguises.map((each) => each.slice('/ok'.length))) {
        const { statuses, requests } = await fateOf(
          stage,
          `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`,
          pace,
        );
        assert.equal(statuses[0], 403, path);
        assert.deepEqual(requests, [], path);
      }
      const { statuses } = await fateOf(stage, 'OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n', pace);
      assert.equal(statuses[0], 403);
    });

    it('is not changed by a field', async () => {
      const bytes = 'GET /x HTTP/1.1\r\nHost: localhost\r\nX-Original-URL: /admin\r\n\r\n';
      const { statuses, requests } = await fateOf(stage, bytes, pace);
      assert.deepEqual([statuses[0], requests.length], [403, 0]);
    });
  });
}
