import { suggestion } from '../config/report.ts';
import { imageProblem, isAllowed, isDnsLabel, isDnsName } from './names.ts';
import { quantityOf } from './quantity.ts';
import { allowedImages, modes, type SidecarSettings, sidecarLogLevels } from './settings.ts';

/** Every annotation of ours begins so. */
export const prefix = 'postern.dev/';

/** Why a pod is refused: sentences for the person who asked for it, which name annotations and never repeat a value. */
export class Refusal extends Error {
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(problems.join('; '));
    this.problems = problems;
  }
}

/** Which clients a service is for. */
export type Form = 'postgres' | 'mysql' | 'http' | 'proxy';

/** A service that application containers are to find in their environment. */
export interface WantedService {
  readonly name: string;
  readonly form: Form;
  readonly port: number;
  readonly database: string | undefined;
}

/** A token of the pod's service account, for one store. */
export interface WantedToken {
  /** It is the file /var/run/secrets/NAME/token. */
  readonly name: string;
  readonly audience: string;
}

/** What a pod asks for; undefined: what the settings say. */
export interface Wishes {
  readonly config: string | undefined;
  readonly image: string | undefined;
  readonly cpu: string | undefined;
  readonly memory: string | undefined;
  readonly cpuLimit: string | undefined;
  readonly memoryLimit: string | undefined;
  readonly logLevel: string | undefined;
  readonly mode: (typeof modes)[number] | undefined;
  readonly runAsUser: number | undefined;
  readonly adminPort: number | undefined;
  readonly drainTimeout: string | undefined;
  readonly env: readonly WantedService[];
  /** Containers that get variables and sockets; undefined: all. */
  readonly containers: readonly string[] | undefined;
  readonly tokens: readonly WantedToken[];
  readonly apiToken: boolean;
  readonly sockets: boolean;
  /** Before the pod's own init containers. */
  readonly first: boolean;
}

/** Annotations with their meanings, in the order of docs/injector.md, which a test holds against this list. */
export const annotations: Readonly<Record<string, string>> = {
  inject:
    '`"true"`: add the sidecar. `"false"`: do not, whatever the namespace says. A label of this name says the same.',
  config:
    "ConfigMap of the pod's namespace that holds `postern.yaml`, and further files such as CA certificates.",
  image: 'Another image of the sidecar, of a repository that `allowedImages` has.',
  cpu: 'CPU that the sidecar asks for: `100m`.',
  memory: 'Memory that the sidecar asks for: `128Mi`.',
  'cpu-limit': 'CPU that it gets at most.',
  'memory-limit': 'Memory that it gets at most.',
  'log-level': '`debug`, `info`, `warn` or `error`.',
  mode: '`native`, `plain` or `auto`.',
  'run-as-user': 'User and group of the sidecar; not 0, and not that of another container.',
  'admin-port': 'Port of health and metrics, where the application has 9090 itself.',
  'drain-timeout':
    'How long sessions get to finish at the end: `20s`. For pods that are not started again (Jobs) `2s`.',
  env: 'Services whose variables containers get, see [below](#variables): `orders-db=postgres:5432/orders, api=http:8080`.',
  containers:
    'Which containers get variables and sockets, by name: `app, migrate`. Default: all, also init containers.',
  'token-audience':
    "Tokens of the pod's service account for stores: `vault` is the file `/var/run/secrets/vault/token` with that audience; `aws=sts.amazonaws.com` gives it a name of its own. Eight at most.",
  'api-token': '`"true"`: a token for the API server, for the provider `kubernetes`.',
  sockets:
    '`"true"`: the folder `/run/postern` for unix sockets, which the containers can read; `env` then leads databases there.',
  first: '`"false"`: behind the pod\'s own init containers, such as those that set up its network.',
};

/** Others that are Postern's and no matter of the injector. */
const others: ReadonlySet<string> = new Set(['status', 'version', 'config-checksum']);

/** The longest value that is read at all, in characters. */
const longestValue = 4096;

type Annotations = Readonly<Record<string, unknown>>;

