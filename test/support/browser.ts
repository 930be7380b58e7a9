import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { aptInstall, which } from './servers/install.ts';
import { Unavailable } from './servers/process.ts';

/** How long the browser may take for one thing, in milliseconds: it shares the machine with servers and other tests. */
const PATIENCE = 60_000;

/** A window to look at a page with. */
export interface Look {
  readonly width: number;
  readonly height?: number;
  readonly dark?: boolean;
  /** Whether the page's scripts run. */
  readonly script?: boolean;
}

interface Message {
  readonly id?: number;
  readonly method?: string;
  readonly sessionId?: string;
  readonly result?: unknown;
  readonly params?: unknown;
  readonly error?: { readonly message: string };
}

/** A headless Chromium, spoken to over pipes in its DevTools protocol. */
export class Browser implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #folder: string;
  readonly #toBrowser: Writable;
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>();
  readonly #listeners = new Map<string, (message: Message) => void>();
  #last = 0;
  #rest = '';

  private constructor(child: ChildProcess, folder: string) {
    this.#child = child;
    this.#folder = folder;
    this.#toBrowser = child.stdio[3] as Writable;
    this.#toBrowser.on('error', () => {});
    (child.stdio[4] as Readable).setEncoding('utf8').on('data', (text: string) => this.#take(text));
    child.on('close', () => {
      for (const { reject } of this.#waiting.values()) reject(new Error('the browser has ended'));
    });
  }

  /** Installs Chromium where that can be done. Throws `Unavailable`. */
  static async start(): Promise<Browser> {
    if (!(await which('chromium'))) await aptInstall(['chromium']);
    const program = await which('chromium');
    if (!program) throw new Unavailable('install chromium');
    const folder = await mkdtemp(join(tmpdir(), 'postern-browser-'));
    const flags = [
      '--headless=new',
      '--no-sandbox',
      '--no-first-run',
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--hide-scrollbars',
      '--remote-debugging-pipe',
      `--user-data-dir=${folder}`,
    ];
    const child = spawn(program, flags, {
      stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
      env: { PATH: process.env['PATH'], HOME: folder },
    });
    return new Browser(child, folder);
  }

  async open(url: string, { width, height = 900, dark = false, script = true }: Look): Promise<Page> {
    const { targetId } = (await this.send('Target.createTarget', { url: 'about:blank' })) as {
      targetId: string;
    };
    const { sessionId } = (await this.send('Target.attachToTarget', { targetId, flatten: true })) as {
      sessionId: string;
    };
    const page = new Page(this, sessionId);
    this.#listeners.set(sessionId, (message) => page.hear(message.method ?? '', message.params));
    await page.send('Runtime.enable');
    await page.send('Log.enable');
    await page.send('Page.enable');
    await page.send('Emulation.setDeviceMetricsOverride', {
      width,
      height,
      deviceScaleFactor: 1,
      mobile: width < 600,
    });
    await page.send('Emulation.setEmulatedMedia', {
      features: [{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }],
    });
    // Else only the newest page counts as seen, and the others may rest.
    await page.send('Emulation.setFocusEmulationEnabled', { enabled: true });
    if (!script) await page.send('Emulation.setScriptExecutionDisabled', { value: true });
    await page.send('Page.navigate', { url });
    await page.loaded;
    return page;
  }

  async send(method: string, params: object = {}, sessionId?: string): Promise<unknown> {
    this.#last += 1;
    const id = this.#last;
    const answer = Promise.withResolvers<unknown>();
    this.#waiting.set(id, answer);
    const timer = setTimeout(
      () => answer.reject(new Error(`the browser does not answer ${method}`)),
      PATIENCE,
    );
    this.#toBrowser.write(`${JSON.stringify({ id, method, params, ...(sessionId && { sessionId }) })}\0`);
    try {
      return await answer.promise;
    } finally {
      clearTimeout(timer);
      this.#waiting.delete(id);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended =
      this.#child.exitCode === null && this.#child.signalCode === null
        ? once(this.#child, 'close')
        : undefined;
    await this.send('Browser.close').catch(() => this.#child.kill('SIGKILL'));
    const kill = setTimeout(() => this.#child.kill('SIGKILL'), 10_000);
    await ended;
    clearTimeout(kill);
    // Its helpers may still write for a moment.
    await rm(this.#folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 250 });
  }

  #take(text: string): void {
    const messages = (this.#rest + text).split('\0');
    this.#rest = messages.pop() ?? '';
    for (const each of messages) {
      const message = JSON.parse(each) as Message;
      if (message.id === undefined) this.#listeners.get(message.sessionId ?? '')?.(message);
      else if (message.error) this.#waiting.get(message.id)?.reject(new Error(message.error.message));
      else this.#waiting.get(message.id)?.resolve(message.result);
    }
  }
}

/** One page that the browser shows. */
export class Page {
  /** What went wrong on it: exceptions, and what the browser refused. */
  readonly faults: string[] = [];
  readonly #browser: Browser;
  readonly #sessionId: string;
  readonly #loaded = Promise.withResolvers<void>();

  constructor(browser: Browser, sessionId: string) {
    this.#browser = browser;
    this.#sessionId = sessionId;
  }

  get loaded(): Promise<void> {
    return this.#loaded.promise;
  }

  hear(method: string, params: unknown): void {
    if (method === 'Page.loadEventFired') this.#loaded.resolve();
    if (method === 'Runtime.exceptionThrown') this.faults.push(JSON.stringify(params));
    if (method === 'Log.entryAdded') this.faults.push(JSON.stringify(params));
  }

  async send(method: string, params: object = {}): Promise<unknown> {
    return await this.#browser.send(method, params, this.#sessionId);
  }

  /** The value of an expression on the page. */
  async value(expression: string): Promise<unknown> {
    const { result, exceptionDetails } = (await this.send('Runtime.evaluate', {
      expression,
      returnByValue: true,
      awaitPromise: true,
    })) as { result: { value?: unknown }; exceptionDetails?: unknown };
    if (exceptionDetails) throw new Error(JSON.stringify(exceptionDetails));
    return result.value;
  }

  /** Waits until an expression on the page is true. */
  async until(expression: string): Promise<void> {
    const end = Date.now() + PATIENCE;
    while ((await this.value(expression)) !== true) {
      if (Date.now() > end) throw new Error(`never came true on the page: ${expression}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /** A PNG of the whole page, however long it is. */
  async screenshot(): Promise<Buffer> {
    const { data } = (await this.send('Page.captureScreenshot', {
      format: 'png',
      captureBeyondViewport: true,
    })) as { data: string };
    return Buffer.from(data, 'base64');
  }
}
