import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';

import { PosternError, reasonOf } from '../../core/errors.ts';
import { instanceName, mayPass, type Resource, ResourceClient, type ResourceEvent } from './resource.ts';
import { nextStatus, statusWithout, type Verdict } from './status.ts';

interface Context {
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly log: Logger;
  /** Milliseconds that the first reading may wait for the API server and for the resource. */
  readonly patience: number;
}

/** A watch that ended sooner than this was no success, in milliseconds. */
const shortWatch = 5000;
const longestPause = 30_000;
/** Instances that share a resource do not all write at once, in milliseconds. */
const spread = 1000;
/** How often the status is looked through for instances that died without a word, in milliseconds. */
const tidyEvery = 10 * 60_000;
const writeTimeout = 10_000;
const leaveTimeout = 3000;
const lastWordTimeout = 5000;

/**
 * One Configuration for the life of the process: read at the start, watched from then on, and told in its status what
 * has become of each generation. While the API server is down, or when the resource is deleted, what was read stays.
 */
export class FollowedResource {
  readonly path: string;
  readonly #context: Context;
  readonly #log: Logger;
  readonly #instance: string;
  readonly #closing = new AbortController();
  #client: ResourceClient | undefined;
  /** As the API server last told it. */
  #latest: Resource | undefined;
  /** How often it has. */
  #heard = 0;
  #watched = false;
  #running: Promise<void> | undefined;
  /** What was last handed out to be put in force. */
  #given: Resource | undefined;
  #verdict: Verdict | undefined;
  #writing: Promise<void> | undefined;
  #mayWrite = true;
  #tidying: NodeJS.Timeout | undefined;
  #changed: () => void = () => undefined;
  #current: (current: boolean) => void = () => undefined;

  constructor(path: string, context: Context) {
    this.path = path;
    this.#context = context;
    this.#log = context.log.child({ resource: path });
    this.#instance = instanceName(context.environment);
  }

