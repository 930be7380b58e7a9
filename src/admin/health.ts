/** How it stands with one service, for people and probes. */
export interface ServiceHealth {
  readonly name: string;
  readonly address: string;
  readonly active: number;
  readonly limit: number;
  /** What there is to know of its credentials. */
  readonly notes: readonly string[];
}

/** Whether a provider can be asked now. */
export interface ProviderHealth {
  readonly name: string;
  /** Why not. */
  readonly error: string | undefined;
}

export interface HealthDetail {
  readonly services: readonly ServiceHealth[];
  readonly providers: readonly ProviderHealth[];
}

/** What the health endpoints ask of the running program. */
export interface Health {
  /** Why Postern does not take new sessions (starting, draining); undefined when it does. */
  notReady(): string | undefined;
  /** The state of each listener and provider. Bounded in time. */
  detail(): Promise<HealthDetail>;
}

/** The answer of a probe as text: one word, with `detail` a line before it for each thing. */
export function healthText(why: string | undefined, detail: HealthDetail | undefined): string {
  const services = (detail?.services ?? []).flatMap(({ name, address, active, limit, notes }) => [
    `service ${name}: listening on ${address}, ${active} of ${limit} connections`,
    ...notes.map((note) => `service ${name}: ${note}`),
  ]);
  const providers = (detail?.providers ?? []).map(({ name, error }) => `provider ${name}: ${error ?? 'ok'}`);
  return [...services, ...providers, why ?? 'ok', ''].join('\n');
}

/** The same for programs. */
export function healthJson(why: string | undefined, detail: HealthDetail | undefined): string {
  const body = {
    status: why ?? 'ok',
    ...(detail && {
      services: detail.services,
      providers: detail.providers.map(({ name, error }) => ({
        name,
        status: error === undefined ? 'ok' : 'failing',
        ...(error !== undefined && { error }),
      })),
    }),
  };
  return `${JSON.stringify(body)}\n`;
}
