const factors: Readonly<Record<string, number>> = {
  '': 1,
  m: 1e-3,
  k: 1e3,
  M: 1e6,
  G: 1e9,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
};

const units = { cpu: ['', 'm'], memory: ['', 'k', 'M', 'G', 'Ki', 'Mi', 'Gi'] } as const;

/**
 * Cores or bytes of a quantity of Kubernetes, which is more than zero; undefined when it is none. The forms that nobody
 * writes for a sidecar (exponents, milli-bytes, peta-bytes) are none here.
 */
export function quantityOf(text: string, kind: keyof typeof units): number | undefined {
  const [, number, unit = ''] = /^(\d{1,15}(?:\.\d{1,3})?)([a-zA-Z]{0,2})$/.exec(text) ?? [];
  if (number === undefined || !(units[kind] as readonly string[]).includes(unit)) return undefined;
  const value = Number(number) * (factors[unit] ?? Number.NaN);
  return value > 0 ? value : undefined;
}
