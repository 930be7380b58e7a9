import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { checkFlags } from '../../src/cli/check.ts';
import { shells } from '../../src/cli/completion.ts';
import { execFlags } from '../../src/cli/exec.ts';
import { exitCodes } from '../../src/cli/exit-codes.ts';
import { explainFlags } from '../../src/cli/explain.ts';
import { askingFlagHelp, commonFlags, type FlagHelp, flagHelp, ownFlagHelp } from '../../src/cli/options.ts';
import { stopFlags } from '../../src/cli/stop.ts';
import { waitFlags } from '../../src/cli/wait.ts';
import { capture } from '../support/servers/process.ts';

const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));
let folder = '';
const script = (shell: string) => join(folder, `completion.${shell}`);
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'postern-completion-'));
  for (const shell of shells) {
    const { code, stdout, stderr } = await capture(program, ['completion', shell], { timeout: 60_000 });
    assert.equal(code, 0, stderr);
    await writeFile(script(shell), stdout);
  }
  await writeFile(join(folder, 'some.yaml'), '');
});
after(() => rm(folder, { recursive: true, force: true }));

async function has(shell: string): Promise<boolean> {
  return (await capture('sh', ['-c', `command -v ${shell}`])).code === 0;
}

describe('postern completion', () => {
  it('knows the flags that the commands take, and no other', () => {
    const names = (help: readonly FlagHelp[]) =>
      help.map(([flag]) => /--([\w-]+)/.exec(flag)?.[1] ?? '').toSorted();
    const own = (name: keyof typeof ownFlagHelp) => names(ownFlagHelp[name]);
    const common = names(flagHelp);
    // Taken by all and of use to two, which list it.
    const taken = (flags: object) => Object.keys(flags).toSorted();
    assert.deepEqual([...common, 'connect'].toSorted(), taken(commonFlags));
    assert.deepEqual([...common, ...own('check')].toSorted(), taken(checkFlags));
    assert.deepEqual([...common, ...own('exec')].toSorted(), taken(execFlags));
    assert.deepEqual([...common, ...own('explain'), 'connect'].toSorted(), taken(explainFlags));
    assert.deepEqual([...names(askingFlagHelp), ...own('wait')].toSorted(), taken(waitFlags));
    assert.deepEqual([...names(askingFlagHelp), ...own('stop')].toSorted(), taken(stopFlags));
  });

  it('works in bash', async (t) => {
    if (!(await has('bash'))) return t.skip('there is no bash on this machine');
    const complete = async (...words: readonly string[]) => {
      const line = words.map((word) => `'${word}'`).join(' ');
      const { code, stdout, stderr } = await capture(
        'bash',
        [
          '--norc',
          '-c',
          `source ${script('bash')}; COMP_WORDS=(postern ${line}); COMP_CWORD=${words.length}; _postern; printf '%s\\n' "\${COMPREPLY[@]}"`,
        ],
        { cwd: folder },
      );
      assert.equal(code, 0, stderr);
      assert.equal(stderr, '');
      return stdout.trim().split('\n');
    };
    assert.deepEqual(await complete('ex'), ['exec', 'explain']);
    assert.deepEqual(await complete('exec', '--k'), ['--keep-env', '--kill-after']);
    assert.deepEqual(await complete('run', '--log-level', 'wa'), ['warn']);
    assert.deepEqual(await complete('check', '-f', 'so'), ['some.yaml']);
    assert.deepEqual(await complete('secret', ''), ['set', 'list', 'rm']);
    assert.deepEqual(await complete('convert', 'some'), ['some.yaml']);
    assert.deepEqual(await complete('completion', 'p'), ['powershell']);
    assert.ok((await complete('--')).includes('--drain-timeout'), 'flags of `run` without a command');
    assert.ok((await complete('exec', '--', 'base')).includes('basename'), 'commands behind two dashes');
  });

  it('works in zsh', async (t) => {
    if (!(await has('zsh'))) return t.skip('there is no zsh on this machine');
    assert.equal((await capture('zsh', ['-n', script('zsh')])).stderr, '');
    // A shell on a terminal of its own, which is asked by the Tab key. What is awaited differs from what is typed, as the
    // terminal shows that too, at once.
    const ask = `
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=; autoload -Uz compinit; compinit -u -D; source ${script('zsh')}; zstyle ":completion:*" list-colors ""; LISTMAX=0; echo rea""dy'
zpty -r shell line '*ready*'
zpty -w -n shell $1$'\\t'
zpty -w -n shell $'\\C-a#\\n'
zpty -w shell 'echo en""d'
zpty -r shell line '*end*'
print -r -- $line`;
    const tried = await capture('zsh', ['-f', '-c', ask, 'zsh', 'postern expl'], {
      timeout: 60_000,
      cwd: folder,
    });
    assert.match(tried.stdout, /postern explain/, tried.stdout);
  });

  it('works in fish', async (t) => {
    if (!(await has('fish'))) return t.skip('there is no fish on this machine');
    const complete = async (line: string) => {
      const { code, stdout, stderr } = await capture(
        'fish',
        ['--no-config', '-c', `source ${script('fish')}; complete --do-complete '${line}'`],
        {
          cwd: folder,
          env: { ...process.env, HOME: folder, XDG_CONFIG_HOME: folder, XDG_DATA_HOME: folder },
        },
      );
      assert.equal(code, 0, stderr);
      return stdout
        .trim()
        .split('\n')
        .map((each) => each.split('\t')[0]);
    };
    assert.deepEqual(await complete('postern ex'), ['exec', 'explain']);
    assert.deepEqual(await complete('postern exec --ke'), ['--keep-env']);
    assert.deepEqual(await complete('postern run --log-level wa'), ['warn']);
    assert.deepEqual(await complete('postern secret r'), ['rm']);
    assert.deepEqual(await complete('postern check -f so'), ['some.yaml']);
  });

  it('takes one shell that it knows', async () => {
    for (const words of [[], ['tcsh'], ['constructor'], ['bash', 'zsh']])
      assert.equal(
        (await capture(program, ['completion', ...words], { timeout: 60_000 })).code,
        exitCodes.usage,
      );
  });
});
