import { exitCodes } from './exit-codes.ts';
import { type FlagHelp, logFormats, logLevels, UsageError } from './options.ts';

/** A command, as far as a shell can complete it. */
export interface Completable {
  readonly summary: string;
  readonly flags?: readonly FlagHelp[];
  /** What may follow it. */
  readonly words?: readonly string[];
  /** It takes files. */
  readonly files?: boolean;
  /** Behind two dashes it takes another program's command line. */
  readonly wraps?: boolean;
}

/** One flag of a command. */
interface Flag {
  readonly long: string;
  readonly short: string | undefined;
  readonly meaning: string;
  /** What its value is; undefined: it has none. */
  readonly value: 'file' | 'folder' | 'other' | readonly string[] | undefined;
}

interface Subject extends Omit<Completable, 'flags'> {
  readonly name: string;
  readonly flags: readonly Flag[];
}

const writers: Readonly<Record<string, (subjects: readonly Subject[]) => string>> = {
  bash,
  zsh,
  fish,
  powershell,
};
/** The shells that `postern completion` knows. */
export const shells = Object.keys(writers);

/** `postern completion SHELL`: prints what the shell has to read to complete the commands and options of this version. */
export function completion(
  words: readonly string[],
  commands: Readonly<Record<string, Completable>>,
): number {
  const [shell = '', ...more] = words;
  const write = Object.hasOwn(writers, shell) ? writers[shell] : undefined;
  if (!write || more.length > 0)
    throw new UsageError(`\`postern completion\` takes one of ${shells.join(', ')}`);
  const subjects = Object.entries(commands).map(
    ([name, command]): Subject => ({
      ...command,
      name,
      flags: (command.flags ?? []).map(flagOf),
    }),
  );
  process.stdout.write(`${write(subjects)}\n`);
  return exitCodes.clean;
}

/** Reads `-f, --config PATH`. */
function flagOf([text, meaning]: FlagHelp): Flag {
  const [, short, long = '', value] = /^(?:-(\w), )?--([\w-]+)(?: ([A-Z]+))?$/.exec(text) ?? [];
  return { long, short, meaning, value: valueOf(value) };
}

function valueOf(word: string | undefined): Flag['value'] {
  switch (word) {
    case undefined:
      return undefined;
    case 'PATH':
    case 'FILE':
      return 'file';
    case 'FOLDER':
      return 'folder';
    case 'LEVEL':
      return logLevels;
    case 'FORMAT':
      return logFormats;
    default:
      return 'other';
  }
}

/** `-f` and `--config`. */
function spellings({ short, long }: Flag): string[] {
  return short === undefined ? [`--${long}`] : [`-${short}`, `--${long}`];
}