/**
 * Whether the pod asks for a sidecar (true), against one (false), or says nothing (undefined): by its annotation, else
 * its label of the same name. Throws Refusal for another word.
 */
export function asksForInjection(
  metadata: { annotations?: unknown; labels?: unknown } | undefined,
): boolean | undefined {
  for (const [kind, map] of [
    ['annotation', metadata?.annotations],
    ['label', metadata?.labels],
  ] as const) {
    const value = own(map as Annotations | undefined, `${prefix}inject`);
    // The namespace's word: on a pod's label it means the same.
    if (value === 'true' || (kind === 'label' && value === 'enabled')) return true;
    if (value === 'false' || (kind === 'label' && value === 'disabled')) return false;
    if (value !== undefined) throw new Refusal([`the ${kind} ${prefix}inject must be "true" or "false"`]);
  }
  return undefined;
}

/** Reads what a pod asks for. Throws Refusal with everything that is wrong with it. */
export function readWishes(all: Annotations | undefined, settings: SidecarSettings): Wishes {
  const problems: string[] = [];
  const refuse = (key: string, why: string) => void problems.push(`${prefix}${key} ${why}`);

  /** The value of one annotation, read by `parse`, which says undefined for what it does not understand. */
  const read = <Value>(
    key: string,
    parse: (text: string) => Value | undefined,
    otherwise: string,
  ): Value | undefined => {
    const text = own(all, prefix + key);
    if (text === undefined) return undefined;
    const value =
      typeof text === 'string' && text.length <= longestValue && isPrintable(text) ? parse(text) : undefined;
    if (value === undefined) refuse(key, otherwise);
    return value;
  };
  const word = <Word extends string>(key: string, words: readonly Word[]) =>
    read(key, (text) => words.find((each) => each === text), `must be one of ${words.join(', ')}`);
  const flag = (key: string, otherwise: boolean) => {
    const value = word(key, ['true', 'false']);
    return value === undefined ? otherwise : value === 'true';
  };
  const number = (key: string, least: number, most: number) =>
    read(
      key,
      (text) => {
        const value = /^\d{1,10}$/.test(text) ? Number(text) : Number.NaN;
        return value >= least && value <= most ? value : undefined;
      },
      `must be a whole number from ${least} to ${most}`,
    );
  const quantity = (key: string, kind: 'cpu' | 'memory') => {
    const most = kind === 'cpu' ? settings.mostCpu : settings.mostMemory;
    const within = (text: string) => {
      const value = quantityOf(text, kind);
      return value !== undefined && value <= (quantityOf(most, kind) ?? 0) ? text : undefined;
    };
    const example = kind === 'cpu' ? '100m' : '128Mi';
    return read(key, within, `must be a quantity such as ${example}, of ${most} at most`);
  };

  for (const key of Object.keys(all ?? {})) {
    if (!key.startsWith(prefix)) continue;
    const name = key.slice(prefix.length);
    if (!Object.hasOwn(annotations, name) && !others.has(name))
      problems.push(
        `there is no annotation ${JSON.stringify(key.slice(0, 80))}${suggestion(name, Object.keys(annotations))}`,
      );
    if (problems.length >= mostProblems) break;
  }

  const image = read(
    'image',
    (text) => (imageProblem(text) === undefined ? text : undefined),
    'must be the name of an image',
  );
  if (image !== undefined && !isAllowed(image, allowedImages(settings)))
    refuse('image', "is of a repository that the injector's settings do not allow (sidecar.allowedImages)");
  const wishes: Wishes = {
    config: read('config', (text) => (isDnsName(text) ? text : undefined), 'must be the name of a ConfigMap'),
    image,
    cpu: quantity('cpu', 'cpu'),
    memory: quantity('memory', 'memory'),
    cpuLimit: quantity('cpu-limit', 'cpu'),
    memoryLimit: quantity('memory-limit', 'memory'),
    logLevel: word('log-level', sidecarLogLevels),
    mode: word('mode', modes),
    runAsUser: number('run-as-user', 1, 2 ** 31 - 1),
    adminPort: number('admin-port', 1024, 65535),
    drainTimeout: read(
      'drain-timeout',
      (text) => (/^\d{1,4}s$|^\d{1,2}m$/.test(text) ? text : undefined),
      'must be a duration such as 20s or 2m',
    ),
    env:
      read(
        'env',
        servicesOf,
        'must list services, each as NAME=postgres|mysql|http|proxy:PORT, a database with /DATABASE behind it',
      ) ?? [],
    containers: read('containers', containersOf, 'must list names of containers, each once'),
    tokens:
      read(
        'token-audience',
        tokensOf,
        'must list audiences, each as AUDIENCE or NAME=AUDIENCE, 8 at most and each name once',
      ) ?? [],
    apiToken: flag('api-token', false),
    sockets: flag('sockets', false),
    first: flag('first', true),
  };
  if (problems.length > 0) throw new Refusal(problems.slice(0, mostProblems));
  return wishes;
}

