import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');

describe('the Dockerfile', () => {
  const dockerfile = read('Dockerfile');

  it('starts Node.js with the flags of bin/postern, by a program that is compiled for it', () => {
    const flags = /^exec "\$node" (.*) "\$main" "\$@"$/m.exec(read('bin/postern'))?.[1]?.split(' ') ?? [];
    assert.ok(flags.length > 0);
    const launcher = read('native/launcher/launcher.rs');
    const constant = (name: string) => new RegExp(`^const ${name}: .* = (.*);$`, 'm').exec(launcher)?.[1];
    assert.deepEqual(JSON.parse(constant('FLAGS')?.replace('&', '') ?? 'null'), flags);
    assert.match(constant('MAIN') ?? '', /, "\/app\/dist\/main\.js"\)$/);
    assert.match(dockerfile, /^ENTRYPOINT \["\/usr\/local\/bin\/postern"\]$/m);
    assert.match(dockerfile, /^COPY --from=compiled .* \/usr\/local\/bin\/postern$/m);
    assert.match(constant('NODE') ?? '', /, "\/usr\/local\/bin\/node"\)$/);
    assert.match(dockerfile, /^COPY --from=build .* \/usr\/local\/bin\/node$/m);
  });

  it('names its base images by arguments, and its user by a number', () => {
    assert.match(dockerfile, /^ARG BASE=\S+$/m);
    assert.match(dockerfile, /^ARG RUST_BASE=\S+$/m);
    assert.match(dockerfile, /^ARG RUNTIME_BASE=\S+$/m);
    assert.match(dockerfile, /^USER [1-9]\d*:[1-9]\d*$/m);
  });

  it('copies nothing that .dockerignore keeps out', () => {
    const sent = read('.dockerignore')
      .split('\n')
      .filter((line) => line.startsWith('!'))
      .map((line) => line.slice(1));
    const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.*) \S+$/gm)].flatMap(([, files = '']) =>
      files.split(' '),
    );
    assert.ok(copied.length > 0);
    assert.deepEqual(
      copied.filter((file) => !sent.includes(file)),
      [],
    );
  });
});