  /** The resource as it is now. The first time this waits, within the patience, for an API server that does not answer. */
  async read(): Promise<Resource> {
    const { signal } = this.#closing;
    const heard = this.#heard;
    const asked = this.#watched && this.#latest ? this.#latest : await this.#ask(signal);
    // What the watch has told meanwhile is newer than the answer, or the same.
    if (heard === this.#heard || !this.#latest) this.#latest = asked;
    this.#given = this.#latest;
    return this.#given;
  }

  /** Calls `changed` for each other generation, and `current` when it is known, or no more known, what the server has. */
  follow(changed: () => void, current: (current: boolean) => void): void {
    this.#changed = changed;
    this.#current = current;
    this.#running = this.#run(this.#closing.signal);
    this.#tidying = setInterval(() => this.#write(), tidyEvery * (0.75 + Math.random() / 2)).unref();
  }

  /** What has become of the resource that was last read; undefined: it is in force. */
  report(trouble: PosternError | undefined): void {
    if (!this.#given) return;
    const { generation } = this.#given;
    this.#verdict = { generation, trouble: trouble && { code: trouble.code, message: trouble.message } };
    this.#write();
  }

  /** Says why the process ends that could not start, and leaves that word for whoever looks. */
  async fail(trouble: PosternError): Promise<void> {
    this.report(trouble);
    await Promise.race([this.#writing, delay(lastWordTimeout, undefined, { ref: false })]);
    this.#verdict = undefined;
    await this.close();
  }

  /** Ends the watch, and takes what this instance said out of the status. */
  async close(): Promise<void> {
    clearInterval(this.#tidying);
    this.#closing.abort(new PosternError('SHUTDOWN', 'the resource is followed no more'));
    await Promise.all([this.#running, this.#writing]);
    await this.#leave().catch(() => undefined);
    await this.#client?.close().catch(() => undefined);
  }

  async #ask(signal: AbortSignal): Promise<Resource> {
    const patience = this.#given ? 0 : this.#context.patience;
    const until = performance.now() + patience;
    for (let failures = 1; ; failures++)
      try {
        return await (await this.#connected(signal)).get(signal);
      } catch (thrown) {
        const left = until - performance.now();
        if (!mayPass(thrown) || left <= 0 || signal.aborted) throw thrown;
        if (failures === 1)
          this.#log.warn(
            { reason: PosternError.from(thrown).message },
            'waiting for the configuration in the cluster',
          );
        const pause = Math.min(100 * 2 ** failures, 5000) * (0.5 + Math.random());
        await delay(Math.min(pause, left), undefined, { signal }).catch(() => undefined);
      }
  }

  async #connected(signal: AbortSignal): Promise<ResourceClient> {
    const { environment } = this.#context;
    this.#client ??= await ResourceClient.open(this.path, { environment, log: this.#log }, signal);
    return this.#client;
  }

  async #run(signal: AbortSignal): Promise<void> {
    let failures = 0;
    let version: string | undefined;
    while (!signal.aborted) {
      const startedAt = performance.now();
      const wasShort = () => performance.now() - startedAt < shortWatch;
      try {
        const client = await this.#connected(signal);
        if (version === undefined) {
          const found = await client.list(signal);
          version = found.version;
          this.#take(found.resource ? { kind: 'there', resource: found.resource } : { kind: 'gone' });
        }
        const open = () => {
          this.#watched = true;
          this.#current(this.#latest !== undefined);
          if (failures > 0) this.#log.info('the configuration in the cluster is watched again');
        };
        version = await client.watch(version, { open, event: (each) => this.#take(each) }, signal);
        failures = wasShort() ? failures + 1 : 0;
      } catch (thrown) {
        if (signal.aborted) break;
        // Where the watch stood is not known to be right any more.
        version = undefined;
        failures = wasShort() ? failures + 1 : 1;
        this.#current(false);
        const { message } = PosternError.from(thrown);
        const reason = thrown instanceof PosternError ? message : reasonOf(thrown);
        if (failures === 1)
          this.#log.warn(
            { reason },
            'the configuration in the cluster is not watched, the last one stays in force',
          );
      } finally {
        this.#watched = false;
      }
      // By up to half more or less, so that many sidecars do not come back at once. Never a loop without a pause.
      const pause = failures === 0 ? 20 : Math.min(100 * 2 ** failures, longestPause);
      await delay(pause * (0.5 + Math.random()), undefined, { signal }).catch(() => undefined);
    }
  }

  #take(event: ResourceEvent): void {
    if (event.kind === 'nothing new') return;
    this.#heard += 1;
    if (event.kind === 'gone') {
      if (this.#latest)
        this.#log.warn('the configuration in the cluster is gone, the last one stays in force');
      this.#latest = undefined;
      this.#current(false);
      return;
    }
    const { resource } = event;
    if (!this.#latest) this.#current(true);
    this.#latest = resource;
    if (this.#isGiven(resource)) this.#write();
    else this.#changed();
  }

  #isGiven({ uid, generation }: Resource): boolean {
    return this.#given?.uid === uid && this.#given.generation === generation;
  }

  /** Brings the status up to date; once at a time, and again when something has come in between. */
  #write(): void {
    if (this.#writing || !this.#mayWrite || this.#closing.signal.aborted || !this.#wanted()) return;
    this.#writing = this.#writeSoon(this.#closing.signal)
      .catch((thrown: unknown) => {
        if (this.#closing.signal.aborted) return;
        const { code, message } = PosternError.from(thrown);
        if (code === 'PROVIDER_FAILED') {
          this.#mayWrite = false;
          this.#log.warn(
            { reason: message },
            'the status of the configuration in the cluster cannot be written',
          );
        } else
          this.#log.debug(
            { reason: message },
            'the status of the configuration in the cluster is not written yet',
          );
      })
      .finally(() => {
        this.#writing = undefined;
      });
  }

  async #writeSoon(closing: AbortSignal): Promise<void> {
    const client = await this.#connected(closing);
    for (let attempt = 1; attempt <= 8; attempt++) {
      // Perhaps another instance writes the same in the meantime, and the watch says so.
      await delay(spread * attempt * Math.random(), undefined, { signal: closing });
      const wanted = this.#wanted();
      if (!wanted) return;
      const signal = AbortSignal.any([closing, AbortSignal.timeout(writeTimeout)]);
      const written = await client.writeStatus(wanted.version, wanted.status, signal);
      // Where the watch is not open the newer one has to be asked for.
      if (written) this.#keep(written);
      else if (!this.#watched) this.#keep(await client.get(signal));
    }
  }

  #wanted() {
    if (!this.#latest || !this.#verdict || !this.#isGiven(this.#latest)) return undefined;
    if (this.#verdict.generation !== this.#latest.generation) return undefined;
    const status = nextStatus(this.#latest.status, this.#instance, this.#verdict, new Date());
    return status && { version: this.#latest.version, status };
  }

  /** An answer to a request may be newer than what the watch has told; a changed spec is left to the watch. */
  #keep(resource: Resource): void {
    if (this.#isGiven(resource)) this.#latest = resource;
  }

  async #leave(): Promise<void> {
    if (!this.#client || !this.#mayWrite || !this.#verdict?.trouble) return;
    const signal = AbortSignal.timeout(leaveTimeout);
    for (let attempt = 1; attempt <= 3; attempt++) {
      const resource = await this.#client.get(signal);
      const status = statusWithout(resource.status, this.#instance);
      if (!status || (await this.#client.writeStatus(resource.version, status, signal))) return;
    }
  }
}
