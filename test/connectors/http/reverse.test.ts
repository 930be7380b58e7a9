import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { get, inFrontOf, Origin, ok, readResponse } from './origin.ts';

/** What a browser says of the page that sends a request. */
const pages = {
  foreign: ['Origin: https://evil.example', 'Sec-Fetch-Site: cross-site'],
  'foreign, in an old browser': ['Origin: https://evil.example'],
  'foreign, by a link or an image': ['Sec-Fetch-Site: cross-site'],
  'of another port of this machine': ['Origin: http://localhost:3000', 'Sec-Fetch-Site: same-site'],
  'in a sandbox': ['Origin: null'],
  'foreign, in other letters': ['oRIGIN: https://evil.example'],
  'foreign, said twice': ['Origin: http://localhost', 'Origin: https://evil.example'],
  'foreign, and claims to be near': ['Origin: https://evil.example', 'Sec-Fetch-Site: same-origin'],
} as const;

async function statusOf(settings: Record<string, unknown>, fields: readonly string[]): Promise<string> {
  await using origin = await Origin.start(() => ok('secret answer'));
  await using served = await inFrontOf(origin, settings);
  const client = await served.connect();
  client.send(get('/', ...fields));
  const { head } = await readResponse(client);
  const status = /^HTTP\/1\.1 (\d+)/.exec(head)?.[1] ?? '';
  assert.equal(origin.received.length, status === '200' ? 1 : 0);
  client.end();
  return status;
}

describe('a web page in a browser on this machine', () => {
  for (const [which, fields] of Object.entries(pages))
    it(`that is ${which} has nothing sent with the credential`, async () => {
      assert.equal(await statusOf({}, fields), '403');
    });

  it('is served when it is of the listener itself, or opened by its user', async () => {
    // As `get` names the listener.
    assert.equal(await statusOf({}, ['Origin: http://localhost', 'Sec-Fetch-Site: same-origin']), '200');
    assert.equal(await statusOf({}, ['Sec-Fetch-Site: same-origin']), '200');
    assert.equal(await statusOf({}, ['Sec-Fetch-Site: none']), '200');
  });

  it('is served when the service says so', async () => {
    const fields = ['Origin: https://app.example.com', 'Sec-Fetch-Site: cross-site'];
    assert.equal(await statusOf({ origins: ['https://app.example.com'] }, fields), '200');
    assert.equal(await statusOf({ origins: ['*'] }, pages.foreign), '200');
    assert.equal(await statusOf({ origins: ['https://app.example.com'] }, pages.foreign), '403');
  });
});