/** The flags of all commands, each once: what a value is does not depend on the command. */
function valued(subjects: readonly Subject[]): Flag[] {
  const flags = subjects.flatMap((subject) => subject.flags).filter(({ value }) => value !== undefined);
  return [...new Map(flags.map((flag) => [flag.long, flag])).values()];
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function bash(subjects: readonly Subject[]): string {
  const names = subjects.map(({ name }) => name).join(' ');
  const action = ({ value }: Flag) => {
    if (value === 'file') return 'COMPREPLY=($(compgen -f -- "$cur"))';
    if (value === 'folder') return 'COMPREPLY=($(compgen -d -- "$cur"))';
    if (value === 'other' || value === undefined) return 'COMPREPLY=()';
    return `COMPREPLY=($(compgen -W ${quoted(value.join(' '))} -- "$cur"))`;
  };
  const values = valued(subjects).map(
    (flag) => `    ${spellings(flag).join('|')}) ${action(flag)}; return ;;`,
  );
  const cases = subjects.map(({ name, flags, words = [], files }) => {
    const known = flags.flatMap(spellings).join(' ');
    const rest = files ? 'compgen -f -- "$cur"' : `compgen -W ${quoted(words.join(' '))} -- "$cur"`;
    return `    ${name}) flags=${quoted(known)}; rest=${quoted(rest)} ;;`;
  });
  return `# Completion of postern for bash: source <(postern completion bash)
_postern() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD-1]} command= flags= rest= i
  local IFS=$' \\t\\n'
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [[ \${COMP_WORDS[i]} == -- ]]; then
      # From here on it is another program's command line.
      if declare -F _command_offset >/dev/null; then _command_offset $((i + 1)); return; fi
      if ((i + 1 == COMP_CWORD)); then COMPREPLY=($(compgen -c -- "$cur")); else COMPREPLY=($(compgen -f -- "$cur")); fi
      return
    fi
    if [[ -z $command && \${COMP_WORDS[i]} != -* ]]; then command=\${COMP_WORDS[i]}; fi
  done
  case $prev in
${values.join('\n')}
  esac
  case \${command:-run} in
${cases.join('\n')}
  esac
  if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W "$flags" -- "$cur")); return; fi
  if [[ -z $command ]]; then COMPREPLY=($(compgen -W '${names}' -- "$cur")); return; fi
  COMPREPLY=($(eval "$rest"))
}
complete -o filenames -F _postern postern`;
}

function zsh(subjects: readonly Subject[]): string {
  const escaped = (text: string) => text.replaceAll(/[[\]:\\]/g, '\\$&');
  const spec = (flag: Flag) => {
    const { value, meaning } = flag;
    const action = Array.isArray(value)
      ? `:value:(${value.join(' ')})`
      : ({ file: ':file:_files', folder: ':folder:_files -/', other: ':value: ' }[String(value)] ?? '');
    return spellings(flag).map((name) => `      ${quoted(`*${name}[${escaped(meaning)}]${action}`)}`);
  };
  const cases = subjects.map(({ name, flags, words = [], files, wraps }) => {
    const more = wraps
      ? [`      '(-)1:command:_command_names -e' '*::arguments:_normal'`]
      : files
        ? [`      '*:file:_files'`]
        : words.length > 0
          ? [`      ${quoted(`1:what:(${words.join(' ')})`)}`]
          : [];
    return `    ${name})\n      _arguments -S \\\n${[...flags.flatMap(spec), ...more, `      '--help[say how]'`].join(' \\\n')}\n      ;;`;
  });
  const described = subjects.map(({ name, summary }) => `    ${quoted(`${name}:${escaped(summary)}`)}`);
  return `#compdef postern
# Completion of postern for zsh: source <(postern completion zsh), or a file _postern in a folder of $fpath.
_postern() {
  local -a commands
  commands=(
${described.join('\n')}
  )
  if ((CURRENT == 2)); then
    _describe command commands
    return
  fi
  local command=\${words[2]}
  shift words
  ((CURRENT--))
  case $command in
${cases.join('\n')}
  esac
}
if [[ \${funcstack[1]} == _postern ]]; then _postern "$@"; else compdef _postern postern; fi`;
}

function fish(subjects: readonly Subject[]): string {
  const lines = subjects.flatMap(({ name, summary, flags, words = [], files }) => {
    const here = `-n '__fish_seen_subcommand_from ${name}'`;
    return [
      `complete -c postern -n __fish_use_subcommand -f -a ${name} -d ${fishQuoted(summary)}`,
      ...(words.length > 0 ? [`complete -c postern ${here} -f -a ${fishQuoted(words.join(' '))}`] : []),
      ...(files ? [`complete -c postern ${here} -F`] : []),
      ...flags.map(({ long, short, meaning, value }) =>
        [
          `complete -c postern ${here} -l ${long}`,
          short && `-s ${short}`,
          value && (value === 'file' || value === 'folder' ? '-r -F' : '-x'),
          Array.isArray(value) && `-a ${fishQuoted(value.join(' '))}`,
          `-d ${fishQuoted(meaning)}`,
        ]
          .filter(Boolean)
          .join(' '),
      ),
    ];
  });
  return `# Completion of postern for fish: postern completion fish | source
complete -c postern -f
${lines.join('\n')}
# Behind two dashes it is another program's command line.
complete -c postern -n '__fish_seen_subcommand_from exec; and contains -- -- (commandline -opc)' -x -a '(__fish_complete_subcommand --fcs-skip=3)'`;
}

function fishQuoted(text: string): string {
  return `'${text.replaceAll(/[\\']/g, '\\$&')}'`;
}

function powershell(subjects: readonly Subject[]): string {
  const listed = (words: readonly string[]) => `@(${words.map((word) => `'${word}'`).join(', ')})`;
  const entries = subjects.map(
    ({ name, flags, words = [] }) => `    '${name}' = ${listed([...words, ...flags.flatMap(spellings)])}`,
  );
  const values = valued(subjects).flatMap((flag) =>
    Array.isArray(flag.value)
      ? spellings(flag).map((name) => `    '${name}' = ${listed(flag.value as string[])}`)
      : [],
  );
  return `# Completion of postern for PowerShell: postern completion powershell | Out-String | Invoke-Expression
Register-ArgumentCompleter -Native -CommandName postern -ScriptBlock {
  param($wordToComplete, $commandAst, $cursorPosition)
  $commands = @{
${entries.join('\n')}
  }
  $values = @{
${values.join('\n')}
  }
  $before = @($commandAst.CommandElements | Where-Object { $_.Extent.EndOffset -lt $cursorPosition } | ForEach-Object { $_.ToString() })
  if ($before -contains '--') { return }
  $command = @($before | Select-Object -Skip 1 | Where-Object { -not $_.StartsWith('-') })[0]
  $words = if ($before.Count -gt 0 -and $values.ContainsKey($before[-1])) { $values[$before[-1]] }
    elseif ($command -and $commands.ContainsKey($command)) { $commands[$command] }
    else { ${listed(subjects.map(({ name }) => name))} }
  $words | Where-Object { $_.StartsWith($wordToComplete) } | ForEach-Object {
    [System.Management.Automation.CompletionResult]::new($_, $_, 'ParameterValue', $_)
  }
}`;
}
