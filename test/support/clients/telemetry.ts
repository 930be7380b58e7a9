import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildable, installPython } from './program.ts';

const reader = buildable({
  name: 'python-telemetry',
  files: ['requirements.txt'],
  build: installPython,
  command: (source, folder) => ['env', `PYTHONPATH=${folder}`, 'python3', join(source, 'read.py')],
});

/** What the parsers of Prometheus or of OpenTelemetry read out of a text. Throws `Unavailable` without Python. */
export async function readTelemetry(
  kind: 'openmetrics' | 'prometheus' | 'otlp-metrics' | 'otlp-traces',
  text: string,
): Promise<Readonly<Record<string, unknown>>> {
  await reader.prepare();
  const folder = await mkdtemp(join(tmpdir(), 'postern-telemetry-'));
  try {
    const file = join(folder, 'text');
    await writeFile(file, text);
    return (await reader.ask([kind, file], {})) as Readonly<Record<string, unknown>>;
  } finally {
    await rm(folder, { recursive: true });
  }
}
