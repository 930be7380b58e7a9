import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { injectManifests } from '../../src/inject/manifests.ts';
import type { Surroundings } from '../../src/inject/pod.ts';
import { parseSettings } from '../../src/inject/settings.ts';
import { type Pod, parseManifests } from '../deploy/manifests.ts';
import { capture } from '../support/servers/process.ts';

const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));
const settings = parseSettings('sidecar: { image: "registry.example.com/postern:0.1.0" }', 'x').sidecar;
const usual: Surroundings = { settings, everyPod: false, native: true, version: '1.2.3' };

const template = (kind: string, indent = '  ') =>
  `template:
  metadata:
    annotations: { postern.dev/inject: "true" }
  spec:
    # what it does
    containers: [{ name: ${kind.toLowerCase()}, image: x }]`.replaceAll('\n', `\n${indent}`);

const kinds = ['Deployment', 'StatefulSet', 'DaemonSet', 'ReplicaSet', 'ReplicationController', 'Job'];
const workload = (kind: string) => `# ${kind}
apiVersion: apps/v1
kind: ${kind}
metadata: { name: orders } # keep
spec:
  ${template(kind)}
`;

describe('`postern inject --file`', () => {
  it('adds the sidecar to every kind of workload, and keeps comments and what it does not know', () => {
    const text = [
      ...kinds.map(workload),
      `apiVersion: batch/v1
kind: CronJob
metadata: { name: orders }
spec:
  jobTemplate:
    spec:
      ${template('CronJob', '      ')}
`,
      `kind: ConfigMap\ndata: { a: b } # as it was\n`,
      `apiVersion: v1
kind: List
items:
  - kind: Pod
    metadata: { name: one, annotations: { postern.dev/inject: "true" } }
    spec: { containers: [{ name: a, image: x }] }
  - kind: Pod
    metadata: { name: two }
    spec: { containers: [{ name: b, image: x }] }
`,
    ].join('---\n');
    const { text: made, injected, notes } = injectManifests(text, 'all.yaml', usual);
    assert.equal(injected, kinds.length + 2);
    assert.deepEqual(notes, []);
    for (const kind of kinds) assert.ok(made.includes(`# ${kind}\n`));
    assert.equal(made.split('# keep').length, kinds.length + 1);
    assert.equal(made.split('# what it does').length, kinds.length + 2);
    assert.ok(made.includes('# as it was'));
    const objects = parseManifests(made);
    assert.equal(objects.length, kinds.length + 3);
    for (const { spec, kind } of objects.slice(0, kinds.length + 1)) {
      const jobTemplate = spec?.['jobTemplate'] as { spec: { template: { spec: Pod } } } | undefined;
      const pod = jobTemplate?.spec.template.spec ?? spec?.template?.spec;
      assert.equal(pod?.initContainers?.[0]?.name, 'postern', kind);
      assert.equal(pod.containers[0]?.name, kind.toLowerCase());
    }
    const { items } = objects.at(-1) as unknown as { items: { spec: Pod }[] };
    assert.deepEqual(
      items.map(({ spec }) => spec.initContainers?.length),
      [1, undefined],
    );
    assert.equal(injectManifests(made, 'again.yaml', usual).text, made, 'a second time changes nothing');
  });

  it('gives back what nobody asks about to the byte', () => {
    for (const text of [
      '# c0\na: 1 # x\n---\n# c1\nb: [1]   # y\n\n# trailing\n---\nc: 3\n...\n# after\n---\nd: 4',
      '---\nkind: Pod\nspec:   {}\n---\n# nothing but this\n---\n\n\n',
      'a: 1\n...\n# the end',
    ])
      assert.equal(injectManifests(text, 'x.yaml', usual).text, text);
  });

  it('changes no other place of a document with anchors', () => {
    const text = `kind: Pod
metadata: { name: one, annotations: { postern.dev/inject: "true", postern.dev/env: db=postgres, postern.dev/containers: app } }
spec:
  containers:
    - &base { name: app, image: x, env: &env [{ name: A, value: "1" }] }
    - { <<: *base, name: other }
    - { name: third, image: y, env: *env }
`;
    const { text: made, notes } = injectManifests(text, 'pod.yaml', usual);
    const [pod] = parseManifests(made) as unknown as [{ spec: Pod }];
    const count = (name: string) => pod.spec.containers.find((each) => each.name === name)?.env?.length;
    assert.ok((count('app') ?? 0) > 5);
    assert.equal(count('other'), 1);
    assert.equal(count('third'), 1);
    assert.ok(notes.some((note) => note.includes('without its comments')));
  });

  it('says every problem with its object, and prints nothing then', () => {
    const bad = (name: string, more: string) =>
      `kind: Pod\nmetadata: { name: ${name}, annotations: { postern.dev/inject: "true", ${more} } }\nspec: { containers: [{ name: a }] }\n`;
    const text = `${bad('one', 'postern.dev/cpu: lots')}---\n${bad('two', 'postern.dev/confg: x')}`;
    assert.throws(() => injectManifests(text, 'pods.yaml', usual), {
      code: 'CONFIG_INVALID',
      message: `pods.yaml: Pod "one": postern.dev/cpu must be a quantity such as 100m, of 2 at most
pods.yaml: Pod "two": there is no annotation "postern.dev/confg"; did you mean "config"?`,
    });
    assert.throws(() => injectManifests('a: [', 'broken.yaml', usual), /^PosternError: broken\.yaml:1:\d+: /);
    const bomb = `a: &a [x,x,x,x,x,x,x,x,x,x]\n${'bcdefgh'
      .split('')
      .map((name, n) => `${name}: &${name} [${Array(10).fill(`*${'abcdefg'[n]}`).join()}]`)
      .join('\n')}\n`;
    assert.throws(() => injectManifests(bomb, 'bomb.yaml', usual), /aliases/);
  });

  it('says when an annotation stands where no pod has it', () => {
    const text = workload('Job')
      .replace('name: orders', 'name: orders, annotations: { postern.dev/inject: "true" }')
      .replace(/\n *metadata:\n *annotations:.*/, '');
    const { notes, injected } = injectManifests(text, 'job.yaml', usual);
    assert.equal(injected, 0);
    assert.match(
      notes.join(),
      /Job "orders": postern\.dev\/inject stands on the object itself.*spec\.template\.metadata\.annotations/,
    );
  });

  it('is a command that reads a file or its input, and ends with 1 for a refusal and 2 for a word too many', async () => {
    const pod = 'kind: Pod\nmetadata: { name: one }\nspec: { containers: [{ name: a }] }\n';
    const run = (input: string, ...words: string[]) =>
      capture(program, ['inject', '--file', '-', '--image', 'registry.example.com/postern:0.1.0', ...words], {
        input,
      });
    const asked = await run(pod, '--all', '--kube-version', 'v1.28.3');
    assert.deepEqual([asked.code, asked.stderr], [0, '']);
    const [made] = parseManifests(asked.stdout) as unknown as [{ spec: Pod }];
    assert.deepEqual(
      made.spec.containers.map(({ name }) => name),
      ['postern', 'a'],
    );
    const unasked = await run(pod);
    assert.deepEqual([unasked.code, unasked.stdout], [0, pod]);
    assert.match(unasked.stderr, /no pod in it asks/);
    const refused = await run(
      pod.replace('{ name: one }', '{ name: one, annotations: { postern.dev/inject: maybe } }'),
    );
    assert.deepEqual([refused.code, refused.stdout], [1, '']);
    assert.match(
      refused.stderr,
      /standard input: Pod "one": the annotation postern\.dev\/inject must be "true" or "false"/,
    );
    assert.equal((await run(pod, '--kube-version', 'new')).code, 2);
    const without = await capture(program, ['inject', '--file', '-'], { input: pod });
    assert.equal(without.code, 1);
    assert.match(without.stderr, /image/);
  });
});

describe('the settings of the injector', () => {
  it('are refused with every problem, and a word for what was misspelt', () => {
    const text =
      'sidecar: { image: "registry.example.com/postern:1", confg: x, cpu: lots }\nlisten: unix:///x\nlisten2: 1\n';
    assert.throws(
      () => parseSettings(text, 'injector.yaml'),
      (error: Error) => {
        for (const part of [
          'sidecar: unknown key "confg"; did you mean "config"?',
          'sidecar.cpu: must be a quantity of cpu',
          'listen: must be an address such as tcp://0.0.0.0:8443',
          'unknown key "listen2"; did you mean "listen"?',
        ])
          assert.ok(error.message.includes(part), error.message);
        return true;
      },
    );
    assert.throws(() => parseSettings('', 'injector.yaml'), /sidecar\.image/);
    const hurried = 'sidecar: { image: x }\ncertificate: { lifetime: 1h, renewBefore: 30s }\n';
    assert.throws(
      () => parseSettings(hurried, 'injector.yaml'),
      /certificate\.renewBefore: must be less than lifetime/,
    );
  });
});