/** Of what is wrong with one pod, so much is said. */
const mostProblems = 12;
const mostServices = 32;

/** `a, b,c`; undefined when a part is empty. */
function listOf(text: string, most: number): string[] | undefined {
  const parts = text.split(',').map((part) => part.trim());
  return parts.length <= most && parts.every((part) => part !== '') ? parts : undefined;
}

/** All of the list as `parse` has it, if it has it all and `key` tells each from the others. */
function distinct<Part>(
  text: string,
  most: number,
  parse: (part: string) => Part | undefined,
  key: (part: Part) => string,
): Part[] | undefined {
  const parts = listOf(text, most)?.map(parse);
  if (!parts) return undefined;
  const whole = parts.filter((part) => part !== undefined);
  return whole.length === parts.length && new Set(whole.map(key)).size === whole.length ? whole : undefined;
}

const usualPorts: Readonly<Partial<Record<Form, number>>> = { postgres: 5432, mysql: 3306 };

function servicesOf(text: string): readonly WantedService[] | undefined {
  const pattern =
    /^([A-Za-z0-9][A-Za-z0-9_-]{0,62})=(postgres|mysql|http|proxy)(?::([1-9]\d{0,4}))?(?:\/([A-Za-z0-9_.-]{1,63}))?$/;
  const parse = (part: string): WantedService | undefined => {
    const [, name, word, digits, database] = pattern.exec(part) ?? [];
    if (name === undefined || word === undefined) return undefined;
    const form = word as Form;
    const port = digits === undefined ? usualPorts[form] : Number(digits);
    if (port === undefined || port > 65535) return undefined;
    if (database !== undefined && form !== 'postgres' && form !== 'mysql') return undefined;
    return { name, form, port, database };
  };
  return distinct(text, mostServices, parse, ({ name }) => variablePrefix(name));
}

function containersOf(text: string): readonly string[] | undefined {
  return distinct(
    text,
    64,
    (part) => (isDnsLabel(part) ? part : undefined),
    (part) => part,
  );
}

function tokensOf(text: string): readonly WantedToken[] | undefined {
  const parse = (part: string): WantedToken | undefined => {
    const [, given, audience] =
      /^(?:([a-z0-9-]{1,40})=)?([A-Za-z0-9][A-Za-z0-9.:/_-]{0,252})$/.exec(part) ?? [];
    const name = given ?? audience;
    if (name === undefined || audience === undefined || name.length > 40 || !isDnsLabel(name))
      return undefined;
    return { name, audience };
  };
  return distinct(text, 8, parse, ({ name }) => name);
}

/** `orders-db` is ORDERS_DB; a variable does not begin with a digit. */
export function variablePrefix(service: string): string {
  return service
    .toUpperCase()
    .replaceAll(/[^A-Z0-9]/g, '_')
    .replace(/^\d/, '_$&');
}

function isPrintable(text: string): boolean {
  return /^[\x20-\x7e]*$/.test(text);
}

/** Of maps that came from outside: `constructor` is no annotation of theirs. */
function own(map: Annotations | undefined, key: string): unknown {
  return map && Object.hasOwn(map, key) ? map[key] : undefined;
}
